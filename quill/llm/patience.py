"""How long a call waits for its backend."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from quill.errors import DeadlineExceeded

_log = logging.getLogger("quill.llm")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Bounds what a unary method waits for. A generation has its own watchdog."""

    backend: str
    """The backend's name."""
    limit_s: float
    """For one answer of the backend."""
    close_limit_s: float
    """For the backend to be told that nothing more is wanted."""

    async def wait(self, answer: Awaitable[T]) -> T:
        """The answer of the backend.

        Raises:
            DeadlineExceeded: It did not come in time.
        """
        try:
            async with asyncio.timeout(self.limit_s) as limit:
                return await answer
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"backend {self.backend} gave nothing for {self.limit_s:g} s") from None

    async def close(self, iterator: AsyncIterator[Any]) -> None:
        """Close an iterator of the backend, which is the abort where it has not ended. Its failure is only logged."""
        close = getattr(iterator, "aclose", None)
        if close is None:
            return
        try:
            async with asyncio.timeout(self.close_limit_s):
                await close()
        except Exception:  # noqa: BLE001  # the call has ended, and its status is known
            _log.exception("backend %s failed to end a call within %g s", self.backend, self.close_limit_s)
