"""The reply of one call, on its way to the ASGI host."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence

from quill.server.http_host import Message, Send

_PREFIX = struct.Struct(">BI")
ENVELOPE_BYTES = _PREFIX.size
"""What an envelope adds to its message: a byte of flags, four of length."""


class Outgoing:
    """An ASGI ``send`` between connectrpc and the host.

    connectrpc sends the headers of a stream together with its first message. Here a call can send them when its
    servicer wants, and write its messages one by one; connectrpc then ends the stream, and its own headers are
    dropped. A reply that is one piece gets a Content-Length.
    """

    __slots__ = ("_head", "_send", "started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None
        self.started = False
        """Whether the headers are on their way."""

    async def __call__(self, message: Message) -> None:
        """Take an ASGI message from connectrpc."""
        if message["type"] == "http.response.start":
            if not self.started:
                self._head = message
            return
        if self._head is not None:
            head, self._head = self._head, None
            if not message.get("more_body", False):
                head["headers"] = [*head["headers"], (b"content-length", str(len(message["body"])).encode())]
            self.started = True
            await self._send(head)
        await self._send(message)

    async def start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send the headers of a stream."""
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, message: bytes) -> None:
        """Send one message of a stream, enveloped as in Connect and gRPC-Web alike."""
        body = _PREFIX.pack(0, len(message)) + message
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        # uvicorn's send() waits only while its buffer is full, and not at all once the peer has gone: without this, a
        # servicer that writes and never waits would hold the loop, and never be told.
        await asyncio.sleep(0)
