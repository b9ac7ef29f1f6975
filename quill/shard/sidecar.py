"""The client of one Shard sidecar: prompts in, text out, as it comes."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self, TypeVar

from quill.errors import Cancelled, Code, Internal, InvalidUsage, Unimplemented
from quill.shard import faults, websocket
from quill.shard.config import SidecarConfig
from quill.shard.demultiplexer import Demultiplexer
from quill.shard.events import Ended, Piece, Restarted, ShardEvent
from quill.shard.faults import Failed
from quill.shard.knowledge import Knowledge, Stats
from quill.shard.live import Live
from quill.shard.messages import (
    BroadcastReply,
    Health,
    Malformed,
    broadcast_body,
    parse_broadcast_reply,
    parse_health,
    websocket_request,
)
from quill.shard.request import ShardRequest, check_polled, check_streamed
from quill.shard.restarts import RestartWatch
from quill.shard.state import TERMINAL

if TYPE_CHECKING:
    from types import TracebackType

    from websockets.asyncio.client import ClientConnection

__all__ = ["Ended", "Health", "Piece", "ShardEvent", "ShardRequest", "Sidecar", "Stats"]

_RETRY_PAUSE_S = 0.05
_CLOSE_TIMEOUT_S = 2.0
_LONG_REQUEST = 16 * 1024
"""Characters and token ids, of which each takes up to 6 bytes."""
_CLOSED = "the sidecar client was closed"
T = TypeVar("T")


class Sidecar:
    """The client of one sidecar, for all generations that it runs at a time. Nothing is sent before the first call.

    Args:
        config: Where the sidecar is, and the bounds; on this machine where None.

    Raises:
        InvalidUsage: ``quill-rpc[shard]`` is not installed.
    """

    def __init__(self, config: SidecarConfig | None = None) -> None:
        _check_installed()
        self.config = config or SidecarConfig()
        self._knowledge = Knowledge(self.config.dialect)
        self._stats = Stats()
        self._reach: _Reach | None = None
        self._closed = False

    @property
    def stats(self) -> Stats:
        """Counters, which go on counting."""
        return self._stats

    @property
    def dialect(self) -> str:
        """What the sidecar speaks; ``auto`` while it is not known."""
        return self._knowledge.dialect

    async def generate(self, request: ShardRequest) -> AsyncGenerator[ShardEvent, None]:
        """Generate: Pieces as they come, and one Ended, last.

        Closing the iterator cancels the generation at once; over polling, what the sidecar still has of it is fetched
        for a while and thrown away.

        Raises:
            InvalidArgument: The sidecar does not take such a request.
            Unimplemented: It has no WebSocket, and ``transport`` is ``websocket``; or no endpoint of this name.
            DeadlineExceeded: A deadline passed before any text had come.
            Unavailable: The sidecar cannot be reached, has no room, or ended the generation without a token.
            ResourceExhausted: A bound was reached, the sidecar's or one of the configuration.
            Internal: It answered what is not in the protocol.
            StreamInterrupted: As any of these, where text had come; it carries the text and the code.
            InvalidUsage: The client is closed, or belongs to another event loop.
        """
        reach = self._here()
        live = Live(request, self.config)
        reach.everything.add(live)
        events: AsyncGenerator[ShardEvent, None] | None = None
        try:
            if request.transport != "http_poll":
                events = await self._streamed(reach, live)
            if events is None:
                events = self._poll(reach, live)
            async with aclosing(events):
                async for event in events:
                    yield event
        finally:
            live.cancel()
            reach.everything.discard(live)

    async def health(self) -> Health | None:
        """What the sidecar says of itself; None where it says nothing, as one without /health.

        Raises:
            Unavailable: It cannot be reached.
            RpcError: It answered with another status than 200 and 404.
            InvalidUsage: The client is closed, or belongs to another event loop.
        """
        try:
            return parse_health(await self._here().http.health())
        except Malformed:
            return None
        except Failed as failed:
            if failed.error.code is Code.UNIMPLEMENTED:
                return None
            raise failed.error from None

    async def aclose(self) -> None:
        """End what runs, with CANCELLED, and close the connections. May be called again."""
        self._closed = True
        reach, self._reach = self._reach, None
        if reach is not None:
            await reach.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _here(self) -> _Reach:
        """The connections of the running loop."""
        if self._closed:
            raise InvalidUsage("the sidecar client is closed")
        loop = asyncio.get_running_loop()
        if self._reach is not None and self._reach.loop is not loop:
            if not self._reach.loop.is_closed():
                raise InvalidUsage("the sidecar client belongs to another event loop, which still runs")
            self._reach = None  # its connections went with its loop
        if self._reach is None:
            self._reach = _Reach(self.config, self._knowledge, self._stats)
        return self._reach

    # Polling

    async def _poll(self, reach: _Reach, live: Live) -> AsyncGenerator[ShardEvent, None]:
        await reach.turn(live)
        try:
            await self._submit(reach, live)
            while True:
                event = await live.next()
                if isinstance(event, Restarted):
                    live.settled = True
                    reach.demultiplexer.leave(live)
                    live.renew()
                    self._stats.resubmitted += 1
                    await self._submit(reach, live)
                    continue
                yield event
                if isinstance(event, Ended):
                    return
        finally:
            live.cancel()
            reach.demultiplexer.leave(live)

    async def _submit(self, reach: _Reach, live: Live) -> None:
        """Ask for it, and begin to poll. Results may come before the reply to the request."""
        body = await _serialized(broadcast_body, live, self._knowledge.dialect)
        check_polled(live.request, self._knowledge.dialect, body)
        reach.demultiplexer.expect(live)
        live.submitting()
        self._stats.started += 1
        reach.watch.start()
        reply = await self._broadcast(reach, live, body)
        if not reply.accepted:
            live.settled = True
            raise faults.refused(f"/broadcast-work of {self.config.place}", reply.detail)
        self._note(live, reply)
        live.accepted()
        if reply.result is not None:
            live.settled = True
            live.take(reply.result, whole=True)
        elif live.state not in TERMINAL:
            reach.demultiplexer.poll(live)

    async def _broadcast(self, reach: _Reach, live: Live, body: bytes) -> BroadcastReply:
        until_s = reach.loop.time() + self.config.retry_budget_s
        try:
            async with asyncio.timeout_at(live.expires_s):
                while True:
                    try:
                        return parse_broadcast_reply(await reach.run(reach.http.broadcast(body)))
                    except Failed as failed:
                        # Sent once, it may have begun: it is never sent again.
                        if failed.sent or not failed.again or reach.loop.time() > until_s:
                            live.settled = not failed.lost and not (failed.sent and failed.again)
                            raise failed.error from None
                        reach.watch.suspect(failed)
                    except Malformed as wrong:
                        text = f"the reply to /broadcast-work of {self.config.place} is bad: {wrong}"
                        raise faults.SidecarProtocolError(text) from None
                    await asyncio.sleep(random.uniform(_RETRY_PAUSE_S, 2 * _RETRY_PAUSE_S))  # noqa: S311 - jitter
        except TimeoutError:
            raise live.expired() from None

    def _note(self, live: Live, reply: BroadcastReply) -> None:
        """What the caller should know of how it is answered."""
        if reply.fallback_reason is not None:
            live.metadata["fallback"] = "true"
            live.warnings.append(f"the answer is the sidecar's own, not the network's: {reply.fallback_reason}")
        if live.request.extra and self._knowledge.dialect in {"B", "C"}:
            live.warnings.append(f"the sidecar takes no options, and was not sent {', '.join(live.request.extra)}")

    # WebSocket

    async def _streamed(self, reach: _Reach, live: Live) -> AsyncGenerator[ShardEvent, None] | None:
        """The events over a WebSocket; None where there is none and polling will do as well."""
        optional = live.request.transport == "auto"
        if optional and self._knowledge.websocket is False:
            return None
        message = await _serialized(websocket_request, live, self._knowledge.dialect)
        check_streamed(live.request, self._knowledge.dialect, message)
        socket = await self._open(reach, live, optional=optional)
        return None if socket is None else self._receive(reach, live, socket, message)

    async def _open(self, reach: _Reach, live: Live, *, optional: bool) -> ClientConnection | None:
        until_s = reach.loop.time() + self.config.retry_budget_s
        try:
            async with asyncio.timeout_at(live.expires_s):
                while True:
                    try:
                        socket = await reach.run(websocket.connect(self.config), discard=websocket.abort)
                    except websocket.NoWebSocket:
                        self._knowledge.saw_upgrade(accepted=False)
                        if optional:
                            return None
                        text = f"{self.config.place} has no WebSocket (HTTP 404 on the upgrade): use polling"
                        raise Unimplemented(text) from None
                    except Failed as failed:
                        if not failed.again or reach.loop.time() > until_s:
                            raise failed.error from None
                    else:
                        self._knowledge.saw_upgrade(accepted=True)
                        return socket
                    await asyncio.sleep(random.uniform(_RETRY_PAUSE_S, 2 * _RETRY_PAUSE_S))  # noqa: S311 - jitter
        except TimeoutError:
            raise live.expired() from None

    async def _receive(
        self, reach: _Reach, live: Live, socket: ClientConnection, message: bytes
    ) -> AsyncGenerator[ShardEvent, None]:
        live.limited = self._knowledge.dialect != "A"
        live.submitting()
        self._stats.started += 1
        stream = websocket.Stream(socket, live, self.config, self._stats)
        running = reach.own(stream.run(message))
        try:
            while True:
                event = await live.next()
                if isinstance(event, Restarted):
                    raise Internal("a stream over a WebSocket was told of a restart")
                yield event
                if isinstance(event, Ended):
                    return
        finally:
            await stream.stop(running)


async def _serialized(make: Callable[[ShardRequest, str, str], bytes], live: Live, dialect: str) -> bytes:
    """A request as JSON: what is long, in a thread."""
    request = live.request
    if len(request.prompt) + len(request.token_ids) <= _LONG_REQUEST and not request.extra:
        return make(request, live.request_id, dialect)
    return await asyncio.to_thread(make, request, live.request_id, dialect)


def _check_installed() -> None:
    if importlib.util.find_spec("websockets") is None:
        raise InvalidUsage(
            "the sidecar client needs websockets, which is not installed: pip install 'quill-rpc[shard]'"
        )


class _Reach:
    """What a sidecar client has in one event loop: connections, the demultiplexer, the watch, and their tasks."""

    def __init__(self, config: SidecarConfig, knowledge: Knowledge, stats: Stats) -> None:
        from quill.shard.http import SidecarHttp

        self.loop = asyncio.get_running_loop()
        self.everything: set[Live] = set()
        self.http = SidecarHttp(config)
        self._config = config
        self._knowledge = knowledge
        self._moved = asyncio.Event()
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.watch = RestartWatch(
            self.http,
            config,
            stats,
            lives=lambda: self.demultiplexer.lives,
            restarted=self._restarted,
        )
        self.demultiplexer = Demultiplexer(
            self.http, config, knowledge, stats, suspect=self.watch.suspect, moved=self._moved.set
        )

    async def turn(self, live: Live) -> None:
        """Wait until this generation may be polled for: at once, unless results could not be told apart."""
        try:
            async with asyncio.timeout_at(live.expires_s):
                while self._knowledge.serial and self.demultiplexer.busy:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise live.expired() from None

    async def run(self, work: Coroutine[Any, Any, T], discard: Callable[[T], None] | None = None) -> T:
        """Wait for something that closing the client ends.

        Args:
            work: What it is.
            discard: What becomes of a result that nobody takes, because the caller was cancelled just then.

        Raises:
            Cancelled: The client was closed meanwhile.
        """
        if self._closed:
            work.close()
            raise Cancelled(_CLOSED)
        task = self.own(work)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            if discard is not None and task.done() and not task.cancelled() and task.exception() is None:
                discard(task.result())
            raise
        if task.cancelled():
            raise Cancelled(_CLOSED)
        return task.result()

    def own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something that ends with the client at the latest."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # asked for, so that nothing is logged where nobody waits any more

    def _restarted(self) -> None:
        self.demultiplexer.forget_dead()

    async def aclose(self) -> None:
        """End everything."""
        self._closed = True
        for live in tuple(self.everything):
            live.fail(Cancelled(_CLOSED))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT_S)
        await self.watch.aclose()
        await self.demultiplexer.aclose()
        await self.http.aclose()
