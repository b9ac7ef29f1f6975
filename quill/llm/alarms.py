"""Timers of which nearly all are cancelled: those that are due at about the same time share one of the event loop's.

The event loop keeps a timer that was cancelled until there are more of those than of others, and then sorts all anew.
Where hundreds of runs end in a second, with timers of minutes, that stops every stream for tens of milliseconds.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import Context

_STEPS_LOG2 = 8
"""A delay is made of 2**8 to 2**9 steps; what is due within one of them is called at its end."""


class Alarm:
    """A callback that is to be called."""

    __slots__ = ("_due",)

    def __init__(self, callback: Callable[[], object], due: dict[Alarm, Callable[[], object]]) -> None:
        self._due = due
        due[self] = callback

    def cancel(self) -> None:
        """Do not call it. May be called again, and after the callback was called."""
        self._due.pop(self, None)


class Alarms:
    """Sets timers of the running event loop."""

    def __init__(self) -> None:
        self._due: dict[float, dict[Alarm, Callable[[], object]]] = {}
        """What is to be called, by the time of the event loop."""
        self._context = Context()
        """An empty one: that of the call which happens to be the first would be kept as long as the timer."""

    def after(self, delay_s: float, callback: Callable[[], object]) -> Alarm:
        """Have something called after a delay, late by 0.4% of it at most, but for what keeps the event loop.

        Args:
            delay_s: At least 0; never, where it is infinite.
            callback: Must not raise; what it raises is in the log of the event loop.
        """
        if math.isinf(delay_s):
            return Alarm(callback, {})
        loop = asyncio.get_running_loop()
        step_s = math.ldexp(1.0, math.frexp(delay_s)[1] - 1 - _STEPS_LOG2)
        when_s = (math.floor((loop.time() + delay_s) / step_s) + 1) * step_s
        due = self._due.get(when_s)
        if due is None:
            due = self._due[when_s] = {}
            loop.call_at(when_s, self._due_at, when_s, context=self._context)
        return Alarm(callback, due)

    def _due_at(self, when_s: float) -> None:
        _call_all(self._due.pop(when_s))


def _call_all(due: dict[Alarm, Callable[[], object]]) -> None:
    try:
        while due:  # a callback may cancel others
            _, callback = due.popitem()
            callback()
    finally:
        if due:  # one has raised, for which the others are not to blame
            asyncio.get_running_loop().call_soon(_call_all, due)
