"""What takes so long with a message that an event loop leaves it to a thread, and how that thread lets others run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

INLINE_JSON_BYTES = 16 * 1024
"""JSON that is read at once, in two milliseconds where the fields are many and small."""
INLINE_PROTO_BYTES = 8 * 1024
"""Protobuf that becomes JSON at once: as long, for it is denser."""
INLINE_DICT_BYTES = 20 * 1024
"""Protobuf that becomes a dict at once: a millisecond for tokens with all that belongs to them, two where fields are
smaller. A reply of 512 tokens costs a fifth more in a thread than on the loop."""
INLINE_COMPRESS_BYTES = 256 * 1024
"""What is compressed at once; more would hold the loop for milliseconds."""
INLINE_DECOMPRESS_BYTES = 64 * 1024
"""What is decompressed at once; it becomes several times as much."""
ONE_PIECE_BYTES = 64 * 1024
"""json reads and writes without letting other threads of Python run: more than this is done in pieces."""


async def offload(size: int, most: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of ``work``, from a thread where ``size`` is above ``most``: what takes about 1 ms.

    A thread whose result nobody wants any more goes on to its end.
    """
    if size <= most:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def parse_int(digits: str) -> int:
    """As json itself does; but a function of Python's lets other threads run, in a list of a million numbers, too."""
    return int(digits)


def parse_float(digits: str) -> float:
    """As parse_int."""
    return float(digits)


def parse_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """As parse_int; of two members of one name the last counts, as in json itself."""
    return dict(members)
