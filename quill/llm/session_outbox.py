"""What a session sends next: frames that were filled as tokens came, and generations that wait for a turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sized
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
    """

    __slots__ = (
        "_full",
        "_generations",
        "_passed_over",
        "_writer",
        "frame",
        "new",
        "ready",
        "takes_tokens",
    )

    def __init__(self, generations: Sized) -> None:
        self._generations = generations
        self._writer: asyncio.Future[None] | None = None
        """Of the writer while it sleeps."""
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
        if not self.wake():
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

    async def something(self) -> None:
        """Wait, with nothing to send, until there is something to do."""
        self.takes_tokens = True
        self._writer = asyncio.get_running_loop().create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def wake(self) -> bool:
        """There is something to do for the writer. Returns whether it slept."""
        writer = self._writer
        # A writer that was cancelled has a cancelled future until it has had its turn.
        if writer is None or writer.done():
            return False
        writer.set_result(None)
        return True

    def _look(self) -> None:
        waiting = len(self._full) * MAX_TOKENS + MAX_TOKENS - self.frame.room
        self.takes_tokens = waiting < len(self._generations) and self._passed_over < _MOST_PASSED_OVER

    def clear(self) -> None:
        """Send nothing more."""
        self.takes_tokens = False
        for waiting in (self._full, self.ready, self.new):
            waiting.clear()
