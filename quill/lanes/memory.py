"""Memory of malloc that is warm for the next tensor: fresh pages cost more than the network."""

from __future__ import annotations

from functools import cache

from quill.lanes.lane import INLINE_BYTES

_HINT_BYTES = 2 * INLINE_BYTES
"""From here on blocks are mapped anew each time; a heap keeps twice as much at its end."""


@cache
def keep_warm() -> None:
    """Have malloc keep what the messages of tensors take, instead of giving it back after each.

    Below its thresholds glibc serves blocks from its heaps, and keeps free memory at their ends; above, it maps and
    unmaps. The thresholds follow the largest mapped block that was ever freed, up to 32 MiB, so one is freed here that
    was never touched. Whoever has set them, by GLIBC_TUNABLES or mallopt, has switched that off, and this does nothing;
    so it does with other libraries. Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    import numpy as np

    np.empty(_HINT_BYTES, np.uint8)
