"""The timeouts of one call: until when the next wait may last, and what to say when it lasted longer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from quill.client import faults
from quill.client.transport import Call
from quill.errors import Code, DeadlineExceeded, RpcError

_SLACK_S = 0.1
"""The server and the protocol's own timer know the deadline too; this much before it, it may be theirs that fired."""


class CallClock:
    """Keeps the time of a call, from its first wait on.

    Args:
        call: The call, with its timeouts.
        now: A monotonic clock, in seconds.
    """

    def __init__(self, call: Call, now: Callable[[], float]) -> None:
        self._call = call
        self._now = now
        self._start: float | None = None
        self._end: float | None = None
        self._sent: float | None = None
        self.wait: asyncio.Timeout | None = None
        """The wait on an event loop that moves with ``deadline``."""
        self.received_any = False
        """Whether a message has come."""
        self.idle_timeout_ms = call.idle_timeout_ms
        """How long the next gap may be; may be changed while the call runs."""
        self.deadline: float | None = None
        """When the current wait has to end, on the clock's own scale."""

    def begin_wait(self) -> float | None:
        """Begin the wait for the next message: sets and returns ``deadline``."""
        now = self._now()
        if self._start is None:
            self._start = now - self._call.spent_ms / 1000
            self._end = None if self._call.timeout_ms is None else self._start + self._call.timeout_ms / 1000
        if not self.received_any:
            wait_ms, since = self._call.first_message_timeout_ms, self._sent or self._start
        else:
            wait_ms, since = self.idle_timeout_ms, now
        wait_end = None if wait_ms is None else since + wait_ms / 1000
        ends = [end for end in (self._end, wait_end) if end is not None]
        self.deadline = min(ends, default=None)
        return self.deadline

    def sent(self) -> float | None:
        """One of several requests was sent: from here on counts the wait for the first message.

        Sets and returns ``deadline`` anew.
        """
        if self._start is not None and not self.received_any:
            self._sent = self._now()
            self.begin_wait()
            if self.wait is not None:
                with contextlib.suppress(RuntimeError):  # it has just ended
                    self.wait.reschedule(self.deadline)
        return self.deadline

    def interrupt(self) -> None:
        """End the current wait on an event loop at once, as if its time were up."""
        if self.wait is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended
                self.wait.reschedule(self._now())

    def received(self) -> None:
        """A message has come."""
        self.received_any = True

    def linger(self, wait_ms: int) -> float:
        """Begin a wait that is not for a message: sets and returns ``deadline``."""
        self.deadline = self._now() + wait_ms / 1000
        return self.deadline

    def remaining_s(self) -> float | None:
        """Seconds until ``deadline``, 0 once it passed; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - self._now())

    def expired(self) -> DeadlineExceeded:
        """What to raise when the wait did not end in time. Names the timeout that ran out."""
        call = self._call
        if self._end is not None and self._end == self.deadline:
            return DeadlineExceeded(f"the call did not end within its timeout of {call.timeout_ms} ms")
        if not self.received_any:
            return DeadlineExceeded(f"the first message did not come within {call.first_message_timeout_ms} ms")
        return DeadlineExceeded(f"no message came for {self.idle_timeout_ms} ms (idle_timeout_ms)")

    def explain(self, error: RpcError) -> RpcError:
        """The same error; where it only says that the deadline of the call has passed, in the client's own words.

        Servers by grpc-go say so with a reset (CANCEL), which may be here before the client's own timer fires.
        """
        is_late = error.code is Code.DEADLINE_EXCEEDED or (error.code is Code.CANCELLED and faults.was_cut_off(error))
        if not is_late or self._end is None or self._now() < self._end - _SLACK_S:
            return error
        self.deadline = self._end
        own = self.expired()
        return DeadlineExceeded(own.message, details=error.details, metadata=error.metadata, trailers=error.trailers)
