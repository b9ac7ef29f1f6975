"""The reply of one call, on its way to the ASGI host."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Sequence
from http import HTTPStatus

from quill.server.http_host import Message, Send
from quill.wire.compression import Encoding, compress
from quill.wire.large import INLINE_COMPRESS_BYTES, offload
from quill.wire.negotiate import Accepted

_PREFIX = struct.Struct(">BI")
ENVELOPE_BYTES = _PREFIX.size
"""What an envelope adds to its message: a byte of flags, four of length."""

_COMPRESSED = 1


class Outgoing:
    """An ASGI ``send`` between connectrpc and the host.

    connectrpc sends the headers of a stream together with its first message. Here a call can send them when its
    servicer wants, and write its messages one by one; connectrpc then ends the stream, and its own headers are
    dropped. A reply that is one piece gets a Content-Length. Messages are compressed here, each for itself.

    Args:
        send: The host's.
        accepted: How messages may be compressed.
        has_trailers: Whether HTTP trailers end the reply.
    """

    __slots__ = ("_accepted", "_has_trailers", "_head", "_send", "compress_next", "started")

    def __init__(self, send: Send, accepted: Accepted, *, has_trailers: bool = False) -> None:
        self._send = send
        self._accepted = accepted
        self._has_trailers = has_trailers
        self._head: Message | None = None
        self.compress_next = True
        """Whether the next message may be compressed."""
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
            if not message.get("more_body", False) and not self._has_trailers:
                length = str(len(message["body"])).encode()
                head = {**head, "headers": [*head["headers"], (b"content-length", length)]}
            self.started = True
            await self._send_last(head)
        await self._send_last(message)

    async def send_message(self, headers: list[tuple[bytes, bytes]], message: bytes) -> None:
        """Send the reply of a unary call in Connect."""
        encoding, body = await self._compressed(message)
        if encoding != "identity":
            headers = [*headers, (b"content-encoding", encoding.encode())]
        await self.send_whole(HTTPStatus.OK, headers, body)

    async def send_whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a reply that is one piece; if the client has gone, there is nobody to tell."""
        self.started = True
        head = [*headers, (b"content-length", str(len(body)).encode())]
        with contextlib.suppress(OSError):
            await self._send({"type": "http.response.start", "status": status, "headers": head})
            await self._send({"type": "http.response.body", "body": body})

    async def start(self, headers: Sequence[tuple[bytes, bytes]], encoding_header: str) -> None:
        """Send the headers of a stream."""
        self.started = True
        encoding = self._accepted.encoding
        head = [*headers, *([] if encoding == "identity" else [(encoding_header.encode(), encoding.encode())])]
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": head, "trailers": self._has_trailers}
        )

    async def write(self, message: bytes) -> None:
        """Send one message of a stream, enveloped as in Connect, gRPC and gRPC-Web alike."""
        encoding, data = await self._compressed(message)
        body = _PREFIX.pack(0 if encoding == "identity" else _COMPRESSED, len(data)) + data
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        # uvicorn's send() waits only while its buffer is full, and not at all once the peer has gone: without this, a
        # servicer that writes and never waits would hold the loop, and never be told.
        await asyncio.sleep(0)

    async def _send_last(self, message: Message) -> None:
        """Send a part of what ends the reply; if the client has gone, there is nobody to tell."""
        with contextlib.suppress(OSError):
            await self._send(message)

    async def _compressed(self, message: bytes) -> tuple[Encoding, bytes]:
        """A message in the encoding that suits it."""
        encoding = self._accepted.of(len(message)) if self.compress_next else "identity"
        self.compress_next = True
        if encoding == "identity":
            return encoding, message
        return encoding, await offload(len(message), INLINE_COMPRESS_BYTES, compress, encoding, message)
