"""The HTTP port: a seam for ASGI hosts, and uvicorn behind it.

Connections and their bytes are the host's matter; what a request means is the ASGI application's.
"""

from __future__ import annotations

import asyncio
import functools
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import uvicorn

from quill.errors import InvalidUsage
from quill.limits import Limits
from quill.server import unix_socket
from quill.server.accepting import Acceptor
from quill.server.dead_peers import DeadPeers, probe_silence
from quill.server.http_connection import bounded_protocol

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_BACKLOG = 2048
_SETTLE_S = 1.0
_LOOK_S = 0.5
_UNSENT_BYTES = 128 * 1024
"""What the kernel takes ahead of what it can send: else a reader that stops leaves megabytes in its buffer."""


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
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no resolver is asked for
        reason = getattr(error, "strerror", None) or "the address cannot be used"
        raise InvalidUsage(f"cannot listen on {address!r} for HTTP: {reason}") from None


def _bound(family: int, target: Any) -> socket.socket:
    # With Nagle's algorithm the second message of a stream waits some 40 ms for the client's delayed acknowledgement.
    # asyncio turns it off only for sockets that name TCP; granian never does, but what Linux accepts inherits it.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        listener.setblocking(False)
        listener.bind(target)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket, scheme: str) -> str:
    """``http://HOST:PORT`` of a listening socket, or with another scheme.

    Of a Unix socket ``http+unix://PATH``, with its absolute path.
    """
    if listener.family == socket.AF_UNIX:
        return f"{scheme}+unix://{Path(listener.getsockname()).absolute()}"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"


class UvicornHost:
    """uvicorn with httptools, inside a loop that is not its own: no signal handlers, no logging set-up."""

    def __init__(
        self,
        application: Application,
        listener: socket.socket,
        limits: Limits,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(
                application,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                server_header=False,
                proxy_headers=False,
                # Or a later request of a connection inherits the context variables, the principal, of an earlier one.
                reset_contextvars=True,
                timeout_keep_alive=math.ceil(limits.connection_idle_timeout_s),
            )
        )
        connection = functools.partial(
            bounded_protocol(limits),
            config=self._server.config,
            server_state=self._server.server_state,
            app_state={},
        )
        probe_silence(listener, limits)
        self._dead_peers = DeadPeers(limits.keepalive_timeout_s)
        self._acceptor = Acceptor(listener, connection, tls=tls, handshake_timeout_s=limits.handshake_timeout_s)
        self._clock: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections."""
        self._server.config.load()
        self._clock = asyncio.create_task(self._look_after())
        self._acceptor.start()

    def stop_accepting(self) -> None:
        """Close the listener and idle connections; a running request's connection closes after its reply."""
        self._acceptor.close()
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

    async def _look_after(self) -> None:
        """Now and then: let dead peers go, and keep the Date header right, which uvicorn's own loop would do."""
        loop = asyncio.get_running_loop()
        while True:
            await self._server.on_tick(0)
            transports = [connection.transport for connection in self._server.server_state.connections]
            for transport in self._dead_peers.among(transports, loop.time()):
                transport.abort()
            await asyncio.sleep(_LOOK_S)
