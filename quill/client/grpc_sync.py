"""gRPC with blocking calls: grpcio."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from quill.client import faults, grpc_status
from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.grpc_channel import Channels
from quill.client.options import ClientOptions
from quill.client.requests import close_iterator
from quill.client.transport import Call, SyncByteStream
from quill.client.watchdog import Watch, Watchdog
from quill.errors import RpcError


class GrpcSyncTransport:
    """Calls to one server over gRPC, from any thread."""

    def __init__(self, address: Address, options: ClientOptions) -> None:
        self.watchdog = Watchdog()
        self._address = address
        self._options = options
        self._closed = False
        self.channels: Channels[Any] = Channels(address, options, grpc.insecure_channel, grpc.secure_channel)

    def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        clock = CallClock(call, time.monotonic)
        clock.begin_wait()
        try:
            channel = self.channels.current()
            method = self.channels.unary_unary(channel, call.path)
            reply, ended = method.with_call(request, **self._arguments(call, request))
        except Exception as error:  # noqa: BLE001 - no foreign exception leaves the transport
            raise self.translate(error, call, clock) from None
        call.response.headers = grpc_status.metadata(ended.initial_metadata())
        call.response.trailers = grpc_status.metadata(ended.trailing_metadata())
        return grpc_status.only(reply)

    def stream(self, call: Call, request: bytes | Iterable[bytes]) -> SyncByteStream:
        """Send one message, or those of an iterator; nothing is sent before the first ``next_message``."""
        return _Stream(self, call, request)

    def get_status(self, path: str, timeout_ms: int) -> int | None:
        """None: gRPC has no GET."""
        return None

    def close(self) -> None:
        """End all calls and close the connections."""
        self._closed = True
        for channel in self.channels.living():
            channel.close()

    def start_stream(self, channel: Any, call: Call, request: bytes | Iterator[bytes]) -> Any:
        """Begin a streaming call; an iterator is read in a thread of its own."""
        if isinstance(request, bytes):
            return channel.unary_stream(call.path)(request, **self._arguments(call, request))
        return channel.stream_stream(call.path)(request, **self._arguments(call, None))

    def translate(self, error: Exception, call: Call, clock: CallClock) -> RpcError:
        """The one place where exceptions of grpcio become Quill's."""
        if self._closed:
            return faults.closed_while_running()
        match error:
            case grpc.Call():
                status = grpc_status.rpc_error(error, self._address, self._options, is_connected=self._is_connected())
                call.response.headers, call.response.trailers = status.metadata, status.trailers
                return clock.explain(status)
            case RpcError():
                return error
        return faults.unexpected(self._address, error)

    def _is_connected(self) -> bool | None:
        """Whether the channel has a connection; None where that cannot be known."""
        # The blocking channel's own way to ask is a subscription, which polls in a thread of its own.
        inner = getattr(self.channels.current(), "_channel", None)
        check = getattr(inner, "check_connectivity_state", None)
        return None if check is None else check(False) == grpc.ChannelConnectivity.READY.value[0]

    def _arguments(self, call: Call, request: bytes | None) -> dict[str, Any]:
        return {
            "timeout": grpc_status.timeout_s(call),
            "metadata": call.metadata,
            "compression": grpc_status.compression(self._options, request),
        }


class _Stream:
    """The messages of one streaming call."""

    def __init__(self, transport: GrpcSyncTransport, call: Call, request: bytes | Iterable[bytes]) -> None:
        self._transport = transport
        self._call = call
        self._request = request
        self._clock = CallClock(call, time.monotonic)
        self._watch = Watch(self._cancel_call)
        self._channel: Any = None
        self._running: Any = None
        self._has_begun = threading.Event()
        self._failure: BaseException | None = None
        self._reading = threading.Lock()
        self._cancelled = False
        self._done = False

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the next gap may be."""
        return self._clock.idle_timeout_ms

    @idle_timeout_ms.setter
    def idle_timeout_ms(self, value: int | None) -> None:
        self._clock.idle_timeout_ms = value

    def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK."""
        with self._reading:
            if self._done:
                return None
            try:
                message = self._next()
            except Exception as error:  # noqa: BLE001 - no foreign exception leaves the transport
                self._release()
                raise (self._failure or self._explain(error)) from None
            except BaseException:
                self._release()
                raise
            if message is None:
                self._release()
            return message

    def cancel(self) -> None:
        """Cancel the call if it still runs, from any thread."""
        self._cancelled = True
        self._cancel_call()
        if self._reading.acquire(blocking=False):  # else the thread that reads was woken, and releases
            try:
                self._release()
            finally:
                self._reading.release()

    def abandon(self) -> None:
        """As ``cancel``: every lock on the way can be taken twice."""
        self.cancel()

    def _next(self) -> bytes | None:
        self._transport.watchdog.begin(self._watch, self._clock.begin_wait())
        try:
            if self._running is None:
                self._begin()
            if self._cancelled or self._watch.fired:  # before there was a call to cancel
                self._cancel_call()
            message = next(self._running, None)
        finally:
            self._transport.watchdog.end(self._watch)
        if message is None:
            self._call.response.trailers = grpc_status.metadata(self._running.trailing_metadata())
        if not self._clock.received_any:
            self._call.response.headers = grpc_status.metadata(self._running.initial_metadata())
        if message is not None:
            self._clock.received()
        return message

    def _begin(self) -> None:
        request = self._request
        try:
            self._channel = self._transport.channels.current()
            self._running = self._transport.start_stream(
                self._channel, self._call, request if isinstance(request, bytes) else self._pull(iter(request))
            )
        finally:
            self._has_begun.set()

    def _pull(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        """What grpc reads in its own thread: ends, and never raises, which grpc would log."""
        self._has_begun.wait()
        try:
            while not self._done:
                try:
                    message = next(requests)
                except StopIteration:
                    return
                except BaseException as error:  # noqa: BLE001 - handed to whoever reads the replies
                    self._failure = error
                    self._cancel_call()  # before the return, which would tell the server that all was sent
                    return
                yield message
                self._sent()
        finally:
            close_iterator(requests)

    def _sent(self) -> None:
        """A request was taken: the wait for the first reply begins anew."""
        if not self._clock.received_any:
            self._transport.watchdog.extend(self._watch, self._clock.sent())

    def _explain(self, error: Exception) -> RpcError:
        if self._watch.fired:
            return self._clock.expired()
        if self._cancelled:
            return faults.closed_while_running()
        return self._transport.translate(error, self._call, self._clock)

    def _cancel_call(self) -> None:
        running = self._running
        if running is not None:
            running.cancel()

    def _release(self) -> None:
        self._done = True
        self._cancel_call()
        self._channel = None
        self._transport.watchdog.forget(self._watch)
