"""Retries for blocking calls: a transport above that of any protocol."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from quill.client import faults
from quill.client.around import SyncStreamAround
from quill.client.retry import Attempts, Throttle
from quill.client.transport import Call, SyncByteStream, SyncTransport
from quill.errors import RpcError


class RetryingSyncTransport:
    """Sends calls again that did not run, as ``Attempts`` decides.

    Args:
        transport: Sends each attempt.
        throttle: That of the client.
        max_attempts: How often a call may be sent.
    """

    def __init__(self, transport: SyncTransport, throttle: Throttle, max_attempts: int) -> None:
        self._transport = transport
        self._throttle = throttle
        self._max_attempts = max_attempts
        self._pauses: set[threading.Event] = set()
        self._closed = False

    def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        attempts = self.attempts(call, request, unary=True)
        while True:
            try:
                reply = self._transport.unary(attempts.begin(), request)
            except RpcError as error:
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise attempts.explain(error) from None
            else:
                attempts.succeeded()
                return reply
            self.pause(wait_s, threading.Event())

    def stream(self, call: Call, request: bytes | Iterable[bytes]) -> SyncByteStream:
        """Send one message, or those of an iterator; nothing is sent before the first ``next_message``."""
        return _Stream(self, call, request)

    def close(self) -> None:
        """End all calls and close the connections."""
        self._closed = True
        for wake in list(self._pauses):
            wake.set()
        self._transport.close()

    def attempts(self, call: Call, request: bytes | Iterable[bytes], *, unary: bool) -> Attempts:
        """The attempts of a call."""
        return Attempts(
            call,
            request,
            unary=unary,
            throttle=self._throttle,
            max_attempts=self._max_attempts,
            now=time.monotonic,
        )

    def open(self, call: Call, request: bytes | Iterable[bytes]) -> SyncByteStream:
        """One attempt of a stream."""
        return self._transport.stream(call, request)

    def pause(self, wait_s: float, wake: threading.Event) -> None:
        """Wait between two attempts.

        Raises:
            Cancelled: Somebody set ``wake``, or closed the client.
        """
        self._pauses.add(wake)
        try:
            if self._closed or wake.wait(wait_s):
                raise faults.closed_while_running()
        finally:
            self._pauses.discard(wake)


class _Stream(SyncStreamAround):
    """The messages of one streaming call: those of the first attempt that brings one."""

    def __init__(self, transport: RetryingSyncTransport, call: Call, request: bytes | Iterable[bytes]) -> None:
        super().__init__(call.idle_timeout_ms)
        self._transport = transport
        self._request = request
        self._attempts = transport.attempts(call, request, unary=False)
        self._settled = False
        """Whether the current attempt is the last."""
        self._cancelled = threading.Event()

    def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK."""
        if not self._settled:
            try:
                return self._first_message()
            finally:
                self._settled = True
        return None if self._stream is None else self._stream.next_message()

    def cancel(self) -> None:
        """Cancel the call if it still runs, from any thread."""
        self._cancelled.set()
        super().cancel()

    def _first_message(self) -> bytes | None:
        while not self._cancelled.is_set():
            stream = self._follow(self._transport.open(self._attempts.begin(), self._request))
            if self._cancelled.is_set():  # in between, so that the attempt before it was cancelled
                break
            try:
                message = stream.next_message()
            except RpcError as error:
                wait_s = self._attempts.wait_s(error)
                if wait_s is None:
                    raise self._attempts.explain(error) from None
            else:
                self._attempts.succeeded()
                return message
            self._transport.pause(wait_s, self._cancelled)
        if self._stream is not None:
            self._stream.cancel()
        return None
