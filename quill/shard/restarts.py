"""Whether the sidecar was restarted, and has forgotten what it was asked: /health tells, by its uptime and its peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from quill.errors import Code
from quill.shard.faults import Failed
from quill.shard.messages import Health, Malformed, parse_health

if TYPE_CHECKING:
    from quill.shard.config import SidecarConfig
    from quill.shard.http import SidecarHttp
    from quill.shard.knowledge import Stats
    from quill.shard.live import Live

_SUSPICIOUS_PAUSE_S = 0.1
_CLOCK_SLACK_S = 0.01
"""Uptimes are whole milliseconds."""


class RestartWatch:
    """Asks /health while generations live: now and then, and soon after a poll has failed.

    Args:
        http: How to reach the sidecar.
        config: How often.
        stats: Where restarts are counted.
        lives: The generations that would be forgotten.
        restarted: Called once for each restart, before they are told.
    """

    def __init__(
        self,
        http: SidecarHttp,
        config: SidecarConfig,
        stats: Stats,
        *,
        lives: Callable[[], Iterable[Live]],
        restarted: Callable[[], None],
    ) -> None:
        self._http = http
        self._config = config
        self._stats = stats
        self._lives = lives
        self._restarted = restarted
        self._loop = asyncio.get_running_loop()
        self._seen: Health | None = None
        self._seen_s = 0.0
        self._suspicious = asyncio.Event()
        self._broken_s: float | None = None
        self._gone_s: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch, until no generation is left."""
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._watch())

    def suspect(self, failed: Failed) -> None:
        """A poll failed."""
        self._broken_s = self._loop.time()
        if not failed.sent:
            self._gone_s = self._broken_s
        self._suspicious.set()

    async def aclose(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while self._lives():
            self._suspicious.clear()
            answered = await self._ask()
            try:
                pause_s = self._config.health_interval_s
                if not answered:
                    await asyncio.sleep(_SUSPICIOUS_PAUSE_S)
                    if self._broken_s is not None:
                        continue
                async with asyncio.timeout(pause_s):
                    await self._suspicious.wait()
            except TimeoutError:
                pass

    async def _ask(self) -> bool:
        """Ask once; False where the sidecar did not answer."""
        asked_s = self._loop.time()
        try:
            health = parse_health(await self._http.health())
        except Failed as failed:
            if failed.again:
                return False
            if failed.error.code is Code.UNIMPLEMENTED and self._gone_s is not None:
                self._tell(self._before(self._gone_s))  # it has no /health, but refused connections for a while
            self._broken_s = self._gone_s = None
            return True
        except Malformed:
            return True
        self._compare(health, asked_s)
        self._seen, self._seen_s = health, asked_s
        self._broken_s = self._gone_s = None
        return True

    def _compare(self, health: Health, asked_s: float) -> None:
        seen, began_s = self._seen, None
        if health.uptime_ms is not None:
            began_s = asked_s - health.uptime_ms / 1000 - _CLOCK_SLACK_S
        fell = (
            seen is not None
            and None not in {seen.uptime_ms, health.uptime_ms}
            and (health.uptime_ms or 0) < (seen.uptime_ms or 0)
        )
        changed = seen is not None and None not in {seen.peer_id, health.peer_id} and seen.peer_id != health.peer_id
        if fell or changed:
            # Older than what was seen before the restart, or than the new process: forgotten.
            self._tell(self._before(max(self._seen_s, began_s if began_s is not None else asked_s)))
        elif (
            self._broken_s is not None
            and began_s is not None
            and (forgotten := self._before(min(began_s, self._broken_s)))
        ):
            self._tell(forgotten)

    def _before(self, moment_s: float) -> list[Live]:
        return [live for live in self._lives() if 0 < live.submitted_s < moment_s]

    def _tell(self, forgotten: list[Live]) -> None:
        self._stats.restarts += 1
        self._restarted()
        for live in forgotten:
            live.restarted()
