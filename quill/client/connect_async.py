"""Connect on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from quill.client import connect, faults
from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.connect import Encoding, RequestEncoding, StreamReply, UnaryReply
from quill.client.http1 import END
from quill.client.http_async import AsyncHttp, Response
from quill.client.options import ClientOptions, user_agent
from quill.client.transport import AsyncByteStream, Call
from quill.errors import QuillError, RpcError

_LINGER_MS = 1000
"""How long the end of a body may take after the message that ends the stream."""


class ConnectAsyncTransport:
    """Calls to one server over Connect, on one event loop: HTTP/1.1 without proxies, cookies and redirects."""

    def __init__(self, address: Address, options: ClientOptions) -> None:
        self.encoding = RequestEncoding(enabled=options.enable_compression)
        self.max_message_bytes = options.max_message_bytes
        self._address = address
        self._user_agent = user_agent()
        self._http = AsyncHttp(address)

    async def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        clock = CallClock(call, asyncio.get_running_loop().time)
        clock.begin_wait()
        encoding = self.encoding.choose(request)
        while True:
            reply = UnaryReply(call, self.max_message_bytes)
            try:
                return await self._unary(call, clock, reply, request, encoding)
            except RpcError as error:
                if not self.encoding.learn(encoding, error, reply.headers):
                    raise clock.explain(error) from None
            encoding = "identity"

    def stream(self, call: Call, request: bytes) -> AsyncByteStream:
        """Send one message; nothing is sent before the first ``next_message``."""
        return _Stream(self, call, request)

    async def get_status(self, path: str, timeout_ms: int) -> int | None:
        """The HTTP status of a GET."""
        clock = CallClock(Call(service="", method="", timeout_ms=timeout_ms), asyncio.get_running_loop().time)
        clock.begin_wait()
        async with self.waiting(clock):
            response = await self._http.send("GET", path, [("user-agent", self._user_agent)], b"")
            response.close()
            return response.status

    async def aclose(self) -> None:
        """End all calls and close the connections."""
        self._http.close()

    async def post(self, call: Call, request: bytes, *, stream: bool, encoding: Encoding) -> Response:
        """Send a request. Returns with the head of the response, which the caller closes."""
        headers = connect.request_headers(call, stream=stream, encoding=encoding, user_agent=self._user_agent)
        body = connect.request_body(request, stream=stream, encoding=encoding)
        return await self._http.send("POST", call.path, headers, body)

    @asynccontextmanager
    async def waiting(self, clock: CallClock) -> AsyncIterator[None]:
        """A call waits until its deadline. A cancellation that is not the task's own is the closing of the client."""
        try:
            async with asyncio.timeout_at(clock.deadline):
                yield
        except QuillError:
            self._check_open()
            raise
        except TimeoutError:
            raise clock.expired() from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise faults.closed_while_running() from None
        except Exception as error:  # noqa: BLE001 - no foreign exception leaves the transport
            self._check_open()
            raise faults.unexpected(self._address, error) from None

    def _check_open(self) -> None:
        if self._http.closed:
            raise faults.closed_while_running() from None

    async def _unary(
        self, call: Call, clock: CallClock, reply: UnaryReply, request: bytes, encoding: Encoding
    ) -> bytes:
        async with self.waiting(clock):
            response = await self.post(call, request, stream=False, encoding=encoding)
            try:
                reply.head(response.status, response.headers)
                while (chunk := await response.chunk()) != END:
                    reply.feed(chunk)
            finally:
                response.close()
            return reply.message()


class _Stream:
    """The messages of one streaming call."""

    def __init__(self, transport: ConnectAsyncTransport, call: Call, request: bytes) -> None:
        self._transport = transport
        self._call = call
        self._request = request
        self._clock = CallClock(call, asyncio.get_running_loop().time)
        self._encoding = transport.encoding.choose(request)
        self._reply = StreamReply(call, transport.max_message_bytes)
        self._response: Response | None = None
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
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def _learn(self, error: RpcError) -> bool:
        return self._transport.encoding.learn(self._encoding, error, self._reply.headers)

    def _start_again(self) -> None:
        """Prepare to send the call once more, uncompressed, after a server that did not understand it."""
        self._encoding = "identity"
        self._reply = StreamReply(self._call, self._transport.max_message_bytes)
        self._done = False

    async def _next(self) -> bytes | None:
        message = self._reply.next_message()
        if message is not None:
            return message
        self._clock.begin_wait()
        async with self._transport.waiting(self._clock):
            response = self._response or await self._open()
            while (message := self._reply.next_message()) is None:
                chunk = END if self._reply.ended else await response.chunk()
                if chunk == END:
                    break
                self._reply.feed(chunk)
        if message is None:
            await self._finish(response)
        else:
            self._clock.received()
        return message

    async def _open(self) -> Response:
        response = await self._transport.post(self._call, self._request, stream=True, encoding=self._encoding)
        self._response = response
        self._reply.head(response.status, response.headers)
        return response

    async def _finish(self, response: Response) -> None:
        """Read the body to its end, so that the connection can be used again, and raise what the call ended with."""
        self._clock.linger(_LINGER_MS)
        with contextlib.suppress(RpcError):  # the call has ended; all that can be lost is the connection
            async with self._transport.waiting(self._clock):
                await response.chunk()
        self._reply.finish()
