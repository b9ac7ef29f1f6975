"""Tasks that go on after their calls have ended: how long a client that closes waits for them."""

from __future__ import annotations

import asyncio
import logging

_log = logging.getLogger("quill.client")

_WAIT_S = 5.0
"""How long they may go on, all of them together."""
_LET_GO_S = 1.0
"""How long they may take to end once they are cancelled."""


class LastWords:
    """The tasks of one client, which runs on one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, task: asyncio.Task[None]) -> None:
        """Take charge of a task; what it raises is its own matter."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """Cancel them all, and wait for none. Who was cancelled before is at its end, and left to it."""
        for task in list(self._tasks):
            if not task.cancelling():
                task.cancel()

    async def end(self) -> None:
        """Wait for them; cancel who is late. What does not end then either is left, and the log says so."""
        if not self._tasks:
            return
        try:
            _, late = await asyncio.wait(set(self._tasks), timeout=_WAIT_S)
        finally:  # whoever waits here may be cancelled, too
            for task in list(self._tasks):
                task.cancel()
        if late:
            _, left = await asyncio.wait(late, timeout=_LET_GO_S)
            if left:
                _log.warning("%d tasks of calls that have ended did not end when they were cancelled", len(left))
            self._tasks -= left
