"""What takes so long with a message that an event loop leaves it to a thread, and how that thread lets others run."""

from __future__ import annotations

from typing import Any

INLINE_JSON_BYTES = 16 * 1024
"""JSON that is read at once, in two milliseconds where the fields are many and small."""
INLINE_PROTO_BYTES = 8 * 1024
"""Protobuf that becomes JSON, or values of Python's, at once: as long, for it is denser."""
INLINE_COMPRESS_BYTES = 256 * 1024
"""What is compressed at once; more would hold the loop for milliseconds."""
INLINE_DECOMPRESS_BYTES = 64 * 1024
"""What is decompressed at once; it becomes several times as much."""
ONE_PIECE_BYTES = 64 * 1024
"""json reads and writes without letting other threads of Python run: more than this is done in pieces."""


def parse_int(digits: str) -> int:
    """As json itself does; but a function of Python's lets other threads run, in a list of a million numbers, too."""
    return int(digits)


def parse_float(digits: str) -> float:
    """As parse_int."""
    return float(digits)


def parse_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """As parse_int; of two members of one name the last counts, as in json itself."""
    return dict(members)
