"""Ends waits that last too long, for a library whose waits know no timeout: one thread, only while it is needed."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

_LINGER_S = 1.0
"""How long the thread stays for more work before it ends."""


class Watch:
    """The waits of one reader, one after the other.

    Args:
        bark: What ends the wait when its time has run out; called in the watchdog's thread, must not block for long. It
            may come after the wait has ended, where ``fired`` says so.
    """

    __slots__ = ("bark", "deadline", "fired", "scheduled")

    def __init__(self, bark: Callable[[], object]) -> None:
        self.bark = bark
        self.deadline: float | None = None
        """When the current wait has to end; None while there is none."""
        self.scheduled: float | None = None
        """When the watchdog will look next."""
        self.fired = False
        """Whether the time of a wait ran out."""


class Watchdog:
    """Watches any number of readers. Times are those of ``time.monotonic()``."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._watches: set[Watch] = set()
        self._schedule: list[tuple[float, int, Watch]] = []
        """A heap. A reader that waits again and again has one entry, which is moved when it comes up."""
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def begin(self, watch: Watch, deadline: float | None) -> None:
        """A wait begins that has to end by ``deadline``."""
        if deadline is None:
            return
        with self._condition:
            self._watches.add(watch)
            watch.deadline = deadline
            if watch.scheduled is None or deadline < watch.scheduled:
                self._look_at(watch, deadline)

    def extend(self, watch: Watch, deadline: float | None) -> None:
        """The current wait, where there is one, has to end by ``deadline`` instead, which is later."""
        with self._condition:
            if watch.deadline is not None:
                watch.deadline = deadline

    def end(self, watch: Watch) -> None:
        """The wait has ended. Once this returns, ``watch.fired`` is final."""
        with self._condition:
            watch.deadline = None

    def forget(self, watch: Watch) -> None:
        """There will be no more waits."""
        with self._condition:
            watch.deadline = None
            self._watches.discard(watch)
            if not self._watches and self._schedule:
                self._schedule.clear()
                self._condition.notify()

    def _look_at(self, watch: Watch, when: float) -> None:
        watch.scheduled = when
        heapq.heappush(self._schedule, (when, next(self._numbers), watch))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="quill-watchdog", daemon=True)
            self._thread.start()
        elif self._schedule[0][2] is watch:
            self._condition.notify()

    def _run(self) -> None:
        # Barks without the lock: what ends a wait may need locks of grpc's, and a thread that holds those may be in the
        # middle of a garbage collection, whose finalizers come here.
        while (late := self._next_late()) is not None:
            late.bark()

    def _next_late(self) -> Watch | None:
        """Wait for the next watch whose time has run out; None when the thread is to end."""
        with self._condition:
            while self._schedule or self._condition.wait_for(lambda: self._schedule, _LINGER_S):
                now = time.monotonic()
                when = self._schedule[0][0]
                if when > now:
                    self._condition.wait(when - now)
                elif self._is_late(entry := heapq.heappop(self._schedule), now):
                    return entry[2]
            self._thread = None
            return None

    def _is_late(self, entry: tuple[float, int, Watch], now: float) -> bool:
        when, _, watch = entry
        if watch.scheduled != when:  # an earlier look came in between
            return False
        watch.scheduled = None
        if watch.deadline is None:
            return False
        if watch.deadline > now:
            self._look_at(watch, watch.deadline)
            return False
        watch.deadline = None
        watch.fired = True
        return True
