"""HTTP replies over ASGI, as they should be and as faults make them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from quill.testing.sidecar.faults import Fault
from quill.testing.sidecar.queues import stranger
from quill.testing.sidecar.requests import Refused

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

DROP = "quill.drop"
"""The extension of a scope that closes its connection without a word; ``host`` provides it."""

_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields, as ASGI takes them."""
        fixed = (("content-type", self.content_type), ("content-length", str(len(self.body))))
        return [(name.encode(), value.encode()) for name, value in (*fixed, *self.headers)]


_BROKEN = {
    "html": Reply(200, b"<!doctype html><title>Proxy</title><p>It works!", "text/html; charset=utf-8"),
    "malformed": Reply(200, b'{"result": {"token": " bro'),
    "list": Reply(200, b"[]"),
    "missing_result": Reply(200, b"{}"),
    "empty": Reply(200, b""),
}


def json_reply(value: object) -> Reply:
    """200 with a JSON value."""
    return Reply(200, json.dumps(value, ensure_ascii=False).encode())


def text_reply(status: int, text: str, *headers: tuple[str, str]) -> Reply:
    """A status with a line of text."""
    return Reply(status, text.encode(), "text/plain; charset=utf-8", headers)


def instead(fault: Fault, *, draft: bool) -> Reply | None:
    """The reply that a fault puts in the place of the right one; None where it only does something to that.

    Args:
        fault: What goes wrong.
        draft: Whether a stranger's result is a draft.
    """
    reply = _BROKEN.get(fault.kind)
    match fault.kind:
        case "status":
            after = () if fault.retry_after_s is None else (("retry-after", str(fault.retry_after_s)),)
            reply = text_reply(fault.status, f"status {fault.status}, as asked", *after)
        case "redirect":
            reply = text_reply(307, "it is elsewhere", ("location", fault.location))
        case "huge":
            reply = Reply(200, b'{"result": null, "padding": "' + b"x" * fault.size_bytes + b'"}')
        case "foreign":
            reply = json_reply({"result": stranger(0, draft=draft)})
    return reply


async def send_reply(send: Send, reply: Reply, fault: Fault | None, drop: Callable[[], None]) -> None:
    """Send a reply, whole or as a fault lets it through.

    Args:
        send: Of ASGI.
        reply: What is to be said.
        fault: ``drip``, ``truncate`` or ``close``; nothing else does anything here.
        drop: Closes the connection.
    """
    kind = fault.kind if fault else ""
    if kind == "close":
        drop()
        return
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.fields})
    if kind == "truncate":
        await send({"type": "http.response.body", "body": reply.body[: len(reply.body) // 2], "more_body": True})
        # The half is on its way when the connection ends in order behind it.
        drop()
        return
    size = 1 if kind == "drip" else _CHUNK_BYTES
    for at in range(0, len(reply.body), size):
        await send({"type": "http.response.body", "body": reply.body[at : at + size], "more_body": True})
        if fault is not None and kind == "drip":
            await asyncio.sleep(fault.delay_ms / 1000)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Return once the client has gone, or the connection was dropped."""
    while (await receive())["type"] not in {"http.disconnect", "websocket.disconnect"}:
        pass


class Bodies:
    """Reads request bodies, of bounded size one by one and all together."""

    MAX_BYTES = 2 * 1024 * 1024
    _MAX_BYTES_TOGETHER = 64 * 1024 * 1024
    _TIMEOUT_S = 30.0

    def __init__(self) -> None:
        self._held_bytes = 0

    async def read(self, receive: Receive) -> bytes:
        """The body of a request.

        Raises:
            Refused: 413 where it is over 2 MiB, 503 where too much is under way, 408 where it takes too long.
            ConnectionError: The client went away.
        """
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError("the client went away")
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    self._held_bytes += len(chunks[-1])
                    if size > self.MAX_BYTES:
                        raise Refused(413, f"the request body must have at most {self.MAX_BYTES} bytes")
                    if self._held_bytes > self._MAX_BYTES_TOGETHER:
                        raise Refused(503, "too many request bodies at once")
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise Refused(408, f"the request body took more than {self._TIMEOUT_S:.0f} s") from None
        finally:
            self._held_bytes -= size
