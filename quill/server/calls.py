"""The calls that run now, whichever port they came in by."""

from __future__ import annotations

import asyncio


class Calls:
    """Tasks that are inside a handler: waited for when the server stops, and ended when its grace is over.

    A call counts until its handler's ``finally`` blocks have run and its status is handed to the transport.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[object]] = set()
        self._ended: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        """How many calls run."""
        return len(self._running)

    def enter(self) -> asyncio.Task[object]:
        """Count the current task as a running call."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - handlers run in tasks
        self._running.add(task)
        return task

    def leave(self, task: asyncio.Task[object]) -> None:
        """The call of this task is over."""
        self._running.discard(task)
        self._ended.discard(task)

    def end(self) -> None:
        """Cancel every running call; its client is told UNAVAILABLE."""
        for task in self._running - self._ended:
            self._ended.add(task)
            task.cancel()

    def was_ended(self, task: asyncio.Task[object]) -> bool:
        """Whether `end` cancelled this call; true once, for whoever turns the cancellation into a status."""
        if task in self._ended:
            self._ended.remove(task)
            return True
        return False

    async def wait(self) -> None:
        """Wait until no call runs."""
        while self._running:
            await asyncio.wait(set(self._running))
