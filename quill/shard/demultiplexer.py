"""The one caller of /pop-result: it polls for all generations of a sidecar, and gives each what is its own.

Where the sidecar filters (dialects A and C) each generation has a poll of its own. Where it does not (B, or unknown)
one poll at a time is in flight, because the order of two replies would not be known. Cancelled generations are polled
for a while longer, so that what is left of them is gone from the sidecar's queue.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

from quill.errors import AlreadyExists, Internal, RpcError
from quill.shard.faults import Failed, SidecarProtocolError
from quill.shard.live import Live
from quill.shard.messages import Item, Malformed, parse_pop_result, shown
from quill.shard.pollers import Poller, Schedule, Turn
from quill.shard.request import new_request_id
from quill.shard.state import TERMINAL, State

if TYPE_CHECKING:
    import h11

    from quill.shard.config import SidecarConfig
    from quill.shard.http import SidecarHttp
    from quill.shard.knowledge import Knowledge, Stats

_MAX_IN_FLIGHT = 8
_MAX_TOMBSTONES = 1024
_FINISHED_SHARE = 0.1
_MAX_BARREN = 128
"""So many results in a row may be of no use, and the next poll still follows at once: B's queue holds no more."""
_NOTHING = Item()
_TOLERATED = 2
"""So many replies in a row may be malformed."""

_ALL: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, WeakSet[Demultiplexer]]] = WeakKeyDictionary()
"""The clients of each sidecar, by its address. Where it does not filter, they poll each other's results."""


class Demultiplexer:
    """Polls one sidecar, in one event loop.

    Args:
        http: How to reach it.
        config: The bounds.
        knowledge: The dialect, which it finds out.
        stats: What it counts.
        suspect: Called when a poll failed so that the sidecar may have been restarted.
        moved: Called when what is known has changed, or a generation has left.
    """

    def __init__(
        self,
        http: SidecarHttp,
        config: SidecarConfig,
        knowledge: Knowledge,
        stats: Stats,
        *,
        suspect: Callable[[Failed], None],
        moved: Callable[[], None],
    ) -> None:
        self._http = http
        self._config = config
        self._knowledge = knowledge
        self._stats = stats
        self._suspect = suspect
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self._lives: dict[str, Live] = {}
        self._dead: dict[str, float] = {}
        self._pollers: dict[str | None, Poller] = {}
        self._rotation = itertools.count()
        url = config.url(config.pop_result_endpoint)
        self._all = _ALL.setdefault(self._loop, {}).setdefault(url, WeakSet())
        self._all.add(self)
        self._schedule = Schedule(config, self._poll, lambda: _MAX_IN_FLIGHT if knowledge.filtered else 1)

    @property
    def lives(self) -> Iterable[Live]:
        """The generations that wait for results."""
        return tuple(self._lives.values())

    @property
    def busy(self) -> bool:
        """Whether a result without an id may be of a generation that is polled for already."""
        return bool(self._lives) or (bool(self._dead) and self._knowledge.dialect == "B")

    def expect(self, live: Live) -> None:
        """Results of this generation may come from now on; there is no poll for it yet.

        Raises:
            AlreadyExists: Its id is in use, or was until a moment ago.
        """
        if live.request_id in self._lives or live.request_id in self._dead:
            raise AlreadyExists(
                f"the request id {shown(live.request_id)!r} is in use: every generation needs one of its own"
            )
        self._lives[live.request_id] = live

    def poll(self, live: Live) -> None:
        """Poll for it, beginning at once."""
        self._want(live.request_id)

    def leave(self, live: Live) -> None:
        """Nobody waits for this generation any more. What the sidecar still has of it is drained."""
        request_id = live.request_id
        if self._lives.get(request_id) is not live:
            return  # it never was expected: its id is another one's
        del self._lives[request_id]
        if not live.settled:
            # Of a finished one, only what other peers wrote may come.
            share = _FINISHED_SHARE if live.state is State.DONE else 1
            self._dead[request_id] = self._loop.time() + self._config.tombstone_s * share
            if len(self._dead) > _MAX_TOMBSTONES:
                self._bury(next(iter(self._dead)))
            self._want(request_id)
        else:
            self._close(request_id)
        self._moved()

    def forget_dead(self) -> None:
        """The sidecar was restarted: nothing is left of those that were cancelled."""
        for request_id in list(self._dead):
            self._bury(request_id)

    def take(self, request_id: str, item: Item) -> bool:
        """Take a result that another client of the same sidecar has polled, if it is one of ours."""
        if request_id not in self._lives and request_id not in self._dead:
            return False
        self._give(request_id, item)
        return True

    async def aclose(self) -> None:
        """End all polls."""
        self._all.discard(self)
        for poller in self._pollers.values():
            poller.closed = True
        self._pollers.clear()
        await self._schedule.aclose()

    # Pollers

    def _want(self, request_id: str) -> None:
        """See to it that somebody polls for this id, at once."""
        key = None if self._knowledge.dialect == "B" else request_id
        poller = self._pollers.get(key)
        if poller is None:
            poller = self._pollers[key] = Poller(key)
        self._schedule.at_once(poller)

    def _bury(self, request_id: str) -> None:
        self._dead.pop(request_id, None)
        self._close(request_id)

    def _close(self, key: str | None) -> None:
        if (poller := self._pollers.pop(key, None)) is not None:
            poller.closed = True

    def _share(self) -> None:
        """It does not filter: one series of polls for all."""
        if self._pollers.keys() == {None}:
            return
        for key in [key for key in self._pollers if key is not None]:
            self._close(key)
        if None not in self._pollers:
            self._pollers[None] = Poller(None)
            self._schedule.at_once(self._pollers[None])

    def _next_id(self) -> str:
        """Whose id the shared poll carries: in turn, in case the sidecar looks at it after all."""
        ids = [*self._lives, *self._dead]
        return ids[next(self._rotation) % len(ids)]

    def _served(self, poller: Poller) -> list[Live]:
        """The generations whose results this poll may give."""
        if poller.request_id is None or not self._knowledge.filtered:
            return list(self._lives.values())
        live = self._lives.get(poller.request_id)
        return [] if live is None else [live]

    # One poll

    async def _poll(self, poller: Poller) -> Turn:
        self._expire()
        if poller.closed or not (self._lives or self._dead):
            self._close(poller.request_id)
            return Turn.NEVER
        polled_id = poller.request_id or self._next_id()
        request = poller.request or self._http.poll(polled_id)
        if poller.request_id is not None:
            poller.request = request
        try:
            item = await self._ask_in_doubt(poller, request)
        except RpcError as error:
            return self._give_up(poller, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must learn that nothing will come
            text = f"polling {self._config.place} failed inside ({type(error).__name__})"
            return self._give_up(poller, Internal(text))
        if item is None or item is _NOTHING:
            if item is _NOTHING:
                self._stats.idle_polls += 1
                for live in self._served(poller):
                    live.nothing_there()
            unhurried = poller.request_id in self._dead or not self._lives
            return Turn.UNHURRIED if unhurried else Turn.LATER
        if self._received(item, polled_id):
            poller.barren = 0
            return Turn.AT_ONCE
        poller.barren += 1
        return Turn.LATER if poller.barren > _MAX_BARREN else Turn.AT_ONCE

    async def _ask_in_doubt(self, poller: Poller, request: h11.Request) -> Item | None:
        """As ``_ask``, after a poll for an id that nobody has, while it is not known whether the sidecar filters."""
        probed = self._knowledge.doubtful and poller.pause_s == 0
        if probed:
            stray = await self._ask(poller, self._http.poll(new_request_id()))
            if stray is not _NOTHING:
                if stray is not None:
                    self._knowledge.saw_probe(empty=False)
                return stray
        item = await self._ask(poller, request)
        if probed and item is not None and item is not _NOTHING:
            self._knowledge.saw_probe(empty=True)
        return item

    async def _ask(self, poller: Poller, request: h11.Request) -> Item | None:
        """What the sidecar has, perhaps ``_NOTHING``; None where it did not say it well and may be asked again."""
        self._stats.polls += 1
        try:
            item = parse_pop_result(await self._http.pop(request))
        except Malformed as wrong:
            self._stats.malformed += 1
            poller.malformed += 1
            self._lost(poller, "a reply of the sidecar could not be read")
            if poller.malformed > _TOLERATED:
                text = f"/pop-result of {self._config.place} gave {poller.malformed} bad replies in a row"
                raise SidecarProtocolError(f"{text}; the last: {wrong}") from None
            return None
        except Failed as failed:
            self._stats.failed_polls += 1
            self._suspect(failed)
            if failed.lost:
                self._lost(poller, "a reply of the sidecar was lost")
            now_s = self._loop.time()
            since_s = poller.failing_since_s = poller.failing_since_s or now_s
            if not failed.again or now_s - since_s > self._config.retry_budget_s:
                raise failed.error from None
            return None
        poller.malformed = 0
        poller.failing_since_s = None
        return _NOTHING if item is None else item

    def _received(self, item: Item, polled_id: str) -> bool:
        """Whether anybody was waiting for it."""
        knowledge = self._knowledge
        was, serial = knowledge.dialect, knowledge.serial
        knowledge.saw_result(item, polled_id)
        useful = self._route(item, polled_id) and bool(item.texts or item.ended or item.error)
        if knowledge.dialect == "B":
            self._share()
        if (was, serial) != (knowledge.dialect, knowledge.serial):
            self._moved()
        return useful

    def _route(self, item: Item, polled_id: str) -> bool:
        if item.request_id is not None:
            return self._give(item.request_id, item)
        if self._knowledge.filtered or (self._knowledge.dialect == "auto" and len(self._lives) <= 1):
            return self._give(polled_id, item)
        if len(self._lives) + len(self._dead) == 1:
            return self._give(next(iter((*self._lives, *self._dead))), item)
        self._stats.unattributed += 1
        text = f"{self._config.place} gave a result without a request id, which may be of several generations"
        for live in self.lives:
            live.fail(SidecarProtocolError(text))
        return False

    def _give(self, request_id: str, item: Item) -> bool:
        """Whether it is for a generation that waits, of this client or another one of the same sidecar."""
        live = self._lives.get(request_id)
        if live is not None and live.state not in TERMINAL:
            duplicates, dropped = live.duplicates, live.drafts_dropped
            live.take(item)
            self._stats.duplicates += live.duplicates - duplicates
            self._stats.drained += live.drafts_dropped - dropped
            return live.drafts_dropped == dropped and live.duplicates == duplicates
        if live is not None or request_id in self._dead:
            self._stats.drained += 1
            if item.ended and request_id in self._dead:
                self._bury(request_id)
            return False
        if any(other.take(request_id, item) for other in self._all if other is not self):
            return True
        self._stats.foreign += 1
        return False

    def _lost(self, poller: Poller, why: str) -> None:
        for live in self._served(poller):
            live.lost_reply(why)

    def _give_up(self, poller: Poller, error: RpcError) -> Turn:
        for live in self._served(poller):
            live.fail(error)
        if poller.request_id is not None:
            self._dead.pop(poller.request_id, None)
        else:
            self._dead.clear()
        self._close(poller.request_id)
        return Turn.NEVER

    def _expire(self) -> None:
        """Let go of those that were cancelled long ago."""
        now_s = self._loop.time()
        for request_id in [one for one, until_s in self._dead.items() if until_s <= now_s]:
            self._bury(request_id)
