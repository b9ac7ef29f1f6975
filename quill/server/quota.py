"""What each principal uses, and what it may use."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextvars import ContextVar

from quill.errors import ErrorDetail, ResourceExhausted
from quill.limits import Quota
from quill.wire.pushback import pushback

_MINUTE_S = 60.0
_AGAIN_S = 1
"""When to try again where nobody knows when a stream ends."""


class Bucket:
    """A minute's worth of something: full at first, filled evenly, and overdrawn by what is only known afterwards.

    Args:
        per_minute: How much.
        clock: The time in seconds; never goes back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._filled_s = clock()

    def take(self, amount: float) -> None:
        """Use some, also more than there is."""
        self._fill()
        self._left -= amount

    def wait_s(self, amount: float) -> float:
        """How long until there is so much; 0 where there is."""
        self._fill()
        return max(0.0, (amount - self._left) * _MINUTE_S / self.per_minute)

    def _fill(self) -> None:
        now_s = self._clock()
        more = (now_s - self._filled_s) * self.per_minute / _MINUTE_S
        self._left = min(float(self.per_minute), self._left + more)
        self._filled_s = now_s


class Account:
    """What one principal uses.

    Args:
        name: The principal.
        quota: What it may use.
        clock: The time in seconds.
    """

    def __init__(self, name: str, quota: Quota, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._max_streams = quota.live_streams
        self._requests = None if quota.requests_per_minute is None else Bucket(quota.requests_per_minute, clock)
        self._tokens = None if quota.tokens_per_minute is None else Bucket(quota.tokens_per_minute, clock)
        self._streams = 0

    def take_request(self) -> None:
        """Count a call.

        Raises:
            ResourceExhausted: Its requests, or its tokens, of this minute are used up.
        """
        self._check("tokens_per_minute", self._tokens)
        self._check("requests_per_minute", self._requests)
        if self._requests is not None:
            self._requests.take(1)

    def use_tokens(self, tokens: int) -> None:
        """Count tokens that were used."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    def open_stream(self) -> None:
        """Count a stream that begins.

        Raises:
            ResourceExhausted: It has as many as it may have.
        """
        if self._max_streams is not None and self._streams >= self._max_streams:
            raise exhausted(
                f"{self._name!r} has {self._streams} live streams and the quota live_streams is {self._max_streams}",
                _AGAIN_S,
            )
        self._streams += 1

    def close_stream(self) -> None:
        """A stream has ended."""
        self._streams -= 1

    def _check(self, quota: str, bucket: Bucket | None) -> None:
        if bucket is not None and (wait_s := bucket.wait_s(1)) > 0:
            raise exhausted(f"{self._name!r} has used up its quota {quota} of {bucket.per_minute}", math.ceil(wait_s))


class Accounts:
    """The accounts of all principals; they are as many as the configuration names.

    Args:
        quota: What each of them may use.
    """

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._accounts: dict[str, Account] = {}

    def of(self, name: str) -> Account:
        """The account of a principal."""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(name, self._quota)
        return account


current_account: ContextVar[Account | None] = ContextVar("quill_account", default=None)
"""Who pays for the call that runs now; nobody for health, and where there are no quotas."""


def exhausted(message: str, retry_after_s: int) -> ResourceExhausted:
    """RESOURCE_EXHAUSTED that says when to try again: google.rpc.RetryInfo, and ``retry-after`` in whole seconds."""
    from google.protobuf.duration_pb2 import Duration
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # it has stubs, but no py.typed

    info = RetryInfo(retry_delay=Duration(seconds=retry_after_s))
    header = ("retry-after", str(retry_after_s))
    return ResourceExhausted(
        f"{message}; try again in {retry_after_s} s",
        details=[ErrorDetail("google.rpc.RetryInfo", info.SerializeToString())],
        metadata=(header,),
        trailers=(header, pushback(retry_after_s * 1000)),
    )
