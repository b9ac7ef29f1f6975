"""Interceptors on an event loop: a transport around a transport for each of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator

from quill.client import faults, intercept_sync
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
from quill.client.requests import Requests
from quill.client.transport import AsyncByteStream, AsyncTransport, Call
from quill.errors import Code

_log = logging.getLogger("quill.client")

_LAST_WORDS_S = 5.0
"""How long interceptors may go on after a call that was given up, once the client is closed."""


class InterceptedAsyncTransport:
    """As InterceptedSyncTransport, on one event loop."""

    def __init__(self, transport: AsyncTransport, interceptor: AsyncInterceptor, setting: Setting) -> None:
        self._transport = transport
        self._interceptor = interceptor
        self._setting = setting
        self._tasks: set[asyncio.Task[None]] = set()
        """What interceptors still do after calls that were given up."""

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
            following = await advance(steps, passage.outcome(error))
            if following is not None and passage.check_again(error):
                wanted = following
                continue
            await close(steps)
            if error is not None:
                raise error
            return reply

    def stream(self, call: Call, request: bytes | Requests) -> AsyncByteStream:
        """Send one message, or those of an iterator; nothing is sent before the first ``next_message``."""
        return _Stream(self, Passage(call, request, self._setting, streaming=True), request, call.idle_timeout_ms)

    async def get_status(self, path: str, timeout_ms: int) -> int | None:
        """The HTTP status of a GET; None where the protocol has no GET."""
        return await self._transport.get_status(path, timeout_ms)

    async def aclose(self) -> None:
        """End all calls and close the connections."""
        await self._transport.aclose()
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=_LAST_WORDS_S)
            for task in late:
                task.cancel()

    def steps(self, info: CallInfo) -> Steps | AsyncSteps:
        """What the interceptor does for a call."""
        steps = self._interceptor(info)
        if not isinstance(steps, Generator | AsyncGenerator):
            raise no_generator(steps)
        return steps

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

        task = asyncio.get_running_loop().create_task(finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Stream:
    """The messages of one streaming call."""

    def __init__(
        self,
        transport: InterceptedAsyncTransport,
        passage: Passage,
        request: bytes | Requests,
        idle_timeout_ms: int | None,
    ) -> None:
        self._transport = transport
        self._passage = passage
        self._request = request
        self._idle_timeout_ms = idle_timeout_ms
        self._steps: Steps | AsyncSteps | None = None
        self._wanted: CallInfo | None = None
        """What the interceptor asks for and was not made yet."""
        self._stream: AsyncByteStream | None = None
        self._cancelled = False
        self._is_reading = False
        self._done = False

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the next gap may be."""
        return self._idle_timeout_ms

    @idle_timeout_ms.setter
    def idle_timeout_ms(self, value: int | None) -> None:
        self._idle_timeout_ms = value
        if self._stream is not None:
            self._stream.idle_timeout_ms = value

    async def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK."""
        if self._done:
            return None
        self._is_reading = True
        try:
            message = await self._next()
        except BaseException:
            self._done = True
            raise
        finally:
            self._is_reading = False
        self._done = self._done or message is None
        return message

    def cancel(self) -> None:
        """Cancel the call if it still runs."""
        self._cancelled = True
        if self._stream is not None:
            self._stream.cancel()
        if self._is_reading:  # the task that reads was woken, and tells the interceptor
            return
        if not self._done and self._steps is not None:
            self._transport.give_up(self._steps, self._passage.outcome(None, Code.CANCELLED))
        self._done = True

    async def _next(self) -> bytes | None:
        if self._steps is None:
            self._steps = self._transport.steps(self._passage.info)
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
            self._wanted = await advance(self._steps, self._passage.outcome(error))
            if self._wanted is None or not self._passage.check_again(error):
                await close(self._steps)
                if error is not None:
                    raise error
                return None

    def _made(self) -> AsyncByteStream:
        """The stream that the interceptor has asked for last."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self._stream = self._transport.open(self._passage.call(wanted), self._request)
            self._stream.idle_timeout_ms = self._idle_timeout_ms
            if self._cancelled:
                self._stream.cancel()
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


async def close(steps: Steps | AsyncSteps) -> None:
    """End an interceptor that may wait at a ``yield``."""
    if isinstance(steps, Generator):
        steps.close()
    else:
        await steps.aclose()
