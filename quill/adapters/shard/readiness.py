"""Whether a sidecar can answer now: asked slowly, beside the requests."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from quill.errors import RpcError

if TYPE_CHECKING:
    from quill.shard.sidecar import Sidecar

_log = logging.getLogger("quill.adapters.shard")

PERIOD_S = 2.0
"""Between two questions while all is well."""
RETRY_PERIOD_S = 0.5
"""While it is not: whoever waits for the sidecar should not wait for us as well."""


class Readiness:
    """Asks a sidecar for its health until it is closed. Ready until it was first asked.

    Args:
        sidecar: Who is asked. Stays the caller's.
    """

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._task: asyncio.Task[None] | None = None
        self.unready_reason = ""
        """Why it cannot answer, for people; empty while it can."""

    def watch(self) -> None:
        """Ask from now on, in a task of the running event loop. May be called again and again."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="shard readiness")

    async def aclose(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _watch(self) -> None:
        before = ""
        while True:
            now = await self._ask()
            # Two in a row: one may be a sidecar that is busy, and those who call it now are told the truth anyway.
            reason = now if before or not now else ""
            if bool(reason) != bool(self.unready_reason):
                _log.warning("shard: %s", f"not ready: {reason}" if reason else "ready again")
            self.unready_reason, before = reason, now
            await asyncio.sleep(RETRY_PERIOD_S if now else PERIOD_S)

    async def _ask(self) -> str:
        """Why the sidecar cannot answer. One without /health, as of dialect A, can as long as it is there."""
        try:
            health = await self._sidecar.health()
        except RpcError as error:
            return error.message
        except Exception:  # noqa: BLE001  # a watch that ended would leave its last word standing for good
            _log.exception("the sidecar's health could not be asked")
            return ""
        if health is not None and health.connected_peers == 0:
            return "the sidecar has no peers"
        return ""
