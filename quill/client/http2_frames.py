"""What a server sends over HTTP/2, before the h2 library sees it (RFC 9113, sections 4.1 and 6.8).

h2 takes GOAWAY for the end of the connection, and forbids what the calls that are under way still send and receive. And
it waits for the whole of a frame before it finds it too long: a peer that speaks something else would be waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

_HEADER_BYTES = 9
_SETTINGS, _GOAWAY = 0x4, 0x7
_MAX_GOAWAY_BYTES = 16 * 1024


class BrokenFrames(Exception):  # noqa: N818 - never leaves the connection
    """The peer does not speak HTTP/2."""


@dataclass(frozen=True, slots=True)
class GoAway:
    """The server takes no new calls; those above the last one it names did not run."""

    last_stream_id: int
    error_code: int


class FrameSieve:
    """Passes frames on and keeps GOAWAY; checks lengths, and that the first frame is SETTINGS.

    Args:
        max_frame_bytes: How long a frame may be.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._held = b""
        """The beginning of a frame's header."""
        self._left_bytes = 0
        """How much of the present frame's payload is still to come."""
        self._goaway: bytearray | None = None
        """The payload of the present frame, where it is a GOAWAY."""
        self._is_first = True

    def feed(self, data: bytes) -> tuple[bytes, list[GoAway]]:
        """Take what was read. Returns what to pass on, and what was kept.

        Raises:
            BrokenFrames: A frame is too long, or not where it may be.
        """
        data = self._held + data if self._held else data
        self._held = b""
        kept: list[GoAway] = []
        passed: list[bytes] = []
        begin = position = 0
        while position < len(data):
            if self._left_bytes:
                step = min(self._left_bytes, len(data) - position)
                if self._goaway is not None:
                    self._goaway += data[position : position + step]
                    begin = position + step
                position += step
                self._left_bytes -= step
            elif len(data) - position < _HEADER_BYTES:
                self._held = data[position:]
                data = data[:position]
            else:
                if self._begin_frame(data[position : position + _HEADER_BYTES]):
                    passed.append(data[begin:position])
                    begin = position + _HEADER_BYTES
                position += _HEADER_BYTES
            if self._goaway is not None and not self._left_bytes:
                kept.append(_parse(self._goaway))
                self._goaway = None
        passed.append(data[begin:])
        return b"".join(passed), kept

    def _begin_frame(self, header: bytes) -> bool:
        """Whether this frame is kept."""
        length, kind = int.from_bytes(header[:3], "big"), header[3]
        if length > self._max_frame_bytes or (self._is_first and kind != _SETTINGS):
            raise BrokenFrames
        self._is_first = False
        self._left_bytes = length
        if kind != _GOAWAY:
            return False
        if length > _MAX_GOAWAY_BYTES:
            raise BrokenFrames
        self._goaway = bytearray()
        return True


def _parse(payload: bytearray) -> GoAway:
    if len(payload) < 8:  # noqa: PLR2004 - two numbers of four bytes
        raise BrokenFrames
    return GoAway(int.from_bytes(payload[:4], "big") & 0x7FFFFFFF, int.from_bytes(payload[4:8], "big"))
