"""Blocking handlers, run in threads as grpc.aio runs them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Never, TypeAlias, TypeVar

import grpc

T = TypeVar("T")
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_END = object()


class Blocking:
    """Runs blocking handlers. The threads are those of one server and end with it."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(thread_name_prefix="quill-handler")

    def close(self) -> None:
        """Start no more handlers; threads that are idle end, the others when their handler returns."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def unary(self, behaviour: Callable[..., Any], *, reads: bool) -> Callable[[Any, Context], Awaitable[Any]]:
        """A blocking function as a coroutine function; `reads` when its request is a stream."""

        async def call(request: Any, context: Context) -> Any:
            around = SyncContext(context, asyncio.get_running_loop())
            try:
                return await self._run(behaviour, around.iterate(request) if reads else request, around)
            finally:
                around.finish()

        return call

    def stream(self, behaviour: Callable[..., Any], *, reads: bool) -> Callable[[Any, Context], Awaitable[None]]:
        """A blocking generator as a coroutine function that writes."""

        async def call(request: Any, context: Context) -> None:
            around = SyncContext(context, asyncio.get_running_loop())
            replies = _Replies(behaviour, around.iterate(request) if reads else request, around)
            try:
                while (reply := await self._run(replies.next)) is not _END:
                    await context.write(reply)
            finally:
                try:
                    # A second cancellation must not take the generator's own cleaning up out of the queue.
                    await asyncio.shield(self._run(replies.close))
                finally:
                    around.finish()

        return call

    def _run(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        """Call in a thread, with the context variables of the caller (the principal, a trace)."""
        call = functools.partial(contextvars.copy_context().run, function, *arguments)
        return asyncio.get_running_loop().run_in_executor(self._threads, call)


class _Replies:
    """A blocking generator, stepped and closed from threads; closing waits for a step that still runs."""

    def __init__(self, behaviour: Callable[..., Any], request: Any, context: SyncContext) -> None:
        self._start = functools.partial(behaviour, request, context)
        self._replies: Iterator[Any] | None = None
        self._lock = threading.Lock()

    def next(self) -> Any:
        """The next reply, or _END: StopIteration cannot travel through a future."""
        with self._lock:
            if self._replies is None:
                self._replies = iter(self._start())
            return next(self._replies, _END)

    def close(self) -> None:
        """Run the generator's ``finally`` blocks; a plain iterator has none."""
        with self._lock:
            if close := getattr(self._replies, "close", None):
                close()


class SyncContext:
    """The blocking face of an asynchronous context, for the thread of a blocking handler.

    What does not wait (metadata, peer, set_code, time_remaining, ...) is the asynchronous context's own.
    """

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self._callbacks: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> Never:
        """End the call with a status: raises."""
        self._wait(self._context.abort(code, details, tuple(trailing_metadata)))
        raise AssertionError  # abort() has raised

    def abort_with_status(self, status: grpc.Status) -> Never:
        """End the call with a status: raises."""
        self._wait(self._context.abort_with_status(status))
        raise AssertionError  # abort_with_status() has raised

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the initial metadata now."""
        self._wait(self._context.send_initial_metadata(initial_metadata))

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call back when the call is over."""
        self._callbacks.append(callback)
        return True

    def is_active(self) -> bool:
        """Whether the call still runs."""
        return not self._context.done() and not self._context.cancelled()

    def iterate(self, requests: AsyncIterator[T]) -> Iterator[T]:
        """The requests of a client stream, read from the handler's thread."""

        async def step() -> Any:
            return await anext(requests, _END)

        while (request := self._wait(step())) is not _END:
            yield request

    def finish(self) -> None:
        """Run the callbacks of a call that is over."""
        for callback in self._callbacks:
            callback()

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
