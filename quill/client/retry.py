"""When a call is sent again: gRFC A6, for calls that provably did not run, the same on every protocol.

Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from quill.client import faults
from quill.client.requests import Requests, may_be_sent_again
from quill.client.transport import Call
from quill.errors import Code, RpcError

_FIRST_BACKOFF_S = 0.1
_MULTIPLIER = 2
_JITTER = 0.2
"""How much a backoff may be shorter or longer, so that clients do not come back all at once."""


class Throttle:
    """Stops the retries of a client whose calls mostly fail, for a server in need recovers faster without them.

    A bucket of tokens: an attempt that fails takes one, one that succeeds brings a tenth back. There are no retries
    while it is not more than half full. Usable from many threads: what they may lose of each other's changes is little.
    """

    MAX_TOKENS = 100
    _TOKENS_PER_SUCCESS = 0.1

    def __init__(self) -> None:
        self._tokens = float(self.MAX_TOKENS)

    @property
    def allows(self) -> bool:
        """Whether a call may be sent again."""
        return self._tokens > self.MAX_TOKENS / 2

    def failed(self) -> None:
        """An attempt failed that a retry could have mended."""
        self._tokens = max(0.0, self._tokens - 1)

    def succeeded(self) -> None:
        """An attempt was answered."""
        self._tokens = min(self.MAX_TOKENS, self._tokens + self._TOKENS_PER_SUCCESS)


class Attempts:
    """The attempts of one call, within its timeout.

    Args:
        call: The call as it is sent first.
        request: What it sends.
        unary: Whether it has one reply.
        throttle: That of the client.
        max_attempts: How often it may be sent, where it does not say so itself.
        now: A monotonic clock, in seconds.
    """

    __slots__ = (
        "_backoffs", "_call", "_count", "_max_attempts", "_now", "_request", "_start_s", "_throttle", "_unary", "_why",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        request: bytes | Requests,
        *,
        unary: bool,
        throttle: Throttle,
        max_attempts: int,
        now: Callable[[], float],
    ) -> None:
        self._call = call
        self._request = request
        self._unary = unary
        self._throttle = throttle
        self._max_attempts = call.max_attempts or max_attempts
        self._now = now
        self._start_s = 0.0
        self._count = 0
        self._backoffs = 0
        self._why = ""

    def begin(self) -> Call:
        """The call for the next attempt, of whose timeouts the earlier ones have used their part."""
        self._count += 1
        response = self._call.response
        response.attempts += 1
        if self._count == 1:
            self._start_s = self._now()
            return self._call
        response.headers = response.trailers = ()
        spent_ms = self._call.spent_ms + int(self._elapsed_ms())
        return replace(self._call, spent_ms=spent_ms, previous_attempts=self._count - 1)

    def succeeded(self) -> None:
        """The server has answered."""
        self._throttle.succeeded()

    def wait_s(self, error: RpcError) -> float | None:
        """How long to wait before the next attempt; None where there is none."""
        pushback_ms = faults.pushback_ms(error)
        is_forbidden = pushback_ms is not None and pushback_ms < 0
        is_retryable = not is_forbidden and self._is_retryable(error, pushback_ms)
        if is_retryable or is_forbidden:
            self._throttle.failed()
        if not is_retryable or self._count >= self._max_attempts or not may_be_sent_again(self._request):
            return None
        if not self._throttle.allows:
            self._why = "; retries are suspended, because too many calls fail"
            return None
        wait_s = self._pushed_back_s(pushback_ms) if pushback_ms is not None else self._backoff_s()
        timeout_ms = self._timeout_ms()
        if timeout_ms is not None and self._call.spent_ms + self._elapsed_ms() + wait_s * 1000 >= timeout_ms:
            self._why = f"; the next would come after its timeout of {timeout_ms} ms"
            return None
        return wait_s

    def explain(self, error: RpcError) -> RpcError:
        """The error that the call ends with; after several attempts it tells how many, and how long they took."""
        if self._count == 1:
            return error
        told = RpcError.of(
            error.code,
            f"{error.message} ({self._count} attempts in {self._elapsed_ms():.0f} ms{self._why})",
            details=error.details,
            metadata=error.metadata,
            trailers=error.trailers,
        )
        return faults.with_marks(told, error)

    def _is_retryable(self, error: RpcError, pushback_ms: int | None) -> bool:
        """Whether the call did not run, or may run twice."""
        if faults.did_not_run(error):
            return True
        return error.code is Code.UNAVAILABLE and (
            pushback_ms is not None or (self._unary and self._call.may_run_twice())
        )

    def _pushed_back_s(self, pushback_ms: int) -> float:
        self._backoffs = 0
        return pushback_ms / 1000

    def _backoff_s(self) -> float:
        backoff_s = _FIRST_BACKOFF_S * float(_MULTIPLIER**self._backoffs)
        self._backoffs += 1
        return backoff_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads load, keeps no secret

    def _timeout_ms(self) -> int | None:
        """What bounds the wait for the first message."""
        bounds = (self._call.timeout_ms, self._call.first_message_timeout_ms)
        return min((bound for bound in bounds if bound is not None), default=None)

    def _elapsed_ms(self) -> float:
        return (self._now() - self._start_s) * 1000
