"""Interceptors of blocking calls: a transport around a transport for each of them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Generator, Iterable

from quill.client import faults
from quill.client.around import SyncStreamAround
from quill.client.interceptors import (
    CallInfo,
    CallOutcome,
    Interceptor,
    Passage,
    Setting,
    Steps,
    no_generator,
    not_yielded,
)
from quill.client.transport import Call, SyncByteStream, SyncTransport
from quill.errors import Code

_log = logging.getLogger("quill.client")


class InterceptedSyncTransport:
    """Makes calls through one interceptor.

    Args:
        transport: Makes the calls that the interceptor yields.
        interceptor: Sees them.
        setting: What it needs to know of the client.
    """

    def __init__(self, transport: SyncTransport, interceptor: Interceptor, setting: Setting) -> None:
        self._transport = transport
        self._interceptor = interceptor
        self._setting = setting
        self._running: set[Steps] = set()
        """Those of streams: held, so that the garbage collector, which finds the streams, does not end them itself."""
        self._left: deque[tuple[Steps, CallOutcome]] = deque()
        """Those whose streams nobody closed, and what they are still to be told."""

    def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        passage = Passage(call, request, self._setting, streaming=False)
        steps = self.steps(passage.info)
        wanted = begin(steps)
        while True:
            reply = b""
            error: BaseException | None = None
            try:
                reply = self._transport.unary(passage.call(wanted), request)
                passage.count(reply)
            except BaseException as raised:  # noqa: BLE001 - raised below, once the interceptor knows
                error = raised
            following = after(steps, passage, error)
            if following is not None:
                wanted = following
                continue
            if error is not None:
                raise error
            return reply

    def stream(self, call: Call, request: bytes | Iterable[bytes]) -> SyncByteStream:
        """Send one message, or those of an iterator; nothing is sent before the first ``next_message``."""
        return _Stream(self, Passage(call, request, self._setting, streaming=True), request, call.idle_timeout_ms)

    def close(self) -> None:
        """End all calls and close the connections."""
        self._transport.close()
        self._tell_left()

    def steps(self, info: CallInfo) -> Steps:
        """What the interceptor does for a call."""
        self._tell_left()
        steps = self._interceptor(info)
        if not isinstance(steps, Generator):
            raise no_generator(steps)
        return steps

    def hold(self, steps: Steps) -> None:
        """Keep what an interceptor does for a stream, until ``release``."""
        self._running.add(steps)

    def release(self, steps: Steps) -> None:
        """It is done. May be called again."""
        self._running.discard(steps)

    def leave(self, steps: Steps, outcome: CallOutcome) -> None:
        """Tell an interceptor that nobody reads on, with the next call or at the end.

        Not now: this is a finalizer, whose thread may hold the very lock that the interceptor asks for.
        """
        self._left.append((steps, outcome))

    def _tell_left(self) -> None:
        while self._left:
            try:
                steps, outcome = self._left.popleft()
            except IndexError:  # another thread was faster
                return
            self.release(steps)
            give_up(steps, outcome)

    def open(self, call: Call, request: bytes | Iterable[bytes]) -> SyncByteStream:
        """A stream that the interceptor asks for."""
        return self._transport.stream(call, request)


class _Stream(SyncStreamAround):
    """The messages of one streaming call."""

    def __init__(
        self,
        transport: InterceptedSyncTransport,
        passage: Passage,
        request: bytes | Iterable[bytes],
        idle_timeout_ms: int | None,
    ) -> None:
        super().__init__(idle_timeout_ms)
        self._transport = transport
        self._passage = passage
        self._request = request
        self._steps: Steps | None = None
        self._wanted: CallInfo | None = None
        """What the interceptor asks for and was not made yet."""
        self._cancelled = False
        self._reading = threading.Lock()
        self._done = False

    def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK."""
        with self._reading:
            if self._done:
                return None
            try:
                message = self._next()
            except BaseException:
                self._end()
                raise
            if message is None:
                self._end()
            return message

    def cancel(self) -> None:
        """Cancel the call if it still runs, from any thread."""
        self._cancelled = True
        super().cancel()
        if self._reading.acquire(blocking=False):  # else the thread that reads was woken, and tells the interceptor
            try:
                self._give_up()
            finally:
                self._reading.release()

    def abandon(self) -> None:
        """As ``cancel``, for a finalizer."""
        super().abandon()
        if not self._done and self._steps is not None:
            self._transport.leave(self._steps, self._passage.outcome(None, Code.CANCELLED))
        self._done = True

    def _next(self) -> bytes | None:
        if self._steps is None:
            self._steps = self._transport.steps(self._passage.info)
            self._transport.hold(self._steps)
            self._wanted = begin(self._steps)
        while True:
            message: bytes | None = None
            error: BaseException | None = None
            try:
                message = self._made().next_message()
            except BaseException as raised:  # noqa: BLE001 - raised below, once the interceptor knows
                error = raised
            if message is not None:
                self._passage.count(message)
                return message
            self._wanted = after(self._steps, self._passage, error)
            if self._wanted is None:
                if error is not None:
                    raise error
                return None

    def _made(self) -> SyncByteStream:
        """The stream that the interceptor has asked for last."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            stream = self._follow(self._transport.open(self._passage.call(wanted), self._request))
            if self._cancelled:
                stream.cancel()
                raise faults.closed_while_running()
        assert self._stream is not None  # noqa: S101 - the interceptor asks before anything is read
        return self._stream

    def _give_up(self) -> None:
        """Tell the interceptor that nobody reads on."""
        if not self._done and self._steps is not None:
            give_up(self._steps, self._passage.outcome(None, Code.CANCELLED))
        self._end()

    def _end(self) -> None:
        self._done = True
        if self._steps is not None:
            self._transport.release(self._steps)


def begin(steps: Steps) -> CallInfo:
    """The call that an interceptor asks for first."""
    try:
        return next(steps)
    except StopIteration:
        raise not_yielded() from None


def advance(steps: Steps, outcome: CallOutcome) -> CallInfo | None:
    """The call that an interceptor asks for next; None where it is done."""
    with contextlib.suppress(StopIteration):
        return steps.send(outcome)
    return None


def after(steps: Steps, passage: Passage, error: BaseException | None) -> CallInfo | None:
    """Tell an interceptor how its call ended. Returns what is called again; None where the interceptor has ended."""
    wanted = None
    try:
        asked = advance(steps, passage.outcome(error))
        if asked is not None and passage.check_again(error):
            wanted = asked
    finally:
        if wanted is None:
            steps.close()
    return wanted


def give_up(steps: Steps, outcome: CallOutcome) -> None:
    """Tell an interceptor that nobody reads on; what it raises has no reader either."""
    try:
        advance(steps, outcome)
        steps.close()
    except Exception:  # noqa: BLE001 - told to the log
        _log.exception("an interceptor failed after its call was given up")
