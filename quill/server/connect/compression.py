"""Compressed requests, decoded by Quill's own strict and bounded decoders."""

from __future__ import annotations

from connectrpc.compression import Compression

from quill.errors import RpcError
from quill.limits import Limits
from quill.server.connect.errors import connect_error
from quill.wire import compression

ENCODINGS: tuple[compression.Encoding, ...] = ("zstd", "gzip")
"""What a request may be compressed with, besides ``identity``; the preferred one first."""


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
        """Decode one message."""
        try:
            return compression.decompress(
                self._encoding,
                bytes(data),
                max_bytes=self._limits.max_message_bytes,
                max_window_bytes=self._limits.max_decompression_window_bytes,
            )
        except RpcError as error:
            raise connect_error(error) from None
