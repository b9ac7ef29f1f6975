"""When to poll: at once where something may be there, else with growing, jittered pauses, within one budget for all.

Polls are timers: no task waits between them.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h11

    from quill.shard.config import SidecarConfig

_GROWTH = 1.6
_BURST_POLLS = 8


class Turn(Enum):
    """When a poller polls again."""

    AT_ONCE = "at once"
    LATER = "later"
    UNHURRIED = "unhurried"
    """Nobody waits for what it may find."""
    NEVER = "never"


class Poller:
    """One series of polls: of a generation, or, without an id, of all."""

    def __init__(self, request_id: str | None) -> None:
        self.request_id = request_id
        self.request: h11.Request | None = None
        """What it sends, made once."""
        self.malformed = 0
        """How many replies in a row were."""
        self.barren = 0
        """How many results in a row were for nobody who waits."""
        self.failing_since_s: float | None = None
        self.in_flight = False
        self.closed = False
        self.again = False
        self.ticket = 0
        """Tells its place in the schedule from those that it had before."""
        self.pause_s = 0.0


class Budget:
    """How many idle polls there may be, with a few left over for a burst.

    Args:
        per_s: The rate.
    """

    def __init__(self, per_s: float) -> None:
        self._cost_s = 1 / per_s
        self._burst_s = _BURST_POLLS / per_s
        self.ready_s = 0.0
        """When the next one may be made."""

    def spend(self, now_s: float) -> None:
        """One is made."""
        self.ready_s = max(self.ready_s, now_s - self._burst_s) + self._cost_s


class Schedule:
    """Says which poller's turn it is. Each has at most one poll in flight.

    Args:
        config: The pauses and the budget.
        poll: Makes one poll.
        at_a_time: How many polls there may be in flight.
    """

    def __init__(
        self,
        config: SidecarConfig,
        poll: Callable[[Poller], Coroutine[Any, Any, Turn]],
        at_a_time: Callable[[], int],
    ) -> None:
        self._config = config
        self._poll = poll
        self._at_a_time = at_a_time
        self._loop = asyncio.get_running_loop()
        self._budget = Budget(config.idle_polls_per_s)
        self._prompt: deque[tuple[int, Poller]] = deque()
        self._paused: list[tuple[float, int, Poller]] = []
        self._tickets = itertools.count(1)
        self._tasks: set[asyncio.Task[Turn]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def at_once(self, poller: Poller) -> None:
        """Something may be there for it."""
        poller.pause_s = 0.0
        if poller.in_flight:
            poller.again = True
            return
        self._put_first(poller)
        self._arm()

    async def aclose(self) -> None:
        """End the polls that run, and make no more."""
        self._prompt.clear()
        self._paused.clear()
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(self._tasks) >= self._at_a_time():
            return  # the end of a poll arms it again
        if self._prompt:
            self._timer = self._loop.call_at(self._loop.time(), self._tick)
        elif self._paused:
            self._timer = self._loop.call_at(max(self._paused[0][0], self._budget.ready_s), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        while self._prompt and len(self._tasks) < self._at_a_time():
            self._launch(*self._prompt.popleft())
        while self._paused and len(self._tasks) < self._at_a_time():
            due_s, ticket, poller = self._paused[0]
            if poller.closed or ticket != poller.ticket:
                heapq.heappop(self._paused)
                continue
            if max(due_s, self._budget.ready_s) > now_s:
                break
            heapq.heappop(self._paused)
            self._budget.spend(now_s)
            self._launch(ticket, poller)
        self._arm()

    def _put_first(self, poller: Poller) -> None:
        poller.ticket = next(self._tickets)
        self._prompt.append((poller.ticket, poller))

    def _launch(self, ticket: int, poller: Poller) -> None:
        if poller.closed or ticket != poller.ticket:
            return
        poller.in_flight = True
        task = self._loop.create_task(self._poll(poller))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._polled(poller, task))

    def _polled(self, poller: Poller, task: asyncio.Task[Turn]) -> None:
        self._tasks.discard(task)
        poller.in_flight = False
        turn = Turn.NEVER if task.cancelled() else task.result()
        if poller.again:
            poller.again, turn = False, Turn.AT_ONCE
        if turn is Turn.AT_ONCE:
            poller.pause_s = 0.0
            self._put_first(poller)
        elif turn is not Turn.NEVER:
            poller.ticket = next(self._tickets)
            heapq.heappush(self._paused, (self._due_s(poller, turn), poller.ticket, poller))
        self._arm()

    def _due_s(self, poller: Poller, turn: Turn) -> float:
        """When it polls again: after a pause that grows, with full jitter."""
        first_s, longest_s = self._config.poll_interval_s, self._config.max_poll_interval_s
        if turn is Turn.UNHURRIED:
            first_s, longest_s = longest_s / 2, longest_s * 4
        poller.pause_s = min(longest_s, max(first_s, poller.pause_s * _GROWTH))
        return self._loop.time() + random.uniform(0, poller.pause_s)  # noqa: S311 - jitter
