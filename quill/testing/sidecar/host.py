"""The sidecar on a port: uvicorn, in a loop that is not its own, with connections that can be dropped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quill.errors import InvalidUsage
from quill.server.http_host import listen, url_of
from quill.testing.sidecar.application import WEBSOCKET_PATH, Application
from quill.testing.sidecar.daemon import Daemon
from quill.testing.sidecar.replies import DROP

try:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
except ImportError:  # websockets, which is an extra of the distribution
    raise InvalidUsage("the sidecar needs websockets, which is not installed: pip install 'quill-rpc[shard]'") from None

MAX_CONNECTIONS = 1024
_MAX_HEAD_BYTES = 64 * 1024
_MAX_MESSAGE_BYTES = 2 * 1024 * 1024
_STOP_S = 1


class _Http(HttpToolsProtocol):
    """Ends connections whose headers grow without end: httptools has no bound of its own."""

    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {DROP: {"close": self.transport.close}}


class _WebSocket(WebSocketsSansIOProtocol):
    async def run_asgi(self) -> None:
        self.scope["extensions"][DROP] = {"close": self.transport.close}
        await super().run_asgi()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers, which says when it is ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Host:
    """Serves a daemon on a port of the loopback address. Use it as an asynchronous context.

    Args:
        daemon: The sidecar. Its owner closes it.
        port: 0 picks a free one.
        with_faults: Whether ``/faults`` is there.
    """

    def __init__(self, daemon: Daemon, port: int, *, with_faults: bool) -> None:
        self._port = port
        application: Any = Application(daemon, with_faults=with_faults)
        self._server = _Server(
            uvicorn.Config(
                application,
                http=_Http,
                ws=_WebSocket,
                ws_max_size=_MAX_MESSAGE_BYTES,
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level=logging.CRITICAL,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=_STOP_S,
            )
        )
        daemon.on_restart = self._close_idle
        self._serving: asyncio.Task[None] | None = None
        self.url = ""
        """Where it listens, once it does."""

    @property
    def websocket_url(self) -> str:
        """Where it takes WebSockets, in the dialects that have them."""
        return "ws" + self.url.removeprefix("http") + WEBSOCKET_PATH

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            InvalidUsage: The port cannot be listened on.
        """
        listener = await listen(f"127.0.0.1:{self._port}")
        self.url = url_of(listener, "http")
        self._serving = asyncio.create_task(self._server.serve([listener]))
        await self._server.ready.wait()
        return self

    def _close_idle(self) -> None:
        """Close what clients keep open; one that has yet to say something meets the sidecar that follows."""
        for connection in tuple(self._server.server_state.connections):
            if isinstance(connection, _Http) and connection.cycle is not None:
                connection.shutdown()

    async def __aexit__(self, *_: object) -> None:
        """End what runs, and close every connection."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
