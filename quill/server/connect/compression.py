"""Compressed requests, decoded by Quill's own strict and bounded decoders."""

from __future__ import annotations

import asyncio
from typing import Self

from connectrpc.compression import Compression

from quill.errors import ResourceExhausted, RpcError
from quill.limits import Limits
from quill.server.connect.errors import connect_error
from quill.wire import compression

ENCODINGS: tuple[compression.Encoding, ...] = ("zstd", "gzip")
"""What a request may be compressed with, besides ``identity``; the preferred one first."""

_INLINE_BYTES = 256 * 1024
"""What is decoded at once, in a millisecond. The limit of a message takes a quarter of a second, however few bytes
it was compressed to."""


class Packed(bytes):
    """A message of a stream that is large once it is decoded, which connectrpc would do on the event loop."""

    _compression: BoundedCompression

    def __new__(cls, data: bytes, compression: BoundedCompression) -> Self:
        """The message as it came, and what decodes it."""
        packed = super().__new__(cls, data)
        packed._compression = compression
        return packed

    async def unpack(self) -> bytes:
        """The message, decoded in a thread. Raises RpcError where it is damaged or too large."""
        return await asyncio.to_thread(self._compression.decode, bytes(self))


class BoundedCompression(Compression):
    """One encoding. Requests are decoded within the limits; replies are not compressed."""

    def __init__(self, encoding: compression.Encoding, limits: Limits) -> None:
        self._encoding = encoding
        self._limits = limits

    def name(self) -> str:
        """The name of the encoding in headers."""
        return self._encoding

    def compress(self, data: bytes | bytearray | memoryview) -> bytes:
        """Never called: no reply asks for it."""
        raise NotImplementedError

    def decompress(self, data: bytes | bytearray | memoryview, read_max_bytes: int | None = None) -> bytes:
        """Decode one message for connectrpc; a large one is given as `Packed`."""
        data = bytes(data)
        try:
            decoded = self._decode_small(data)
        except RpcError as error:
            raise connect_error(error) from None
        return Packed(data, self) if decoded is None else decoded

    async def decompress_body(self, data: bytes) -> bytes:
        """Decode the body of a call without envelopes.

        Raises:
            ConnectError: It is damaged or too large.
        """
        try:
            decoded = self._decode_small(data)
            return await asyncio.to_thread(self.decode, data) if decoded is None else decoded
        except RpcError as error:
            raise connect_error(error) from None

    def decode(self, data: bytes, max_bytes: int | None = None) -> bytes:
        """Decode one message. Raises RpcError where it is damaged or too large."""
        return compression.decompress(
            self._encoding,
            data,
            max_bytes=max_bytes or self._limits.max_message_bytes,
            max_window_bytes=self._limits.max_decompression_window_bytes,
        )

    def _decode_small(self, data: bytes) -> bytes | None:
        """A message that is decoded at once; None where it becomes large."""
        if self._limits.max_message_bytes <= _INLINE_BYTES:
            return self.decode(data)
        if len(data) > _INLINE_BYTES:
            return None
        try:
            return self.decode(data, _INLINE_BYTES)
        except ResourceExhausted:
            return None
