"""The sidecar itself: who it is, the queue of requests, the peers that answer, and the results that wait."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from quill.testing.sidecar.behaviour import Behaviour
from quill.testing.sidecar.faults import Fault, Faults
from quill.testing.sidecar.network import Network, peer_id
from quill.testing.sidecar.queues import Fifo, Item, Line, Mailboxes
from quill.testing.sidecar.requests import Work
from quill.testing.sidecar.writer import Writer
from quill.version import VERSION

QUEUE_REQUESTS = 256
_MAX_RUNNING = 256
_EXIT_STATUS = 70


class Daemon:
    """One sidecar. It begins in the running loop, and is restarted in place.

    Args:
        dialect: A, B or C.
        writer: Writes the answers. Its owner closes it.
        behaviour: The switches.
        faults: What goes wrong.
    """

    def __init__(self, dialect: str, writer: Writer, behaviour: Behaviour, faults: Faults) -> None:
        self.dialect = dialect
        self.writer = writer
        self.faults = faults
        self.network = Network(writer, behaviour)
        self.requests: Counter[str] = Counter()
        """How many requests came for each endpoint; ``pop-unfiltered`` are those without a request_id."""
        self.request_ids: deque[str] = deque(maxlen=256)
        """The ids of the requests that were taken, newest last."""
        self.restarts = -1
        self.on_restart: Callable[[], None] = lambda: None
        """Closes the connections that wait for nothing."""
        self._attended: set[asyncio.Task[Any]] = set()
        self._work: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self.restart()

    @property
    def behaviour(self) -> Behaviour:
        """The switches."""
        return self.network.behaviour

    def restart(self) -> None:
        """Lose everything, and go on as another peer. Every connection is dropped, as if the process had ended."""
        for task in (*self._work, *self._attended):
            task.cancel()
        self.on_restart()
        self.restarts += 1
        self.peer_id = peer_id()
        self.network = Network(self.writer, self.behaviour)
        self._started_s = time.monotonic()
        self._backlog: deque[Work] = deque()
        self._line = Line()
        self.results: Fifo | Mailboxes = Mailboxes() if self.dialect == "A" else Fifo()
        self._running = 0
        self._spawn(self._publish())
        if isinstance(self.results, Mailboxes):
            self._spawn(self._expire(self.results))

    def exit(self) -> None:
        """End the process at once, as a crash does."""
        os._exit(_EXIT_STATUS)

    async def aclose(self) -> None:
        """End everything."""
        tasks = (*self._work, *self._attended)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def behave(self, behaviour: Behaviour) -> None:
        """Change the switches, for what is running as well."""
        async with self._changed:
            self.network.behaviour = behaviour
            self._changed.notify_all()

    async def attended(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run something for a client; False where a restart ended it."""
        task = asyncio.create_task(work)
        self._attended.add(task)
        try:
            await asyncio.wait([task])
        finally:
            self._attended.discard(task)
            task.cancel()
        if task.cancelled():
            return False
        task.result()
        return True

    async def broadcast(self, work: Work) -> Item:
        """Take a prompt for the network, once the queue has room. The reply of /broadcast-work."""
        if self.dialect == "C" and self.behaviour.fallback != "never":
            return await self._fall_back(work)
        backlog = self._backlog  # not that of after a restart
        async with self._changed:
            await self._changed.wait_for(lambda: len(backlog) < QUEUE_REQUESTS)
            backlog.append(work)
            self.request_ids.append(work.request_id)
            self._changed.notify_all()
        return {"ok": True, "detail": "queued for gossipsub publish"}

    def waiting(self, request_id: str | None) -> bool:
        """Whether ``pop`` would give something."""
        return self.results.peek(self._filter(request_id)) is not None

    def pop(self, request_id: str | None) -> Item | None:
        """The next result, of this request where the dialect filters; None where there is none."""
        return self.results.pop(self._filter(request_id))

    def health(self) -> Item:
        """The reply of /health."""
        return {
            "status": "ok",
            "version": f"quill-sidecar/{VERSION}",
            "peer_id": self.peer_id,
            "connected_peers": self.behaviour.peers,
            "uptime_ms": int((time.monotonic() - self._started_s) * 1000),
            "dialect": self.dialect,
            "model": self.writer.model,
            "model_origin": self.writer.origin,
        }

    def topology(self) -> Item:
        """The reply of /topology."""
        return {"peer_id": self.peer_id, "connected_peers": self.network.peers}

    def peers(self) -> Item:
        """The reply of /peers."""
        return {"peers": [{"peer_id": peer} for peer in self.network.peers]}

    def latency_profile(self) -> Item:
        """The reply of /metrics/latency-profile: over the last 256 drafts."""
        ordered = sorted(self.network.latencies_ms)
        at = {f"p{share}_ms": ordered[len(ordered) * share // 100] if ordered else 0 for share in (50, 95, 99)}
        return {"samples": len(ordered), **at}

    def report(self) -> Item:
        """What a test may want to know."""
        return {
            "requests": dict(self.requests),
            "request_ids": list(self.request_ids),
            "restarts": self.restarts,
            "backlog": len(self._backlog),
            "running": self._running,
            "serving": len(self._attended),
            "results": len(self.results),
        }

    def _filter(self, request_id: str | None) -> str | None:
        return None if self.dialect == "B" else request_id

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _publish(self) -> None:
        """Give the requests in the queue to the network, one after the other."""
        backlog = self._backlog
        while True:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: backlog and not self.behaviour.stalled and self._running < _MAX_RUNNING
                )
                work = backlog.popleft()
                self._running += 1
                self._changed.notify_all()
            self._spawn(self._answer(work, self.results))

    async def _answer(self, work: Work, results: Fifo | Mailboxes) -> None:
        try:
            peers = self.behaviour.peers
            if isinstance(results, Fifo):
                await asyncio.gather(*(self._draft(work, peer, results) for peer in range(peers)))
            elif peers:
                await self._stream(work, results)
        finally:
            if results is self.results:
                self._running -= 1
                async with self._changed:
                    self._changed.notify_all()

    async def _draft(self, work: Work, peer: int, results: Fifo) -> None:
        """B and C: what one peer writes, as one result."""
        item = await self.network.draft(work, peer)
        for one in await self._carried(self._line, item):
            results.put(one)

    async def _fall_back(self, work: Work) -> Item:
        """C: the answer in the reply, without the network."""
        self.request_ids.append(work.request_id)
        draft = await self.network.draft(work, 0)
        result = draft if self.behaviour.fallback == "draft" else "".join(draft["draft_tokens"])
        return {"ok": True, "result": result, "fallback": True, "reason": "no peer is subscribed"}

    async def _stream(self, work: Work, results: Mailboxes) -> None:
        """A: the tokens of an answer, as one result each, and the end."""
        mailbox = results.open(work.request_id)
        line = Line()
        try:
            async with aclosing(self.network.objects(work)) as objects:
                async for item, is_token in objects:
                    for one in await self._carried(line, item) if is_token else [*line.rest(), item]:
                        results.put(mailbox, one)
            for one in line.rest():
                results.put(mailbox, one)
        finally:
            mailbox.writers -= 1

    async def _carried(self, line: Line, item: Item) -> list[Item]:
        """Send an item on its way to a queue."""
        delay_s, fault = self.faults.draw("item")
        await asyncio.sleep(delay_s)
        await self.apply(fault)
        return line.carry(item, fault)

    async def apply(self, fault: Fault | None) -> None:
        """Restart or exit, if that is the fault. Whoever asks does not come back."""
        if fault is not None and fault.kind == "restart":
            self.restart()
            await asyncio.Event().wait()  # until the cancellation gets here
        elif fault is not None and fault.kind == "exit":
            self.exit()

    async def _expire(self, results: Mailboxes) -> None:
        while True:
            ttl_s = self.behaviour.result_ttl_s
            await asyncio.sleep(min(ttl_s / 2, 1.0))
            results.expire(ttl_s)
