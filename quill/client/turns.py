"""Turns on an event loop: work that never has to wait lets timers, cancellation and other tasks run all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TURN_S = 0.005
"""How long one task keeps the loop to itself. Giving a turn costs some 20 µs."""


class Turns:
    """When one activity on a loop has last let the others run.

    Args:
        now: The loop's clock, in seconds.
    """

    __slots__ = ("_now", "_since_s")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since_s = now()

    @property
    def is_due(self) -> bool:
        """Whether it is the turn of the others."""
        return self._now() - self._since_s >= TURN_S

    async def give(self) -> None:
        """Let the others run, where it is their turn."""
        if self.is_due:
            await asyncio.sleep(0)
            self._since_s = self._now()
