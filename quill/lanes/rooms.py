"""Memory for tensors that are to come: where their caller wants them, and one piece of a pool for all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from quill.tensor import TensorMeta

if TYPE_CHECKING:
    from quill.lanes.pool import ReceivePool

ALIGNMENT = 64
"""Where tensors begin in memory that they share: what vector instructions like."""

Place = Callable[[TensorMeta], memoryview | None]
"""Where the caller wants a tensor of this meta; None where it does not say."""


def rooms(metas: Sequence[TensorMeta], pool: ReceivePool, place: Place | None = None) -> list[memoryview]:
    """One place for each tensor, as large as its elements.

    Args:
        metas: Of what is to come.
        pool: Where memory comes from.
        place: Where the caller wants a tensor.

    Raises:
        ResourceExhausted: There is not so much memory.
        Exception: What ``place`` raises.
    """
    wanted = [None if place is None else place(meta) for meta in metas]
    homeless = [meta for meta, room in zip(metas, wanted, strict=True) if room is None]
    memory = pool.take(sum(aligned(meta.size_bytes) for meta in homeless))
    found = []
    start = 0
    for meta, room in zip(metas, wanted, strict=True):
        if room is None:
            room = memory[start : start + meta.size_bytes]  # noqa: PLW2901 - the place that it has from here on
            start += aligned(meta.size_bytes)
        found.append(room)
    return found


def aligned(offset: int) -> int:
    """The next place from this one on where a tensor may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
