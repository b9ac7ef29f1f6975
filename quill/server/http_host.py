"""The HTTP port: a seam for ASGI hosts, and uvicorn behind it.

Connections and their bytes are the host's matter; what a request means is the ASGI application's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from quill.errors import InvalidUsage
from quill.limits import Limits
from quill.server import unix_socket

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_SETTLE_S = 1.0


class HttpHost(Protocol):
    """Serves an ASGI application on a listening socket, in the running loop."""

    async def start(self) -> None:
        """Accept connections."""

    def stop_accepting(self) -> None:
        """Accept no more connections or requests; requests that run go on."""

    async def wait(self) -> None:
        """Wait until no request runs."""

    async def close(self) -> None:
        """End what still runs and close every connection, within a second or two."""


async def listen(address: str) -> socket.socket:
    """A listening socket; of a name with several addresses, the first IPv4 one is taken.

    Raises:
        InvalidUsage: The address is neither HOST:PORT nor ``unix:PATH``, or cannot be listened on.
    """
    if (path := unix_socket.path_of(address)) is not None:
        return unix_socket.listen(path, _BACKLOG)
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - the highest port
        raise InvalidUsage(
            f"{address!r} is no address for HTTP: it takes HOST:PORT, as 127.0.0.1:8080 or [::1]:0, or unix:PATH"
        )
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, target = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return _bound(family, target)
    except OSError as error:
        reason = error.strerror or "the address cannot be used"
        raise InvalidUsage(f"cannot listen on {address!r} for HTTP: {reason}") from None


def _bound(family: int, target: Any) -> socket.socket:
    # asyncio turns Nagle's algorithm off only for sockets that name TCP; with it on, the second message of a
    # stream waits some 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(target)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """``http://HOST:PORT`` of a listening socket; ``http+unix://PATH`` of a Unix socket, with its absolute path."""
    if listener.family == socket.AF_UNIX:
        return f"http+unix://{Path(listener.getsockname()).absolute()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


class UvicornHost:
    """uvicorn with httptools, inside a loop that is not its own: no signal handlers, no logging set-up."""

    def __init__(self, application: Application, listener: socket.socket, limits: Limits) -> None:
        self._listener = listener
        self._server = uvicorn.Server(
            uvicorn.Config(
                _told_of_disconnects(application),
                http=_bounded_protocol(limits.max_metadata_bytes),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                server_header=False,
                proxy_headers=False,
                # Or a later request of a connection inherits the context variables, the principal, of an earlier one.
                reset_contextvars=True,
                timeout_keep_alive=_KEEP_ALIVE_S,
                # uvicorn counts the connection that it refuses.
                limit_concurrency=limits.max_connections + 1,
            )
        )
        self._clock: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections."""
        config = self._server.config
        config.load()
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[self._listener])
        self._clock = asyncio.create_task(self._tell_time())

    def stop_accepting(self) -> None:
        """Close the listener and idle connections; a running request's connection closes after its reply."""
        if self._server.started:
            for listener in self._server.servers:
                listener.close()
        self._listener.close()
        for connection in tuple(self._server.server_state.connections):
            connection.shutdown()

    async def wait(self) -> None:
        """Wait until no request runs."""
        while tasks := set(self._server.server_state.tasks):
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Cancel requests that still run, then drop every connection."""
        if tasks := set(self._server.server_state.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_SETTLE_S)
        for connection in tuple(self._server.server_state.connections):
            # Not close(): that waits for a peer that may never read.
            connection.transport.abort()
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.wait([self._clock])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                for listener in self._server.servers:
                    await listener.wait_closed()

    async def _tell_time(self) -> None:
        """Keep the Date header right, which uvicorn's own main loop would do."""
        while True:
            await self._server.on_tick(0)
            await asyncio.sleep(1)


def _told_of_disconnects(application: Application) -> Application:
    """The application, with a ``send`` that fails when more is to come and the client has gone.

    uvicorn drops what is sent to nobody, and a servicer that only writes would go on for ever.
    """

    async def answer(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        cycle = cast("RequestResponseCycle", getattr(send, "__self__", None))

        async def send_to_client(message: Message) -> None:
            await send(message)
            if cycle.disconnected and message.get("more_body"):
                raise ConnectionResetError("the client has gone")

        await application(scope, receive, send_to_client)

    return answer


def _bounded_protocol(max_header_bytes: int) -> type[HttpToolsProtocol]:
    """The HTTP/1.1 protocol of uvicorn with a bound on headers, which neither it nor its parser has."""

    class BoundedHttpTools(HttpToolsProtocol):
        """Closes a connection that sends more than the limit without completing its headers (or trailers).

        One read of the socket may pass before the count is looked at; complete headers are counted, and refused in
        the terms of the caller's protocol, by the application.
        """

        _pending_bytes = 0
        _in_headers = True

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            # Said here and not in the configuration, which would switch the log off for the whole process.
            self.access_log = False

        def data_received(self, data: bytes) -> None:
            """Feed the parser; what completes nothing is pending in it."""
            self._pending_bytes += len(data)
            super().data_received(data)
            if self._pending_bytes > max_header_bytes:
                self._refuse()

        def on_message_begin(self) -> None:
            """A request begins."""
            self._in_headers = True
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            """One header, or after a chunked body one trailer, of which uvicorn would keep any number."""
            if self._in_headers:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            """The headers are complete."""
            self._in_headers, self._pending_bytes = False, 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            """A part of the body, bounded by flow control."""
            self._pending_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            """The request is complete."""
            self._pending_bytes = 0
            super().on_message_complete()

        def _refuse(self) -> None:
            if self.transport.is_closing():
                return
            if not self._in_headers:
                self.transport.close()  # trailers; the reply may be under way
                return
            text = f"the request headers exceed the limit of {max_header_bytes} bytes".encode()
            head = (
                "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
                f"content-length: {len(text)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + text)
            self.transport.close()

    return BoundedHttpTools
