"""Memory for tensors that are received, used again: the first touch of fresh pages costs more than the network."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from quill.errors import ResourceExhausted

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMALLEST_BYTES = 1024 * 1024
"""Less is had from malloc, which has it at hand."""
_ALIGNMENT = 64
"""Where what is given out begins: what vector instructions like, and without which JAX copies."""
_MOST_WASTE = 2
"""A buffer that is so many times too large is left to others."""
_FREE_REFERENCES = 2
"""To a buffer that was taken out and that nobody else knows: the variable's, and that of the question itself."""


class ReceivePool:
    """Buffers that are given out and, once nobody refers to them any more, given out again.

    Nothing is handed back: whoever keeps an array that views a buffer keeps the buffer. Threads may share a pool; then
    its bounds are not exact. It has no lock, so none can be held by another thread when the process forks.

    Args:
        max_bytes: How much may be given out at once.
        kept_bytes: Above how much, given out or not, what is free goes back to the system.
    """

    def __init__(self, *, max_bytes: int, kept_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept_bytes = kept_bytes
        self._buffers: deque[NDArray[Any]] = deque()

    def take(self, size_bytes: int) -> memoryview:
        """Writable memory of this size, of format B. It holds what was there before.

        Raises:
            ResourceExhausted: With all that is given out it would be more than may be.
        """
        if size_bytes < _SMALLEST_BYTES:
            return memoryview(bytearray(size_bytes))
        free, used_bytes = self._survey()
        try:
            if used_bytes + size_bytes > self._max_bytes:
                raise ResourceExhausted(
                    f"{size_bytes} bytes of tensors are to be received, {used_bytes} are held, and there may be "
                    f"{self._max_bytes} at once; try again later"
                )
            buffer = _fitting(free, size_bytes)
            self._let_go(free, self._kept_bytes - used_bytes - _room_bytes(buffer))
        finally:
            self._buffers.extend(free)
        view = memoryview(buffer)  # type: ignore[arg-type]  # numpy's stubs know no buffer protocol before Python 3.12
        start = -buffer.ctypes.data % _ALIGNMENT
        self._buffers.append(buffer)
        return view[start : start + size_bytes]

    def _survey(self) -> tuple[list[NDArray[Any]], int]:
        """What is free, taken out, the oldest first; and how many bytes are given out."""
        free: list[NDArray[Any]] = []
        used_bytes = 0
        for _ in range(len(self._buffers)):
            try:
                buffer = self._buffers.popleft()
            except IndexError:  # another thread has it
                break
            if sys.getrefcount(buffer) <= _FREE_REFERENCES:
                free.append(buffer)
            else:
                used_bytes += _room_bytes(buffer)
                self._buffers.append(buffer)
        return free, used_bytes

    @staticmethod
    def _let_go(free: list[NDArray[Any]], kept_bytes: int) -> None:
        """Drop what is free, the oldest first, until no more is left than may be kept."""
        while free and sum(map(_room_bytes, free)) > kept_bytes:
            del free[0]


def _fitting(free: list[NDArray[Any]], size_bytes: int) -> NDArray[Any]:
    """The smallest free buffer that is large enough, out of the list; a new one where none fits."""
    import numpy as np

    fitting = [buffer for buffer in free if size_bytes <= _room_bytes(buffer) <= _MOST_WASTE * size_bytes]
    if not fitting:
        return np.empty(size_bytes + _ALIGNMENT, np.uint8)
    best = min(fitting, key=lambda buffer: buffer.nbytes)
    del free[next(place for place, buffer in enumerate(free) if buffer is best)]
    return best


def _room_bytes(buffer: NDArray[Any]) -> int:
    """What can be given out of a buffer, wherever in it the first aligned byte is."""
    return buffer.nbytes - _ALIGNMENT
