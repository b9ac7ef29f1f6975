"""The requests of a streaming call that sends several: an iterator, pulled as the transport takes its messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, TypeGuard

from quill.client.turns import Turns
from quill.errors import Cancelled

Requests = Iterable[bytes] | AsyncIterable[bytes]
"""Encoded requests, one after the other. Only asynchronous transports take asynchronous ones."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Requests that can be had again: each iteration calls ``begin``, which knows what an attempt has to be told."""

    begin: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.begin()


@dataclass(frozen=True, slots=True)
class AsyncReplay:
    """As Replay, for asynchronous transports."""

    begin: Callable[[], AsyncIterator[Any]]

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.begin()


_VALUES = (bytes, bytearray, memoryview, str, Mapping)
"""What can be iterated and is one request all the same."""


def are_several(request: object) -> TypeGuard[Iterable[Any] | AsyncIterable[Any]]:
    """Whether it is an iterator of requests, not one request."""
    return isinstance(request, Iterable | AsyncIterable) and not isinstance(request, _VALUES)


def each(requests: Iterable[Any] | AsyncIterable[Any], encode: Callable[[Any], bytes]) -> Requests:
    """The requests as bytes. Whoever iterates closes the iterator, which closes what it reads from."""
    return _EachAsync(requests, encode) if isinstance(requests, AsyncIterable) else _Each(requests, encode)


def may_be_sent_again(request: bytes | Requests) -> bool:
    """Whether a request, or the requests of a stream, can be had a second time: nothing was taken, or all is kept."""
    return isinstance(request, bytes) or (isinstance(request, _Each | _EachAsync) and not request.is_used_up)


class _Each:
    def __init__(self, requests: Iterable[Any], encode: Callable[[Any], bytes]) -> None:
        self._requests = requests
        self._encode = encode
        self.is_used_up = False

    def __iter__(self) -> Generator[bytes, None, None]:
        self.is_used_up = not isinstance(self._requests, Sequence | Replay)
        iterator = iter(self._requests)
        try:
            for request in iterator:
                yield self._encode(request)
        finally:
            close_iterator(iterator)


class _EachAsync:
    def __init__(self, requests: AsyncIterable[Any], encode: Callable[[Any], bytes]) -> None:
        self._requests = requests
        self._encode = encode
        self.is_used_up = False

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        self.is_used_up = not isinstance(self._requests, AsyncReplay)
        iterator = aiter(self._requests)
        try:
            async for request in iterator:
                yield self._encode(request)
        finally:
            aclose = getattr(iterator, "aclose", None)
            if aclose is not None:
                await aclose()


def close_iterator(iterator: object) -> None:
    """End an iterator that may not have come to its end: a generator runs its ``finally``."""
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


class AsyncPump:
    """Moves requests from their iterator to a call, in a task of its own.

    Args:
        requests: Pulled one at a time: the next when the last was taken. An ordinary iterator runs on the event loop.
        send: Returns when the transport has taken the message; may raise anything where the call has ended.
        finish: Says that there are no more.
        fail: Called when the iterator raised, to end the call; ``failure`` is what it raised.
    """

    def __init__(
        self,
        requests: Requests,
        *,
        send: Callable[[bytes], Awaitable[None]],
        finish: Callable[[], Awaitable[None]],
        fail: Callable[[], object],
    ) -> None:
        self.failure: BaseException | None = None
        self._send = send
        self._finish = finish
        self._fail = fail
        self.task = asyncio.create_task(self._run(requests))
        """Ends when the iterator is closed."""

    def stop(self) -> None:
        """Pull no more, and close the iterator. Does not wait for that."""
        if not self.task.cancelling():  # a second time would break off what the iterator does at its end
            self.task.cancel()

    async def _run(self, requests: Requests) -> None:
        messages = aiter(requests) if isinstance(requests, AsyncIterable) else _on_loop(requests)
        turns = Turns(asyncio.get_running_loop().time)
        try:
            while (message := await self._pull(messages)) is not None:
                await self._send(message)
                await turns.give()
            if self.failure is None:
                await self._finish()
        except Exception:  # noqa: BLE001 - the call has ended: its status says why
            return
        finally:
            await self._close(messages)

    async def _pull(self, messages: AsyncIterator[bytes]) -> bytes | None:
        """The next request; None at the end, and where the iterator failed."""
        try:
            return await anext(messages, None)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError):
                if task is not None and task.cancelling():
                    raise
                error = Cancelled("the iterator of the requests was cancelled")
            self.failure = error
            self._fail()
            return None

    @staticmethod
    async def _close(messages: AsyncIterator[bytes]) -> None:
        aclose = getattr(messages, "aclose", None)
        if aclose is not None:
            # What a finalizer of the user's raises has no reader any more.
            with contextlib.suppress(Exception):
                await aclose()


async def _on_loop(requests: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    """An ordinary iterator on an event loop, with a turn for everybody else after each request."""
    iterator = iter(requests)
    try:
        for request in iterator:
            yield request
            await asyncio.sleep(0)
    finally:
        close_iterator(iterator)
