"""LLMService/Session: one stream that carries many generations.

One task reads what the client sends; the handler itself is the writer. It sleeps while there is nothing to send, and
sends whatever is there as soon as the transport has taken the frame before: no timer, and frames grow with the load.
Generations take turns, a few tokens each, so that one that floods only waits longer for its next turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from quill.boundary import status_of
from quill.errors import InvalidArgument, ResourceExhausted, RpcError, Unavailable
from quill.limits import Limits
from quill.llm.run import Run
from quill.llm.session_feed import WINDOW, Feed, Turn
from quill.llm.session_frame import Frame
from quill.llm.session_outbox import Outbox
from quill.proto import GenerateRequest, SessionRequest, SessionResponse, SessionStart

_GAP_S = 0.002
"""From the last of the frames that went out together to the next: a frame costs both sides as much as fifty tokens."""
_GAP_OF_EACH_S = 2e-6
"""As long at least for each generation: where there are thousands, frames would take what their tokens need."""
_MAX_GAP_S = 0.008
_STARTS_A_TURN = 16
"""Generations that are started before everybody else has a turn of the event loop."""


class Session:
    """One session.

    Args:
        run: Starts, joins or resumes the run of a request, in the name of the caller; raises what refuses it.
        limits: How many generations it may have, and how many may start with one frame.
    """

    def __init__(self, run: Callable[[GenerateRequest], Awaitable[Run]], limits: Limits) -> None:
        self._run = run
        self._limits = limits
        self._feeds: dict[int, Feed] = {}
        self._outbox = Outbox(self._feeds)
        self._refused: deque[tuple[int, RpcError]] = deque()
        self._all_asked = False
        """Whether the client has said that it sends nothing more."""
        self._failure: RpcError | None = None
        """What ends the session at once."""
        self._ending: RpcError | None = None
        """What ends it after everything that is there."""

    async def frames(self, requests: AsyncIterator[SessionRequest]) -> AsyncGenerator[SessionResponse, None]:
        """What goes to the client.

        Raises:
            RpcError: What ended the session, and with it all generations that nobody else reads.
        """
        reading = asyncio.create_task(self._read(requests))
        try:
            while self._failure is None:
                response = self._next_frame()
                if response is not None:
                    yield response
                elif self._ending is not None:
                    raise self._ending
                elif self._all_asked and not self._feeds:
                    return
                else:
                    await self._something()
            raise self._failure
        finally:
            reading.cancel()
            for feed in self._feeds.values():
                feed.close()
            self._feeds.clear()
            self._outbox.clear()  # it and the generations know each other, which would keep the journals
            await asyncio.wait({reading})

    def end(self, error: RpcError) -> None:
        """End the session, after what is there already. For when the generations have ended."""
        self._ending = self._ending or error
        self._outbox.wake()

    def _fail(self, error: RpcError) -> None:
        self._failure = self._failure or error
        self._outbox.wake()

    async def _read(self, requests: AsyncIterator[SessionRequest]) -> None:
        try:
            async for request in requests:
                await self._obey(request)
        except Exception as error:  # noqa: BLE001  # whatever ends the reading ends the session with a status
            self._fail(status_of(error))
        except asyncio.CancelledError:
            self._fail(Unavailable("the session's requests were cut off"))
            raise
        else:
            self._all_asked = True
            for feed in self._feeds.values():
                feed.send_by_turns()
            self._outbox.wake()

    async def _obey(self, request: SessionRequest) -> None:
        """Do what one frame asks for.

        Raises:
            RpcError: It asks for what no session may.
        """
        for ack in request.acks:
            feed = self._feeds.get(ack.run)
            if feed is not None:  # else it has ended meanwhile
                feed.acknowledge(ack.position)
        if len(request.starts) > self._limits.max_session_starts:
            raise ResourceExhausted(
                f"the frame starts {len(request.starts)} generations, max_session_starts is "
                f"{self._limits.max_session_starts}; send more frames"
            )
        for count, start in enumerate(request.starts, 1):
            await self._start(start)
            if count % _STARTS_A_TURN == 0:
                await asyncio.sleep(0)
        for cancel in request.cancels:
            feed = self._feeds.get(cancel.run)
            if feed is not None:
                feed.cancel(cancel.reason)

    async def _start(self, start: SessionStart) -> None:
        if start.run in self._feeds:
            raise InvalidArgument(f"run {start.run} is alive on this session: number generations anew, never twice")
        try:
            self._check_room()
            run = await self._run(start.request)
            self._follow(start, run)
        except Exception as error:  # noqa: BLE001  # it is the status of this generation alone
            self._refused.append((start.run, status_of(error)))
            self._outbox.wake()

    def _follow(self, start: SessionStart, run: Run) -> None:
        position = start.request.stream_options.resume.next_position
        window = min(start.window or WINDOW, WINDOW)
        self._feeds[start.run] = Feed(start.run, run, position, window, self._outbox)

    def _check_room(self) -> None:
        if len(self._feeds) >= self._limits.max_session_runs:
            raise ResourceExhausted(
                f"{len(self._feeds)} generations are alive on this session and max_session_runs is "
                f"{self._limits.max_session_runs}; wait for one to end, or open another session"
            )

    def _next_frame(self) -> SessionResponse | None:
        """What there is to send, a frame of it at most."""
        outbox = self._outbox
        if outbox.has_full:
            first = Frame()
            self._fill(first, outbox.new)
            return first.response() or outbox.take().response()
        self._fill(outbox.frame, outbox.new)
        self._fill(outbox.frame, outbox.ready)
        return outbox.take().response()

    def _fill(self, frame: Frame, waiting: deque[Feed]) -> None:
        """Give those a turn that wait for one."""
        while self._refused and frame.room > 0:
            frame.add_error(*self._refused.popleft())
        refused = []
        while waiting and frame.room > 0:
            feed = waiting.popleft()
            turn = feed.move(frame)
            if turn is Turn.IDLE:
                if self._all_asked:
                    feed.acknowledge_sent()
            elif turn is Turn.AGAIN:
                self._outbox.ready.append(feed)
            elif turn is Turn.NEXT_FRAME:
                refused.append(feed)
            else:
                del self._feeds[feed.number]
                feed.close()
        waiting.extendleft(reversed(refused))

    async def _something(self) -> None:
        """Wait until there is something to do. The generations have deadlines, and the client may say nothing.

        What comes soon after the last frames waits for more of its kind.
        """
        loop = asyncio.get_running_loop()
        next_s = loop.time() + min(max(_GAP_S, _GAP_OF_EACH_S * len(self._feeds)), _MAX_GAP_S)
        await self._outbox.something()
        soon_s = next_s - loop.time()
        if soon_s > 0 and self._failure is None:
            await asyncio.sleep(soon_s)
