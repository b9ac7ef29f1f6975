"""Memory of malloc that is warm for the next tensor: fresh pages cost more than the network.

glibc serves blocks below a threshold from its heaps, and keeps some free memory at their ends; larger ones it maps and
unmaps each time. Source: mallopt(3).
"""

from __future__ import annotations

from functools import cache

from quill.lanes.lane import INLINE_BYTES

_HINT_BYTES = 2 * INLINE_BYTES
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of mallopt."""
_MOST_KEPT_BYTES = 1024 * 1024 * 1024


@cache
def keep_warm() -> None:
    """Have malloc keep what messages with tensors take: blocks of up to 16 MiB, and 32 MiB at the end of each heap.

    The thresholds follow the largest mapped block that was ever freed, so one is freed here that was never touched.
    Who has set them, by GLIBC_TUNABLES or mallopt, has switched that off, and this does nothing; nor does it with
    other libraries.
    """
    import numpy as np

    np.empty(_HINT_BYTES, np.uint8)


def keep_all() -> None:
    """Have malloc keep blocks of any size, in one heap: for a process that does little else than move large tensors.

    glibc only; elsewhere it does nothing. In a process of one's own, GLIBC_TUNABLES does the same from outside;
    docs/tensors.md has the line.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((_MMAP_THRESHOLD, _MOST_KEPT_BYTES), (_TRIM_THRESHOLD, _MOST_KEPT_BYTES), (_ARENA_MAX, 1)):
        mallopt(parameter, value)
