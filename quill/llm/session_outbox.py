"""What a session sends next: frames that were filled as tokens came, and generations that wait for a turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from quill.llm.session_frame import Frame

if TYPE_CHECKING:
    from quill.llm.session_feed import Feed


class Outbox:
    """Frames go out in the order in which they were begun; the last one is open. Beginnings may go before them.

    Args:
        wake_writer: Called when there is something to send where there was nothing.
    """

    __slots__ = ("_full", "frame", "is_idle", "new", "ready", "wake_writer")

    def __init__(self, wake_writer: Callable[[], None]) -> None:
        self.wake_writer = wake_writer
        self.frame = Frame()
        """The open one."""
        self.ready: deque[Feed] = deque()
        """The generations that wait for a turn, each once."""
        self.new: deque[Feed] = deque()
        """Those of them of which nothing was sent yet."""
        self.is_idle = True
        """Whether nothing was left to send, and the writer has not sent anything since.

        Then tokens go straight into frames: a step of an engine goes out whole, however many generations it has. What
        comes while frames go out waits in the journals, where the tokens of one generation gather to one segment.
        """
        self._full: deque[Frame] = deque()

    @property
    def has_full(self) -> bool:
        """Whether a frame has to go out before the open one."""
        return bool(self._full)

    def queue(self, feed: Feed) -> None:
        """Have a generation wait for a turn."""
        if not (self.ready or self.new):
            self.wake_writer()
        (self.new if feed.is_new else self.ready).append(feed)

    def begin_frame(self) -> Frame:
        """The open frame is full: begin another, which is returned."""
        self._full.append(self.frame)
        self.frame = Frame()
        return self.frame

    def take(self) -> Frame:
        """The frame that goes out next."""
        if self._full:
            return self._full.popleft()
        frame, self.frame = self.frame, Frame()
        return frame
