"""gRPC on an event loop: grpc.aio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio

from quill.client import faults, grpc_status
from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.forked import check_not_forked
from quill.client.grpc_channel import Channels
from quill.client.last_words import LastWords
from quill.client.options import ClientOptions
from quill.client.requests import AsyncPump, Requests
from quill.client.transport import AsyncByteStream, Call
from quill.errors import RpcError

_PLACEHOLDER = "Internal error from Core"
"""What grpc.aio calls the status of a call that ended under a write."""
_STATUS_LOOK_S = 0.002
_STATUS_WAIT_S = 1.0
"""How long the status itself may take then."""


class GrpcAsyncTransport:
    """Calls to one server over gRPC, on one event loop."""

    def __init__(self, address: Address, options: ClientOptions) -> None:
        check_not_forked()
        self._address = address
        self._options = options
        self._closed = False
        self._pumps = LastWords()
        self.channels: Channels[Any] = Channels(address, options, grpc.aio.insecure_channel, grpc.aio.secure_channel)

    async def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        clock = CallClock(call, asyncio.get_running_loop().time)
        clock.begin_wait()
        try:
            # C-core keeps the deadline; a timer of the loop's beside it would only cost.
            channel = self.channels.current()
            running = self.channels.unary_unary(channel, call.path)(request, **self._arguments(call, request))
            reply: bytes | None = await running
            call.response.headers = grpc_status.metadata(await running.initial_metadata())
            call.response.trailers = grpc_status.metadata(await running.trailing_metadata())
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - translate knows them all
            raise self.translate(error, call, clock) from None
        return grpc_status.only(reply)

    def stream(self, call: Call, request: bytes | Requests) -> AsyncByteStream:
        """Send one message, or those of an iterator; nothing is sent before the first ``next_message``."""
        return _Stream(self, call, request)

    async def get_status(self, path: str, timeout_ms: int) -> int | None:
        """None: gRPC has no GET."""
        return None

    async def aclose(self) -> None:
        """End all calls and close the connections."""
        self._closed = True
        for channel in self.channels.living():
            await channel.close()
        self._pumps.cancel()
        await self._pumps.end()

    def start_stream(self, channel: Any, call: Call, request: bytes | Requests) -> Any:
        """Begin a streaming call, whose requests are written by ``pump``, a single one as well.

        Of a call that is given its request grpc.aio asks for the headers when it was sent, and may learn of the end of
        the call before: then it forgets them.
        """
        whole = request if isinstance(request, bytes) else None
        return channel.stream_stream(call.path)(**self._arguments(call, whole))

    def pump(self, requests: Requests, running: Any, sent: Callable[[], object]) -> AsyncPump:
        """Send requests into a call that runs; ``sent`` is told of each."""

        async def send(message: bytes) -> None:
            await running.write(message)
            sent()

        pump = AsyncPump(requests, send=send, finish=running.done_writing, fail=running.cancel)
        self._pumps.add(pump.task)
        return pump

    def _arguments(self, call: Call, request: bytes | None) -> dict[str, Any]:
        """What every kind of call is started with."""
        return {
            "timeout": grpc_status.timeout_s(call),
            "metadata": call.metadata,
            "compression": grpc_status.compression(self._options, request),
        }

    def translate(self, error: BaseException, call: Call, clock: CallClock) -> BaseException:
        """The one place where exceptions of grpc.aio become Quill's; the cancellation of a task stays what it is."""
        match error:
            case asyncio.CancelledError() if _is_being_cancelled():
                return error
            case RpcError():
                return error
            case asyncio.CancelledError():
                return faults.closed_while_running()
            case grpc.aio.AioRpcError():
                is_connected = self.channels.current().get_state() is grpc.ChannelConnectivity.READY
                status = grpc_status.rpc_error(error, self._address, self._options, is_connected=is_connected)
                call.response.headers, call.response.trailers = status.metadata, status.trailers
                own = clock.explain(status)
            case TimeoutError():
                own = clock.expired()
            case _:
                own = faults.unexpected(self._address, error)
        return faults.closed_while_running() if self._closed else own


def _is_being_cancelled() -> bool:
    """Whether somebody cancelled the current task. Without that, a CancelledError is that of the call alone."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    return None


class _Stream:
    """The messages of one streaming call."""

    def __init__(self, transport: GrpcAsyncTransport, call: Call, request: bytes | Requests) -> None:
        self._transport = transport
        self._call = call
        self._request = request
        self._clock = CallClock(call, asyncio.get_running_loop().time)
        self._channel: Any = None
        self._running: Any = None
        self._messages: AsyncIterator[bytes] | None = None
        self._pump: AsyncPump | None = None
        self._status_told: grpc.aio.AioRpcError | None = None
        self._done = False

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the next gap may be."""
        return self._clock.idle_timeout_ms

    @idle_timeout_ms.setter
    def idle_timeout_ms(self, value: int | None) -> None:
        self._clock.idle_timeout_ms = value

    async def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK."""
        if self._done:
            return None
        try:
            async with asyncio.timeout_at(self._clock.begin_wait()) as self._clock.wait:
                message = await self._next()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - translate knows them all
            self.cancel()
            if self._pump is not None and self._pump.failure is not None and not _is_being_cancelled():
                raise self._pump.failure from None
            raise self._transport.translate(error, self._call, self._clock) from None
        if message is None:
            self.cancel()
        return message

    def cancel(self) -> None:
        """Cancel the call if it still runs."""
        self._done = True
        running, self._running, self._messages = self._running, None, None
        self._channel = None
        if self._pump is not None:
            self._pump.stop()
        if running is not None:
            running.cancel()

    async def _next(self) -> bytes | None:
        messages = self._messages or self._start()
        try:
            message = await anext(messages)
        except StopAsyncIteration:
            error = None
        except grpc.aio.AioRpcError as told:
            if told.details() != _PLACEHOLDER:
                raise
            error = await self._status()
        else:
            if not self._clock.received_any:
                self._clock.received()
                self._call.response.headers = grpc_status.metadata(await self._running.initial_metadata())
            return message
        if error is not None:
            raise error
        self._call.response.headers = grpc_status.metadata(await self._running.initial_metadata())
        self._call.response.trailers = grpc_status.metadata(await self._running.trailing_metadata())
        return None

    async def _status(self) -> grpc.aio.AioRpcError | None:
        """The status of a call that ended while a request was written; None for OK."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STATUS_WAIT_S):
                while self._status_told is None:
                    # What comes after the placeholder takes its place, and grpc.aio calls nobody.
                    self._note_status(self._running)
                    await asyncio.sleep(_STATUS_LOOK_S)
        if self._status_told is None:
            return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "no status")
        return None if self._status_told.code() is grpc.StatusCode.OK else self._status_told

    def _note_status(self, running: Any) -> None:
        """Keep the status that the call ended with: a failed write puts a placeholder before it or in its place."""
        details = _at_once(running.details())
        if details == _PLACEHOLDER or self._status_told is not None:
            return
        initial, trailing = _at_once(running.initial_metadata()), _at_once(running.trailing_metadata())
        self._status_told = grpc.aio.AioRpcError(_at_once(running.code()), initial, trailing, details)

    def _start(self) -> AsyncIterator[bytes]:
        self._channel = self._transport.channels.current()
        self._running = self._transport.start_stream(self._channel, self._call, self._request)
        self._running.add_done_callback(self._note_status)
        if isinstance(self._request, bytes):
            self._pump = self._transport.pump([self._request], self._running, lambda: None)
        else:
            self._pump = self._transport.pump(self._request, self._running, self._clock.sent)
        # Not read(), which forgets what has come when the call ends before it is asked for.
        self._messages = aiter(self._running)
        return self._messages
