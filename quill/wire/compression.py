"""Whole messages compressed and decompressed: strict about what comes in, bounded in what it may become.

Sources: RFC 8878 (Zstandard), RFC 1952 (gzip). A message is one Zstandard frame, or any number of gzip members.
An empty message travels uncompressed in every protocol, so empty input is refused here.
"""

from __future__ import annotations

import threading
import zlib
from typing import TYPE_CHECKING, Literal, assert_never

from quill.errors import InvalidArgument, ResourceExhausted
from quill.wire.buffer import Buffer

if TYPE_CHECKING:
    import zstandard

Encoding = Literal["identity", "gzip", "zstd"]
"""Names of HTTP content codings, gRPC and Connect encodings."""

"""What is compressed or decompressed. A memoryview is of format B."""

ENCODINGS: tuple[Encoding, ...] = ("zstd", "gzip", "identity")
"""All of them, the best first."""

MIN_COMPRESS_BYTES = 1024
"""Smaller messages are not worth compressing."""

_LEVEL = 1  # of both: speed counts, and higher levels gain little on messages
_MAX_GZIP_MEMBERS = 1024  # each costs time of its own, however small
_GZIP_PIECE_BYTES = 64 * 1024
# Four bytes of Zstandard become 128 KiB at most, one repeated byte (RFC 8878, section 3.1.1.2).
_ZSTD_GROWTH = 128 * 1024 // 4
_MIN_ZSTD_PIECE_BYTES = 64

_contexts = threading.local()


def compress(encoding: Encoding, data: Buffer) -> bytes:
    """Compress a message whatever its size; ``identity`` returns it as it is.

    Zstandard frames carry their content size and a checksum.
    """
    match encoding:
        case "identity":
            return bytes(data)
        case "gzip":
            compressor = zlib.compressobj(_LEVEL, wbits=zlib.MAX_WBITS | 16)
            return compressor.compress(data) + compressor.flush()
        case "zstd":
            return _zstd_compressor().compress(data)
        case _:
            assert_never(encoding)


def decompress(encoding: Encoding, data: Buffer, *, max_bytes: int, max_window_bytes: int) -> bytes:
    """Decompress a message.

    Memory stays within ``max_bytes``, the window and 2 MiB, whatever the input claims.

    Args:
        encoding: How it is compressed.
        data: All of the compressed message, and nothing else.
        max_bytes: How large the message may be.
        max_window_bytes: The window that a Zstandard frame may ask for.

    Raises:
        ResourceExhausted: The message is larger than ``max_bytes``, or its frame asks for a larger window.
        InvalidArgument: The input is empty, damaged, cut off, or goes on after its end.
    """
    if not data and encoding != "identity":
        raise InvalidArgument(f"the message is marked as compressed with {encoding} and is empty")
    match encoding:
        case "identity":
            if len(data) > max_bytes:
                raise ResourceExhausted(f"the message has {len(data)} bytes, the limit is {max_bytes}")
            return bytes(data)
        case "gzip":
            return _gunzip(data, max_bytes)
        case "zstd":
            return _unzstd(data, max_bytes, max_window_bytes)
        case _:
            assert_never(encoding)


class ZstdBody:
    """A body of Zstandard frames that has no end yet: what came of it is decompressed as it is asked for.

    Args:
        max_piece_bytes: How much may come of it at once; at least 2 MiB are taken for it.
        max_window_bytes: The window that a frame may ask for.
    """

    def __init__(self, max_piece_bytes: int, max_window_bytes: int) -> None:
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor(max_window_size=max_window_bytes)
        self._frame = self._decompressor.decompressobj()
        self._length = max(_MIN_ZSTD_PIECE_BYTES, max_piece_bytes // _ZSTD_GROWTH)
        self._waiting = bytearray()
        self._position = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take more of the body."""
        del self._waiting[: self._position]
        self._position = 0
        self._waiting += data

    def read(self) -> bytes:
        """The next piece; empty where more must be fed.

        Raises:
            InvalidArgument: The body is damaged, or asks for a larger window.
        """
        import zstandard

        piece = b""
        try:
            while not piece and self._position < len(self._waiting):
                if self._frame.eof:
                    self._frame = self._decompressor.decompressobj()
                taken = bytes(self._waiting[self._position : self._position + self._length])
                piece = self._frame.decompress(taken)
                self._position += len(taken) - len(self._frame.unused_data)
        except zstandard.ZstdError:
            raise InvalidArgument("the zstd data is damaged, or asks for too large a window") from None
        return piece


def _gunzip(data: Buffer, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    view = memoryview(data)
    position = size = 0
    for _ in range(_MAX_GZIP_MEMBERS):
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        while not member.eof:
            piece = view[position : position + _GZIP_PIECE_BYTES]
            if not piece:
                raise InvalidArgument("the gzip data is cut off")
            try:
                pieces.append(member.decompress(piece, max_bytes - size + 1))
            except zlib.error:
                raise InvalidArgument("the gzip data is damaged, or followed by something else") from None
            position += len(piece) - len(member.unused_data) - len(member.unconsumed_tail)
            size += len(pieces[-1])
            if size > max_bytes:
                raise _too_large("gzip", len(data), max_bytes)
        if position == len(data):
            return b"".join(pieces)
    raise ResourceExhausted(f"{len(data)} bytes of gzip have more than {_MAX_GZIP_MEMBERS} members, which is the limit")


def _unzstd(data: Buffer, max_bytes: int, max_window_bytes: int) -> bytes:
    import zstandard

    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.window_size > max_window_bytes:
            raise ResourceExhausted(
                f"the zstd frame asks for a window of {frame.window_size} bytes, at most {max_window_bytes} are allowed"
            )
        if frame.content_size in (0, zstandard.CONTENTSIZE_UNKNOWN):
            return _unzstd_in_pieces(data, max_bytes)
        if frame.content_size > max_bytes:
            raise ResourceExhausted(
                f"{len(data)} bytes of zstd say that they become {frame.content_size}, the limit is {max_bytes}"
            )
        # This allocates what the frame claims, which is within the limit by now, and checks that it keeps its word.
        return _zstd_decompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError:
        raise InvalidArgument("the zstd data is damaged, cut off, or followed by something else") from None


def _unzstd_in_pieces(data: Buffer, max_bytes: int) -> bytes:
    """Decompress a frame that does not tell its size, by pieces too small to become much more than the limit."""
    frame = _zstd_decompressor().decompressobj()
    pieces: list[bytes] = []
    view = memoryview(data)
    position = size = 0
    while not frame.eof:
        length = max(_MIN_ZSTD_PIECE_BYTES, (max_bytes - size) // _ZSTD_GROWTH)
        piece = view[position : position + length]
        if not piece:
            raise InvalidArgument("the zstd data is cut off")
        pieces.append(frame.decompress(piece))
        position += len(piece)
        size += len(pieces[-1])
        if size > max_bytes:
            raise _too_large("zstd", len(data), max_bytes)
    if frame.unused_data or position < len(data):
        raise InvalidArgument("the zstd data goes on after its end")
    return b"".join(pieces)


def _too_large(encoding: Encoding, compressed_bytes: int, max_bytes: int) -> ResourceExhausted:
    return ResourceExhausted(f"{compressed_bytes} bytes of {encoding} become more than the limit of {max_bytes} bytes")


def _zstd_compressor() -> zstandard.ZstdCompressor:
    """This thread's own: a context is costly to make and not safe to share."""
    if not hasattr(_contexts, "compressor"):
        import zstandard

        _contexts.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    compressor: zstandard.ZstdCompressor = _contexts.compressor
    return compressor


def _zstd_decompressor() -> zstandard.ZstdDecompressor:
    """This thread's own, as the compressor."""
    if not hasattr(_contexts, "decompressor"):
        import zstandard

        _contexts.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _contexts.decompressor
    return decompressor
