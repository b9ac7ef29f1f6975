"""Interceptors on an event loop: a transport around a transport for each of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator

from quill.client import faults, intercept_sync
from quill.client.around import AsyncStreamAround
from quill.client.interceptors import (
    AsyncInterceptor,
    AsyncSteps,
    CallInfo,
    CallOutcome,
    Passage,
    Setting,
    Steps,
    no_generator,
    not_yielded,
)
from quill.client.last_words import LastWords
from quill.client.requests import Requests
from quill.client.transport import AsyncByteStream, AsyncTransport, Call
from quill.errors import Code

_log = logging.getLogger("quill.client")


class InterceptedAsyncTransport:
    """As InterceptedSyncTransport, on one event loop."""

    def __init__(
        self, transport: AsyncTransport, interceptor: AsyncInterceptor, setting: Setting, last_words: LastWords
    ) -> None:
        self._transport = transport
        self._interceptor = interceptor
        self._setting = setting
        self._last_words = last_words
        """What the client's interceptors still do after calls that were given up."""
        self._running: set[Steps | AsyncSteps] = set()
        """Those of streams: held, so that the garbage collector, which finds the streams, does not end them itself."""

    async def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        passage = Passage(call, request, self._setting, streaming=False)
        steps = self.steps(passage.info)
        wanted = await begin(steps)
        while True:
            reply = b""
            error: BaseException | None = None
            try:
                reply = await self._transport.unary(passage.call(wanted), request)
                passage.count(reply)
            except GeneratorExit:  # this coroutine itself is thrown away
                raise
            except BaseException as raised:  # noqa: BLE001 - raised below, once the interceptor knows
                error = raised
            following = await after(steps, passage, error)
            if following is not None:
                wanted = following
                continue
            if error is not None:
                raise error
            return reply

    def stream(self, call: Call, request: bytes | Requests) -> AsyncByteStream:
        """Send one message, or those of an iterator; nothing is sent before the first ``next_message``."""
        return _Stream(self, Passage(call, request, self._setting, streaming=True), request, call.idle_timeout_ms)

    async def aclose(self) -> None:
        """End all calls and close the connections."""
        try:
            await self._transport.aclose()
        except BaseException:
            self._last_words.cancel()
            raise
        await self._last_words.end()

    def steps(self, info: CallInfo) -> Steps | AsyncSteps:
        """What the interceptor does for a call."""
        steps = self._interceptor(info)
        if not isinstance(steps, Generator | AsyncGenerator):
            raise no_generator(steps)
        return steps

    def hold(self, steps: Steps | AsyncSteps) -> None:
        """Keep what an interceptor does for a stream, until ``release``."""
        self._running.add(steps)

    def release(self, steps: Steps | AsyncSteps) -> None:
        """It is done. May be called again."""
        self._running.discard(steps)

    def open(self, call: Call, request: bytes | Requests) -> AsyncByteStream:
        """A stream that the interceptor asks for."""
        return self._transport.stream(call, request)

    def give_up(self, steps: Steps | AsyncSteps, outcome: CallOutcome) -> None:
        """Tell the interceptor that nobody reads on; one that may wait, in a task of its own."""
        if isinstance(steps, Generator):
            intercept_sync.give_up(steps, outcome)
            return

        async def finish() -> None:
            try:
                await advance(steps, outcome)
                await close(steps)
            except Exception:  # noqa: BLE001 - told to the log
                _log.exception("an interceptor failed after its call was given up")

        self._last_words.add(asyncio.get_running_loop().create_task(finish()))


class _Stream(AsyncStreamAround):
    """The messages of one streaming call."""

    def __init__(
        self,
        transport: InterceptedAsyncTransport,
        passage: Passage,
        request: bytes | Requests,
        idle_timeout_ms: int | None,
    ) -> None:
        super().__init__(idle_timeout_ms)
        self._transport = transport
        self._passage = passage
        self._request = request
        self._steps: Steps | AsyncSteps | None = None
        self._wanted: CallInfo | None = None
        """What the interceptor asks for and was not made yet."""
        self._cancelled = False
        self._is_reading = False
        self._done = False

    async def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK."""
        if self._done:
            return None
        self._is_reading = True
        try:
            message = await self._next()
        except BaseException:
            self._end()
            raise
        finally:
            self._is_reading = False
        if message is None:
            self._end()
        return message

    def cancel(self) -> None:
        """Cancel the call if it still runs."""
        self._cancelled = True
        super().cancel()
        if self._is_reading:  # the task that reads was woken, and tells the interceptor
            return
        if not self._done and self._steps is not None:
            self._transport.give_up(self._steps, self._passage.outcome(None, Code.CANCELLED))
        self._end()

    def _end(self) -> None:
        self._done = True
        if self._steps is not None:
            self._transport.release(self._steps)

    async def _next(self) -> bytes | None:
        if self._steps is None:
            self._steps = self._transport.steps(self._passage.info)
            self._transport.hold(self._steps)
            self._wanted = await begin(self._steps)
        while True:
            error: BaseException | None = None
            message = None
            try:
                message = await self._made().next_message()
            except GeneratorExit:  # this coroutine itself is thrown away
                raise
            except BaseException as raised:  # noqa: BLE001 - raised below, once the interceptor knows
                error = raised
            if message is not None:
                self._passage.count(message)
                return message
            self._wanted = await after(self._steps, self._passage, error)
            if self._wanted is None:
                if error is not None:
                    raise error
                return None

    def _made(self) -> AsyncByteStream:
        """The stream that the interceptor has asked for last."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            stream = self._follow(self._transport.open(self._passage.call(wanted), self._request))
            if self._cancelled:
                stream.cancel()
                raise faults.closed_while_running()
        assert self._stream is not None  # noqa: S101 - the interceptor asks before anything is read
        return self._stream


async def begin(steps: Steps | AsyncSteps) -> CallInfo:
    """The call that an interceptor asks for first."""
    if isinstance(steps, Generator):
        return intercept_sync.begin(steps)
    try:
        return await anext(steps)
    except StopAsyncIteration:
        raise not_yielded() from None


async def advance(steps: Steps | AsyncSteps, outcome: CallOutcome) -> CallInfo | None:
    """The call that an interceptor asks for next; None where it is done."""
    if isinstance(steps, Generator):
        return intercept_sync.advance(steps, outcome)
    try:
        return await steps.asend(outcome)
    except StopAsyncIteration:
        return None


async def after(steps: Steps | AsyncSteps, passage: Passage, error: BaseException | None) -> CallInfo | None:
    """Tell an interceptor how its call ended. Returns what is called again; None where the interceptor has ended."""
    wanted = None
    try:
        asked = await advance(steps, passage.outcome(error))
        if asked is not None and passage.check_again(error):
            wanted = asked
    finally:
        if wanted is None:
            await close(steps)
    return wanted


async def close(steps: Steps | AsyncSteps) -> None:
    """End an interceptor that may wait at a ``yield``."""
    if isinstance(steps, Generator):
        steps.close()
    else:
        await steps.aclose()
