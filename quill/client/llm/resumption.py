"""Whether and how a generation goes on after its connection was lost. Knows no socket: both clients ask it.

Retries (``client/retry.py``) send a call again that did not run, until its first message. This is about what runs: the
same run is asked for again, from the first entry that has not arrived.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from quill.client import faults
from quill.errors import Code, RpcError

if TYPE_CHECKING:
    from quill import proto
    from quill.client.llm.fold import Fold

CANCEL_TIMEOUT_MS = 2_000
"""How long the end of a run may take to be told. It is told so that the engine stops; the caller has left."""

_FIRST_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 2.0
_JITTER = 0.5
"""Which part of a backoff is left to chance, so that clients of one server do not come back all at once."""


class Resumption:
    """The calls for one run: when there is another, and what it asks.

    Args:
        request: What was asked first, with the id of the run; ``stream_options`` say for how long it may be resumed.
        timeout_ms: How long the generation may take, all calls together; None for no bound.
        fold: What has arrived.
        now: A monotonic clock, in seconds.
    """

    def __init__(
        self, request: proto.GenerateRequest, timeout_ms: int | None, fold: Fold, now: Callable[[], float]
    ) -> None:
        self._request = request
        self._ttl_s = request.stream_options.resume_ttl_ms / 1000
        self._timeout_ms = timeout_ms
        self._fold = fold
        self._now = now
        self._start_s: float | None = None
        self._may_run = False
        """Whether the server may have been given the request."""
        self._lost_s = 0.0
        """When the connection was lost, after which nothing new has arrived."""
        self._lost_at: int | None = None
        """The position at which it was."""
        self._longest_wait_s = _FIRST_BACKOFF_S
        self._may_live = True

    def began(self) -> None:
        """The first message is asked for: from here on counts the timeout."""
        if self._start_s is None:
            self._start_s = self._now()

    def wait_s(self, error: RpcError | None) -> float | None:
        """How long to wait before the run is asked for again; None where it is not.

        Args:
            error: What ended the call; None where the status was OK, and the generation not complete.
        """
        if not self._ttl_s or not self._is_lost(error):
            self._may_live &= error is None or error.code in {Code.DEADLINE_EXCEEDED, Code.DATA_LOSS}
            return None
        now = self._now()
        if self._lost_at != self._fold.position:
            self._lost_at, self._lost_s, self._longest_wait_s = self._fold.position, now, _FIRST_BACKOFF_S
        pushback_ms = None if error is None else faults.pushback_ms(error)
        wait_s = max(self._backoff_s(), (pushback_ms or 0) / 1000)
        if now - self._lost_s + wait_s > self._ttl_s:
            self._may_live = False
            return None
        left_ms = self._left_ms()
        return wait_s if left_ms is None or wait_s * 1000 < left_ms else None

    def request(self) -> proto.GenerateRequest:
        """What the next call asks: to go on, or to join or start the run where it has not been heard of."""
        from quill.proto import GenerateRequest

        request = GenerateRequest()
        request.CopyFrom(self._request)
        if self._fold.epoch:
            request.stream_options.resume.epoch = self._fold.epoch
            request.stream_options.resume.next_position = self._fold.position
        return request

    def timeout_ms(self) -> int | None:
        """How long the next call may take; None for no bound."""
        left_ms = self._left_ms()
        return None if left_ms is None else max(1, int(left_ms))

    def take_cancel(self) -> bool:
        """Whether the server has to be told that nobody comes back. True once at most."""
        wanted = bool(self._ttl_s) and self._start_s is not None and self._may_live and not self._fold.completed
        self._may_live = False
        return wanted

    def _is_lost(self, error: RpcError | None) -> bool:
        """Whether a call ended for a reason of the connection's, and not of the run's."""
        if self._fold.epoch and not self._fold.resumable:
            return False
        if error is not None:
            if not self._may_run and not self._fold.epoch and faults.was_refused(error):
                return False
            pushback_ms = faults.pushback_ms(error)
            if pushback_ms is not None and pushback_ms < 0:
                return False
            # The server may count the call that was lost for a while yet, and have no room for another.
            is_full = error.code is Code.RESOURCE_EXHAUSTED and self._lost_at == self._fold.position
            if not (error.code is Code.UNAVAILABLE or is_full or faults.was_cut_off(error)):
                return False
        self._may_run = True
        return True

    def _backoff_s(self) -> float:
        longest_s = self._longest_wait_s
        self._longest_wait_s = min(_MAX_BACKOFF_S, longest_s * 2)
        return longest_s * random.uniform(1 - _JITTER, 1)  # noqa: S311 - spreads load, keeps no secret

    def _left_ms(self) -> float | None:
        if self._timeout_ms is None or self._start_s is None:
            return self._timeout_ms
        return self._timeout_ms - (self._now() - self._start_s) * 1000
