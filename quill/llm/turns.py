"""Whether the event loop has had its turn: for those who may keep it from everybody else."""

from __future__ import annotations

import asyncio


class Turns:
    """Counts the turns of the running event loop, as far as somebody asks: one callback a turn, whoever they are."""

    def __init__(self) -> None:
        self._is_asked = False
        self.count = 0
        """How many there were; unchanged after ``ask`` until everybody else has had a turn."""

    def ask(self) -> int:
        """Have the next turn counted. Returns the count so far."""
        if not self._is_asked:
            self._is_asked = True
            asyncio.get_running_loop().call_soon(self._turned)
        return self.count

    def _turned(self) -> None:
        self._is_asked = False
        self.count += 1
