"""Connect, gRPC-Web and the Quill protocol on an event loop.

``quill.client.http_async`` carries, ``quill.client.dialect`` understands.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from quill.client import faults
from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.connect import Encoding
from quill.client.dialect import Dialect, UnaryReply
from quill.client.http import END, Head, HttpExchange, HttpRequest
from quill.client.http_async import AsyncHttp
from quill.client.last_words import LastWords
from quill.client.options import ClientOptions
from quill.client.requests import AsyncPump, Requests
from quill.client.transport import LINGER_MS, AsyncByteStream, Call
from quill.client.turns import Turns
from quill.errors import QuillError, RpcError
from quill.wire.large import INLINE_DECOMPRESS_BYTES

_ENCODING_HEADERS = frozenset({"content-encoding", "connect-content-encoding", "grpc-encoding"})

_T = TypeVar("_T")


class ConnectAsyncTransport:
    """Calls to one server in a dialect, on one event loop: HTTP/1.1 or HTTP/2."""

    def __init__(self, address: Address, options: ClientOptions) -> None:
        self.dialect = Dialect.of(address, options)
        self._address = address
        self._closed = False
        self._waiting: set[CallClock] = set()
        """The clocks of the calls that wait now."""
        self._pumps = LastWords()
        self._http = AsyncHttp(address, options)

    async def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        clock = CallClock(call, asyncio.get_running_loop().time)
        clock.begin_wait()
        encoding = self.dialect.encoding.choose(request)
        while True:
            reply = self.dialect.unary_reply(call)
            try:
                return await self.step(self._unary(call, reply, request, encoding), clock)
            except RpcError as error:
                if not self.dialect.encoding.learn(encoding, error, reply.headers):
                    raise clock.explain(error) from None
            encoding = "identity"

    def stream(self, call: Call, request: bytes | Requests) -> AsyncByteStream:
        """Send one message, or those of an iterator; nothing is sent before the first ``next_message``."""
        return _Stream(self, call, request)

    async def get_status(self, path: str, timeout_ms: int) -> int | None:
        """The HTTP status of a GET."""
        clock = CallClock(Call(service="", method="", timeout_ms=timeout_ms), asyncio.get_running_loop().time)
        clock.begin_wait()
        return await self.step(self._get_status(path), clock)

    async def aclose(self) -> None:
        """End all calls and close the connections."""
        self._closed = True
        for clock in self._waiting:
            clock.interrupt()
        self._pumps.cancel()
        self._http.close()
        await self._pumps.end()

    async def open(self, request: HttpRequest) -> HttpExchange:
        """Send a request, or the head of one whose messages follow. The caller closes the exchange."""
        return await self._http.open(request)

    def pump(
        self,
        requests: Requests,
        exchange: HttpExchange,
        clock: CallClock,
        encoding: Encoding,
        fail: Callable[[], object],
    ) -> AsyncPump:
        """Send requests; ``fail`` ends the call when their iterator raises."""

        async def send(message: bytes) -> None:
            await exchange.send(self.dialect.request_part(message, encoding))
            clock.sent()

        async def finish() -> None:
            if self.dialect.request_end:
                await exchange.send(self.dialect.request_end)
            await exchange.finish()

        pump = AsyncPump(requests, send=send, finish=finish, fail=fail)
        self._pumps.add(pump.task)
        return pump

    async def step(self, work: Coroutine[Any, Any, _T], clock: CallClock) -> _T:
        """Wait for something of a call, until its deadline or an interruption."""
        self._waiting.add(clock)
        try:
            async with asyncio.timeout_at(clock.deadline) as clock.wait:
                return await work
        except QuillError:
            self._check_open()
            raise
        except TimeoutError:
            self._check_open()
            raise clock.expired() from None
        except Exception as error:  # noqa: BLE001 - no foreign exception leaves the transport
            self._check_open()
            raise faults.unexpected(self._address, error) from None
        finally:
            self._waiting.discard(clock)

    def _check_open(self) -> None:
        if self._closed:
            raise faults.closed_while_running() from None

    async def _unary(self, call: Call, reply: UnaryReply, request: bytes, encoding: Encoding) -> bytes:
        turns = Turns(asyncio.get_running_loop().time)
        fed_bytes = 0
        exchange = await self.open(self.dialect.unary_request(call, request, encoding))
        try:
            head = await exchange.head()
            reply.head(head.status, head.headers)
            while (chunk := await exchange.chunk()) != END:
                reply.feed(chunk)
                fed_bytes += len(chunk)
                await turns.give()
        finally:
            exchange.close()
        if fed_bytes > INLINE_DECOMPRESS_BYTES and _is_compressed(head):
            return await asyncio.to_thread(reply.message)
        return reply.message()

    async def _get_status(self, path: str) -> int:
        headers = [("user-agent", self.dialect.user_agent)]
        exchange = await self.open(HttpRequest("GET", self._address.path + path, headers, b""))
        try:
            return (await exchange.head()).status
        finally:
            exchange.close()


def _is_compressed(head: Head) -> bool:
    """Whether messages of an answer may be compressed, in any dialect."""
    return any(name in _ENCODING_HEADERS and value != "identity" for name, value in head.headers)


class _Stream:
    """The messages of one streaming call."""

    def __init__(self, transport: ConnectAsyncTransport, call: Call, request: bytes | Requests) -> None:
        self._transport = transport
        self._call = call
        self._request = request
        now = asyncio.get_running_loop().time
        self._clock = CallClock(call, now)
        self._turns = Turns(now)
        self._encoding = transport.dialect.encoding.choose(request)
        self._reply = transport.dialect.stream_reply(call)
        self._exchange: HttpExchange | None = None
        self._pump: AsyncPump | None = None
        self._is_compressed = False
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
            message = await self._next()
        except RpcError as error:
            if self._pump is not None and self._pump.failure is not None:
                self.cancel()
                raise self._pump.failure from None
            if self._done:  # another task has cancelled the call
                raise faults.closed_while_running() from None
            self.cancel()
            if self._clock.received_any or not self._learn(error):
                raise self._clock.explain(error) from None
        except BaseException:
            self.cancel()
            raise
        else:
            if message is None:
                self.cancel()
            return message
        self._start_again()
        return await self.next_message()

    def cancel(self) -> None:
        """Cancel the call if it still runs; the connection of one that has ended stays."""
        self._done = True
        if self._pump is not None:
            self._pump.stop()
        self._break_off()

    def _break_off(self) -> None:
        """End the exchange; whoever waits for it gets an error."""
        if self._exchange is not None:
            self._exchange.close()
        self._clock.interrupt()

    def _learn(self, error: RpcError) -> bool:
        return self._transport.dialect.encoding.learn(self._encoding, error, self._reply.headers)

    def _start_again(self) -> None:
        """Prepare to send the call once more, uncompressed, after a server that did not understand it."""
        self._encoding = "identity"
        self._reply = self._transport.dialect.stream_reply(self._call)
        self._exchange = None
        self._done = False

    async def _next(self) -> bytes | None:
        # Messages that are here already wait too when others on the loop did: the deadline may be among these.
        if not self._turns.is_due and (message := self._reply.next_message()) is not None:
            return message
        self._clock.begin_wait()
        message = await self._transport.step(self._read(), self._clock)
        if message is None:
            await self._finish()
        else:
            self._clock.received()
        return message

    async def _read(self) -> bytes | None:
        """The next message; None at the end of the answer."""
        await self._turns.give()
        exchange = self._exchange or await self._open()
        fed_bytes = 0
        while (message := await self._parse(fed_bytes)) is None:
            await self._turns.give()
            chunk = END if self._reply.ended else await exchange.chunk()
            if chunk == END:
                return None
            self._reply.feed(chunk)
            fed_bytes += len(chunk)
        return message

    async def _parse(self, fed_bytes: int) -> bytes | None:
        """The next message that is complete. What took so many bytes is large, and decompressed in a thread."""
        if fed_bytes > INLINE_DECOMPRESS_BYTES and self._is_compressed:
            return await asyncio.to_thread(self._reply.next_message)
        return self._reply.next_message()

    async def _open(self) -> HttpExchange:
        transport, encoding = self._transport, self._encoding
        whole = self._request if isinstance(self._request, bytes) else None
        exchange = await transport.open(transport.dialect.stream_request(self._call, whole, encoding))
        self._exchange = exchange
        if not isinstance(self._request, bytes):
            self._pump = transport.pump(self._request, exchange, self._clock, encoding, self._break_off)
        head = await exchange.head()
        self._is_compressed = _is_compressed(head)
        self._reply.head(head.status, head.headers)
        return exchange

    async def _finish(self) -> None:
        """Read the body to its end, so that the connection can be used again, and raise what the call ended with."""
        exchange = self._exchange
        if exchange is not None:
            self._clock.linger(LINGER_MS)
            with contextlib.suppress(RpcError):  # the call has ended; all that can be lost is the connection
                await self._transport.step(exchange.chunk(), self._clock)
        self._reply.finish()
