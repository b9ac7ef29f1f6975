"""What a session sends next: frames that were filled as tokens came, and generations that wait for a turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING

from quill.llm.session_frame import MAX_TOKENS, Frame

if TYPE_CHECKING:
    from quill.llm.session_feed import Feed


_MOST_PASSED_OVER = 16
"""How many frames go out before those that wait for a turn, until nothing takes the short way any more."""


class Outbox:
    """Frames go out in the order in which they were begun; the last one is open. Beginnings may go before them.

    Args:
        generations: Those of the session.
        wake_writer: Called when there is something to send, and the writer sleeps.
    """

    __slots__ = (
        "_full",
        "_generations",
        "_is_resting",
        "_passed_over",
        "_wake_writer",
        "frame",
        "new",
        "ready",
        "takes_tokens",
    )

    def __init__(self, generations: Sized, wake_writer: Callable[[], None]) -> None:
        self._generations = generations
        self._wake_writer = wake_writer
        self._is_resting = False
        """Whether the writer sleeps."""
        self.frame = Frame()
        """The open one."""
        self._full: deque[Frame] = deque()
        self.ready: deque[Feed] = deque()
        """The generations that wait for a turn, each once."""
        self.new: deque[Feed] = deque()
        """Those of them of which nothing was sent yet."""
        self._passed_over = 0
        """How many frames have gone out since nobody waited for a turn."""
        self.takes_tokens = False
        """Whether tokens go straight into frames: while fewer wait than there are generations, looked at whenever a
        frame is begun or goes out.

        So a step of an engine goes out whole, however many generations it has. If the transport is further behind,
        tokens wait in the journals, where those of one generation gather to one segment.
        """

    @property
    def has_full(self) -> bool:
        """Whether a frame has to go out before the open one."""
        return bool(self._full)

    def queue(self, feed: Feed) -> None:
        """Have a generation wait for a turn."""
        self.wake()
        (self.new if feed.is_new else self.ready).append(feed)

    def begin_frame(self) -> Frame:
        """The open frame is full: begin another, which is returned."""
        self._full.append(self.frame)
        self.frame = Frame()
        return self.frame

    def began(self) -> None:
        """The first token has gone into a frame."""
        if self._is_resting:
            self.wake()
        else:
            asyncio.get_running_loop().call_soon(self._look)

    def take(self) -> Frame:
        """The frame that goes out next."""
        if self._full:
            frame = self._full.popleft()
        else:
            frame, self.frame = self.frame, Frame()
        self._passed_over = self._passed_over + 1 if self.ready or self.new else 0
        self._look()
        return frame

    def rest(self) -> None:
        """The writer sleeps: there is nothing to send."""
        self._is_resting = self.takes_tokens = True

    def wake(self) -> None:
        """There is something to do for the writer."""
        if self._is_resting:
            self._is_resting = False
            self._wake_writer()

    def _look(self) -> None:
        waiting = len(self._full) * MAX_TOKENS + MAX_TOKENS - self.frame.room
        self.takes_tokens = waiting < len(self._generations) and self._passed_over < _MOST_PASSED_OVER

    def clear(self) -> None:
        """Send nothing more."""
        self.takes_tokens = False
        for waiting in (self._full, self.ready, self.new):
            waiting.clear()
