"""The deadlines of one generation: for its first token, for each one after it, and for all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from quill.errors import DeadlineExceeded, RpcError

if TYPE_CHECKING:
    from quill.shard.config import SidecarConfig
    from quill.shard.request import ShardRequest


class Deadlines:
    """Begins at once, in the running loop.

    Args:
        request: What it says goes before the configuration.
        config: What holds otherwise.
        missed: Called with the error when one has passed.
    """

    def __init__(self, request: ShardRequest, config: SidecarConfig, missed: Callable[[RpcError], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._missed = missed
        self._first_ms = _or(request.first_token_timeout_ms, config.first_token_timeout_ms)
        self._idle_ms = _or(request.idle_timeout_ms, config.idle_timeout_ms)
        self._total_ms = _or(request.timeout_ms, config.timeout_ms)
        now_s = self._loop.time()
        self._first_s = now_s + self._first_ms / 1000
        self._total_s = now_s + self._total_ms / 1000
        self._latest_s: float | None = None
        self.lost = ""
        """Why tokens may be missing: an error says so."""
        self._timer = self._loop.call_at(self.expires_s, self._check)

    @property
    def expires_s(self) -> float:
        """When the first token or the end must have come, on the loop's clock."""
        return min(self._total_s, self._first_s)

    def expired(self) -> RpcError:
        """The error for the deadline that passes first, before anything has come."""
        if self._total_s <= self._first_s:
            return DeadlineExceeded(f"the generation did not end within {self._total_ms:g} ms")
        return DeadlineExceeded(f"no token came within {self._first_ms:g} ms{self._maybe}")

    def token(self) -> None:
        """One has come."""
        first, self._latest_s = self._latest_s is None, self._loop.time()
        if first:
            self._timer.cancel()
            self._check()  # the wait for the next token may end before the one for the first would have

    def stop(self) -> None:
        """It has ended."""
        self._timer.cancel()

    @property
    def _maybe(self) -> str:
        return f"; {self.lost}" if self.lost else ""

    def _check(self) -> None:
        # Re-armed only when it rings: a timer for every token would cost more than the token.
        now_s = self._loop.time()
        due_s = self.expires_s
        if self._latest_s is not None:
            due_s = min(self._total_s, self._latest_s + self._idle_ms / 1000)
        if now_s < due_s:
            self._timer = self._loop.call_at(due_s, self._check)
        elif self._latest_s is None:
            self._missed(self.expired())
        elif now_s >= self._total_s:
            self._missed(DeadlineExceeded(f"the generation did not end within {self._total_ms:g} ms"))
        else:
            self._missed(DeadlineExceeded(f"no token came for {self._idle_ms:g} ms, and no end{self._maybe}"))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
