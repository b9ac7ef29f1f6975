"""Retries on an event loop: a transport above that of any protocol."""

from __future__ import annotations

import asyncio

from quill.client import faults
from quill.client.around import AsyncStreamAround
from quill.client.requests import Requests
from quill.client.retry import Attempts, Throttle
from quill.client.transport import AsyncByteStream, AsyncTransport, Call
from quill.errors import RpcError


class RetryingAsyncTransport:
    """As RetryingSyncTransport, on one event loop."""

    def __init__(self, transport: AsyncTransport, throttle: Throttle, max_attempts: int) -> None:
        self._transport = transport
        self._throttle = throttle
        self._max_attempts = max_attempts
        self._pauses: set[asyncio.Event] = set()
        self._closed = False

    async def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        attempts = self.attempts(call, request, unary=True)
        while True:
            try:
                reply = await self._transport.unary(attempts.begin(), request)
            except RpcError as error:
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise attempts.explain(error) from None
            else:
                attempts.succeeded()
                return reply
            await self.pause(wait_s, asyncio.Event())

    def stream(self, call: Call, request: bytes | Requests) -> AsyncByteStream:
        """Send one message, or those of an iterator; nothing is sent before the first ``next_message``."""
        return _Stream(self, call, request)

    async def aclose(self) -> None:
        """End all calls and close the connections."""
        self._closed = True
        for wake in self._pauses:
            wake.set()
        await self._transport.aclose()

    def attempts(self, call: Call, request: bytes | Requests, *, unary: bool) -> Attempts:
        """The attempts of a call."""
        return Attempts(
            call,
            request,
            unary=unary,
            throttle=self._throttle,
            max_attempts=self._max_attempts,
            now=asyncio.get_running_loop().time,
        )

    def open(self, call: Call, request: bytes | Requests) -> AsyncByteStream:
        """One attempt of a stream."""
        return self._transport.stream(call, request)

    async def pause(self, wait_s: float, wake: asyncio.Event) -> None:
        """Wait between two attempts.

        Raises:
            Cancelled: Somebody set ``wake``, or closed the client.
        """
        self._pauses.add(wake)
        try:
            if not self._closed:
                async with asyncio.timeout(wait_s):
                    await wake.wait()
            raise faults.closed_while_running()
        except TimeoutError:
            return
        finally:
            self._pauses.discard(wake)


class _Stream(AsyncStreamAround):
    """The messages of one streaming call: those of the first attempt that brings one."""

    def __init__(self, transport: RetryingAsyncTransport, call: Call, request: bytes | Requests) -> None:
        super().__init__(call.idle_timeout_ms)
        self._transport = transport
        self._request = request
        self._attempts = transport.attempts(call, request, unary=False)
        self._settled = False
        """Whether the current attempt is the last."""
        self._cancelled = asyncio.Event()

    async def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK."""
        if not self._settled:
            try:
                return await self._first_message()
            finally:
                self._settled = True
        return None if self._stream is None else await self._stream.next_message()

    def cancel(self) -> None:
        """Cancel the call if it still runs."""
        self._cancelled.set()
        super().cancel()

    async def _first_message(self) -> bytes | None:
        while not self._cancelled.is_set():
            stream = self._follow(self._transport.open(self._attempts.begin(), self._request))
            try:
                message = await stream.next_message()
            except RpcError as error:
                wait_s = self._attempts.wait_s(error)
                if wait_s is None:
                    raise self._attempts.explain(error) from None
            else:
                self._attempts.succeeded()
                return message
            await self._transport.pause(wait_s, self._cancelled)
        return None
