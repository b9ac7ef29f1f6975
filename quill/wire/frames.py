"""Frames of the Quill framework's streams: ``varint(length) | flags u8 | payload``.

The length is a varint as protobuf writes it, the lowest seven bits first, and counts the payload alone.
"""

from __future__ import annotations

from quill.errors import InvalidArgument, ResourceExhausted
from quill.wire.buffer import Buffer
from quill.wire.protobuf import encoded_varint

DATA = 0x01
"""The payload is a message."""
END_STREAM = 0x02
"""Nothing follows; with DATA the payload is the last message."""
CANCEL = 0x04
"""The sender gives the stream up."""
CREDIT = 0x08
"""The sender takes so many messages more; the payload is a varint of 32 bits."""

MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
"""How large a payload may be."""

_KINDS = frozenset({DATA, END_STREAM, DATA | END_STREAM, CANCEL, CREDIT})
_MAX_VARINT_BYTES = 5
_MORE = 0x80
_UINT32 = 2**32


def encode_frame(flags: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return encoded_varint(len(payload)) + bytes([flags]) + payload


class FrameReader:
    """Takes bytes as they come, gives frames as they are complete.

    Args:
        max_payload_bytes: How large a payload may be; refused by its length, before it is buffered.
    """

    def __init__(self, max_payload_bytes: int) -> None:
        self._max_bytes = min(max_payload_bytes, MAX_PAYLOAD_BYTES)
        self._buffer = bytearray()
        self._position = 0

    def feed(self, data: Buffer) -> None:
        """Take more bytes, once ``next_frame`` finds no more."""
        del self._buffer[: self._position]
        self._position = 0
        self._buffer += data

    def next_frame(self) -> tuple[int, bytes] | None:
        """The flags and the payload of the next frame that is complete; None where more must be fed.

        Raises:
            InvalidArgument: These are no frames: a length of more than five bytes, flags that do not go together, a
                payload where none belongs.
            ResourceExhausted: The payload is too large.
        """
        found = _decode_varint(self._buffer, self._position)
        if found is None:
            return None
        length, start = found
        if length > self._max_bytes:
            raise ResourceExhausted(f"a frame has {length} bytes, the limit is {self._max_bytes}")
        if len(self._buffer) <= start:
            return None
        flags = self._buffer[start]
        _check_flags(flags, length)
        end = start + 1 + length
        if len(self._buffer) < end:
            return None
        self._position = end
        payload = bytes(memoryview(self._buffer)[start + 1 : end])
        if flags == CREDIT:
            _check_credit(payload)
        return flags, payload


def _decode_varint(data: Buffer, start: int) -> tuple[int, int] | None:
    """A number and where it ends; None where it is not complete."""
    value = 0
    for index, byte in enumerate(memoryview(data)[start : start + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < _MORE:
            return value, start + index + 1
    if len(data) - start >= _MAX_VARINT_BYTES:
        raise InvalidArgument(f"a number has more than {_MAX_VARINT_BYTES} bytes")
    return None


def _check_flags(flags: int, length: int) -> None:
    if flags not in _KINDS:
        raise InvalidArgument(f"a frame has the flags {flags:#04x}")
    if flags == END_STREAM and length:  # as data it would need the flag: nothing is lost without a word
        raise InvalidArgument(f"the frame that ends the stream has {length} bytes and does not say that they are data")


def _check_credit(payload: bytes) -> None:
    found = _decode_varint(payload, 0)
    if found is None or found[1] != len(payload) or found[0] >= _UINT32:
        raise InvalidArgument(f"a frame of credit has {len(payload)} bytes that are no number of 32 bits")
