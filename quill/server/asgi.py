"""A server's HTTP application for ASGI hosts of the user's own (https://asgi.readthedocs.io)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from quill.errors import QuillError
from quill.server.http_host import Application, Message, Receive, Send

_log = logging.getLogger("quill.server")

_GRACE_S = 5.0
"""What calls on the gRPC port have left when the host, its own connections closed, stops the server."""


_FIRST_PAUSE_S, _PAUSE_S = 0.01, 0.5
"""How often a host is asked for a client's leaving that does not tell it by itself."""


class AsgiApp:
    """An ASGI application that starts and stops its server with the host that runs it.

    Args:
        application: What answers HTTP requests.
        start: Starts the server.
        stop: Stops it, with a grace in seconds.
        is_started: Whether it was started already; then it is not this host's to stop.
    """

    def __init__(
        self,
        application: Application,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[float], Awaitable[None]],
        is_started: Callable[[], bool],
    ) -> None:
        self._application = application
        self._start = start
        self._stop = stop
        self._is_started = is_started

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        match scope["type"]:
            case "lifespan":
                await self._live(receive, send)
            case "http" if self._is_started():
                await self._application(scope, _Receive(receive), send)
            case "http":
                await _refuse(send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close"})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        mine = not self._is_started()
        if mine:
            try:
                await self._start()
            except Exception as error:  # noqa: BLE001 - the host is told, and ends
                _log.debug("the server did not start", exc_info=error)
                message = str(error) if isinstance(error, QuillError) else type(error).__name__
                await send({"type": "lifespan.startup.failed", "message": message})
                return
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        if mine:
            await self._stop(_GRACE_S)
        await send({"type": "lifespan.shutdown.complete"})


class _Receive:
    """A ``receive`` for hosts that take ASGI's rules loosely, as pyvoy does.

    It may be cancelled where the host hands out a future, which is the host's own to settle: pyvoy does so without a
    look at whether it was cancelled. And after the end of the body it waits for the client to leave: pyvoy says at once
    that the body has ended, as often as it is asked.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._promised: asyncio.Future[Message] | None = None
        self._is_whole = False

    async def __call__(self) -> Message:
        """The next message; after a cancellation, the one that was waited for."""
        pause_s = _FIRST_PAUSE_S
        while (message := await self._next())["type"] == "http.request" and self._is_whole:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S)
        self._is_whole = not message.get("more_body", False)
        return message

    async def _next(self) -> Message:
        if self._promised is None:
            promised = self._receive()
            if not isinstance(promised, asyncio.Future):
                return await promised
            self._promised = promised
        message = await asyncio.shield(self._promised)
        self._promised = None
        return message


async def _refuse(send: Send) -> None:
    text = "the server was not started: let the host run its lifespan, or await server.start()"
    body = json.dumps({"code": "unavailable", "message": text}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 503, "headers": head})
    await send({"type": "http.response.body", "body": body})
