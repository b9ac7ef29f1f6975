"""The HTTP port with HTTP/2 in clear text beside HTTP/1.1: granian, embedded in the running loop.

Made for granian 2.8. What it does not do by itself, and is done here:

- it closes no connection while its client holds on to it, so stopping shuts the sockets down;
- it takes any body at once, however long its client does not read;
- it tells a stream that the client reset as a body that is complete;
- it waits without end for the first bytes of a connection, from which it learns the version of HTTP;
- it names itself in every reply;
- it does not wait for its own threads, which call into Python to the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Self

from quill.errors import InvalidUsage
from quill.limits import Limits
from quill.server.accepted import accepted_at, unbegun
from quill.server.dead_peers import probe_silence
from quill.server.foreign_threads import ForeignThreads
from quill.server.http_host import Application, Message, Receive, Send

if TYPE_CHECKING:
    from granian.server.embed import Server as Granian

_log = logging.getLogger("quill.server")

_BACKLOG = 2048
_MIN_BUFFER_BYTES = 8192
"""What granian's parser of HTTP/1.1 wants at least."""
_PIECE_BYTES = 64 * 1024
_SETTLE_S = 1.0
_ATTEMPTS = 3
_THREADS_S = 10.0
"""How long granian's threads are waited for; they take milliseconds, and longer where the processor is busy."""
_RESET_S = 0.005
"""How long after the end of a body that announced no length its reset may still be told."""
_UNFRAMED_RESET_S = 0.1
"""The same where messages have no lengths either; a busy machine tells later than an idle one."""
_WITH_FRAMES = (b"application/connect+", b"application/grpc")


def check_installed() -> None:
    """Raise InvalidUsage where granian is not installed."""
    if importlib.util.find_spec("granian") is None:
        raise InvalidUsage("HTTP/2 needs granian: pip install 'quill-rpc[http2]'")


class GranianHost:
    """Serves an ASGI application over HTTP/1.1 and h2c."""

    def __init__(self, application: Application, listener: socket.socket, limits: Limits) -> None:
        self._application = application
        self._address = listener.getsockname()
        self._is_unix = listener.family == socket.AF_UNIX
        probe_silence(listener, limits)
        self._threads = ForeignThreads()
        self._server = _embedded(self._answer, listener, limits, self._threads)
        self._requests: set[asyncio.Task[Any]] = set()
        self._serving: asyncio.Task[None] | None = None
        self._header_timeout_s = limits.header_timeout_s
        self._clock: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections."""
        self._serving = asyncio.create_task(self._server.serve())
        # The socket listens already; all that can fail is granian's configuration, in its first step.
        done, _ = await asyncio.wait([self._serving], timeout=0)
        for failed in done:
            failed.result()
        self._clock = asyncio.create_task(self._look_after())

    def stop_accepting(self) -> None:
        """Accept no more connections; requests that run go on."""
        self._server.stop()  # type: ignore[no-untyped-call]

    async def wait(self) -> None:
        """Wait until no request runs."""
        while self._requests:
            await asyncio.wait(set(self._requests))

    async def close(self) -> None:
        """Cancel requests that still run, then drop every connection."""
        if tasks := set(self._requests):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_SETTLE_S)
        if self._serving is None or self._clock is None:
            return
        self._clock.cancel()
        await asyncio.wait([self._clock])
        # What is written and not yet read goes out while the sockets are told to close.
        await asyncio.wait([self._serving], timeout=_SETTLE_S / 10)
        for _ in range(_ATTEMPTS):
            if not self._serving.done():
                _shut_down(accepted_at(self._address))
                await asyncio.wait([self._serving], timeout=_SETTLE_S)
        self._serving.cancel()
        await asyncio.wait([self._serving])
        await self._wait_for_threads()

    async def _look_after(self) -> None:
        """Now and then: let those go who have not begun to say anything. It is a matter of some microseconds each."""
        while True:
            await asyncio.sleep(self._header_timeout_s / 2)
            connections = unbegun(accepted_at(self._address), self._header_timeout_s)
            await asyncio.to_thread(_shut_down, connections)

    async def _wait_for_threads(self) -> None:
        """Wait until granian has let go of Python, or log that it does not."""
        with contextlib.suppress(TimeoutError):
            await self._threads.wait(_SETTLE_S / 10)
            return
        # Whatever keeps an object of a request, such as the traceback of an exception, keeps a thread.
        gc.collect()
        try:
            await self._threads.wait(_THREADS_S)
        except TimeoutError:
            _log.warning("%d threads of granian did not end within %s s", self._threads.alive(), _THREADS_S)

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - granian runs requests in tasks
        self._requests.add(task)
        receiver, sender = _Lent(receive), _Lent(send)
        del receive, send
        try:
            if self._is_unix:
                scope = {**scope, "server": (self._address, None), "client": None}
            async with _Body(scope, receiver) as body:
                await self._application(scope, body, _in_pieces(_nameless(sender)))
        finally:
            receiver.give_back()
            sender.give_back()
            self._requests.discard(task)


class _Lent:
    """A callable of granian's, for as long as its request lasts.

    The objects of a request stay in the context of its task, and a context stays in whatever was made in it: a timer of
    asyncio's that was cancelled, until it would have fired. With granian's own among them, a thread of granian stays.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call: Callable[..., Awaitable[Any]] | None = call

    def __call__(self, *message: Message) -> Awaitable[Any]:
        if self._call is None:
            raise RuntimeError("the request has ended")
        return self._call(*message)

    def give_back(self) -> None:
        """Hold nothing of granian's any more."""
        self._call = None


def _nameless(send: Send) -> Send:
    """A ``send`` whose replies do not say which software wrote them, as granian would."""

    async def send_nameless(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"server", b"")]}
        await send(message)

    return send_nameless


def _in_pieces(send: Send) -> Send:
    """A ``send`` that waits for the client to read: granian takes a whole body at once, and parts of one as they go."""

    async def send_in_pieces(message: Message) -> None:
        body = message.get("body", b"")
        start = 0
        while len(body) - start > _PIECE_BYTES:
            piece = body[start : start + _PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            start += _PIECE_BYTES
        await send({**message, "body": body[start:]} if start else message)

    return send_in_pieces


class _Body:
    """A ``receive`` that does not take a reset for the end of the body.

    The disconnect follows the false end at once. A body that announced its length is compared with it; for others the
    disconnect is waited for: a few milliseconds where messages have lengths of their own, longer for the rare body that
    has none at all, because a part of it would pass for the whole.
    """

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive) -> None:
        self._receive = receive
        lengths = [value for name, value in scope["headers"] if name == b"content-length" and value.isdigit()]
        self._missing_bytes = int(lengths[0]) if lengths else None
        has_frames = any(name == b"content-type" and value.startswith(_WITH_FRAMES) for name, value in scope["headers"])
        self._patience_s = _RESET_S if has_frames or scope["method"] != "POST" else _UNFRAMED_RESET_S
        self._next: asyncio.Task[Message] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])

    async def __call__(self) -> Message:
        """The next message."""
        message = await self._ahead()
        if message["type"] != "http.request":
            return message
        if self._missing_bytes is not None:
            self._missing_bytes -= len(message["body"])
        if message["more_body"] or self._missing_bytes == 0:
            return message
        if self._missing_bytes is not None:
            return {"type": "http.disconnect"}
        self._next = asyncio.ensure_future(self._receive())
        await asyncio.wait([self._next], timeout=self._patience_s)
        return await self._ahead() if self._next.done() else message

    async def _ahead(self) -> Message:
        if self._next is None:
            return await self._receive()
        message = await asyncio.shield(self._next)
        self._next = None
        return message


def _shut_down(connections: Iterable[socket.socket]) -> None:
    """Shut down connections, which granian has no way to do."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class _FirstStep:
    """A coroutine to await, whose first step starts the threads."""

    def __init__(self, work: Coroutine[Any, Any, None], threads: ForeignThreads) -> None:
        self._work = work
        self._threads = threads

    def __await__(self) -> Generator[Any, None, None]:
        steps = self._work.__await__()
        with self._threads.started():
            awaited = next(steps)
        yield awaited
        yield from steps


def _embedded(application: Application, listener: socket.socket, limits: Limits, threads: ForeignThreads) -> Granian:
    from granian._granian import SocketHolder
    from granian.constants import Interfaces
    from granian.http import HTTP1Settings, HTTP2Settings
    from granian.server.embed import Server

    class Embedded(Server):
        """granian on a socket that listens already, with threads that are known."""

        def _init_shared_socket(self) -> None:
            self._ssp = None
            is_unix = listener.family == socket.AF_UNIX
            # The descriptor is granian's from here on, and granian closes it.
            self._shd = SocketHolder(listener.detach(), is_unix, _BACKLOG)  # type: ignore[call-arg, assignment]

        async def _spawn_asgi_worker(self, *args: Any) -> None:
            await _FirstStep(super()._spawn_asgi_worker(*args), threads)

    return Embedded(
        application,
        interface=Interfaces.ASGINL,
        websockets=False,
        log_enabled=False,
        backpressure=limits.max_connections,
        http1_settings=HTTP1Settings(
            header_read_timeout=math.ceil(limits.header_timeout_s * 1000),
            max_buffer_size=max(limits.max_metadata_bytes, _MIN_BUFFER_BYTES),
        ),
        http2_settings=HTTP2Settings(
            max_headers_size=limits.max_metadata_bytes,
            keep_alive_interval=round(limits.keepalive_interval_s * 1000),
            keep_alive_timeout=math.ceil(limits.keepalive_timeout_s),
        ),
    )
