"""Turns of the event loop, shared by runs whose backends need no waiting, so that everybody else has theirs.

An event loop runs all that is ready before it looks for what is new. With hundreds of runs that are always ready, each
round takes hundreds of milliseconds, and a new call needs several: health checks time out, and C-core cancels calls
that it could not hand over within 30 seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_RUNS_A_ROUND = 8
"""Each gives a token or so: less than 2 ms in all, with what its reader does about it."""


class Turns:
    """Lets a few runs go on in each round of the loop, those first that have waited longest."""

    def __init__(self) -> None:
        self._members = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._granting = False

    @contextmanager
    def member(self) -> Iterator[None]:
        """Be one of the runs that share."""
        self._members += 1
        try:
            yield
        finally:
            self._members -= 1

    @property
    def are_scarce(self) -> bool:
        """Whether there are more runs than may go on in one round."""
        return self._members > _RUNS_A_ROUND

    async def wait(self) -> None:
        """Return when this run may go on. That is soon: nobody keeps a turn while it waits for something else."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if not self._granting:
            self._granting = True
            loop.call_soon(self._grant, loop)
        await turn

    def _grant(self, loop: asyncio.AbstractEventLoop) -> None:
        granted = 0
        while self._waiting and granted < _RUNS_A_ROUND:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled, with its run
                turn.set_result(None)
                granted += 1
        self._granting = bool(self._waiting)
        if self._granting:
            loop.call_soon(self._grant, loop)
