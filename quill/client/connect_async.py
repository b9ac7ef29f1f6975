"""Connect and gRPC-Web on an event loop: pyqwest carries, quill.client.dialect understands."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self, TypeVar

import pyqwest

from quill.client import faults
from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.connect import Encoding
from quill.client.dialect import Dialect, UnaryReply
from quill.client.exiting import let_threads_leave_python
from quill.client.forked import check_not_forked
from quill.client.options import ClientOptions, user_agent
from quill.client.requests import AsyncPump, Requests
from quill.client.tls import pem_parts
from quill.client.transport import AsyncByteStream, Call
from quill.errors import InvalidUsage, RpcError

_LINGER_MS = 1000
"""How long the end of a body may take after the message that ends the stream."""

_MAX_IDLE_CONNECTIONS = 256

_T = TypeVar("_T")

Buffer = bytes | bytearray | memoryview


class ConnectAsyncTransport:
    """Calls to one server over Connect or gRPC-Web, on one event loop; HTTP/2 where TLS negotiates it."""

    def __init__(self, address: Address, options: ClientOptions) -> None:
        check_not_forked("pyqwest")
        self.dialect = Dialect.of(address, options)
        self._address = address
        self._user_agent = user_agent()
        self._closed = False
        self._steps: set[asyncio.Future[Any]] = set()
        """What calls wait for now."""
        self._pumps: set[AsyncPump] = set()
        if address.unix_path is not None:
            raise InvalidUsage("AsyncQuillClient cannot call a Unix socket over HTTP: use unix:/PATH, or QuillClient")
        self._tls = options.tls
        self._answered = False
        roots, key, cert = pem_parts(options.tls) if address.tls else (None, None, None)
        let_threads_leave_python()
        self._http = pyqwest.HTTPTransport(
            tls_ca_cert=roots,
            tls_key=key,
            tls_cert=cert,
            tls_include_system_certs=address.tls and roots is None,
            # Without an explicit proxy the ones of the environment apply; one for the other scheme matches nothing.
            proxy=pyqwest.Proxy("http://127.0.0.1:9", scheme="http" if address.tls else "https"),
            http_version=pyqwest.HTTPVersion.HTTP2 if options.http2 else None,
            connect_timeout=None,  # the deadline of the call bounds it
            pool_max_idle_per_host=_MAX_IDLE_CONNECTIONS,
            use_system_dns=True,  # the names that every other program on this machine knows
            # The dialect decompresses, within bounds.
            enable_gzip=False,
            enable_brotli=False,
            enable_zstd=False,
            follow_redirects=False,
            enable_otel=False,
        )

    async def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        clock = CallClock(call, asyncio.get_running_loop().time)
        clock.begin_wait()
        encoding = self.dialect.encoding.choose(request)
        while True:
            reply = self.dialect.unary_reply(call)
            try:
                return await self._unary(call, clock, reply, request, encoding)
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
        response = await self._send("GET", path, [("user-agent", self._user_agent)], None, clock)
        await response.aclose()
        return response.status

    async def aclose(self) -> None:
        """End all calls and close the connections."""
        self._closed = True
        for step in list(self._steps):
            step.cancel()
        pumps = list(self._pumps)
        for pump in pumps:
            pump.stop()
        for pump in pumps:
            await pump.stopped()
        await self._http.aclose()

    async def post(
        self, call: Call, request: bytes | Body, clock: CallClock, *, stream: bool, encoding: Encoding
    ) -> pyqwest.Response:
        """Send a request. Returns with the head of the response, which the caller closes."""
        headers = self.dialect.request_headers(call, stream=stream, encoding=encoding, user_agent=self._user_agent)
        body = (
            self.dialect.request_body(request, stream=stream, encoding=encoding)
            if isinstance(request, bytes)
            else request
        )
        return await self._send("POST", call.path, headers, body, clock)

    def pump(self, requests: Requests, body: Body, clock: CallClock, fail: Callable[[], object]) -> AsyncPump:
        """Write requests into a body; ``fail`` ends the call when their iterator raises."""

        async def send(message: bytes) -> None:
            await body.send(self.dialect.request_body(message, stream=True, encoding="identity"))
            clock.sent()

        pump = AsyncPump(requests, send=send, finish=body.finish, fail=fail)
        self._pumps.add(pump)
        pump.when_stopped(self._pumps.discard)
        return pump

    async def chunk(self, chunks: AsyncIterator[Buffer], clock: CallClock) -> Buffer | None:
        """The next piece of a body; None at its end."""
        try:
            return await self._step(anext(chunks), clock)
        except StopAsyncIteration:
            return None

    async def _unary(
        self, call: Call, clock: CallClock, reply: UnaryReply, request: bytes, encoding: Encoding
    ) -> bytes:
        response = await self.post(call, request, clock, stream=False, encoding=encoding)
        try:
            reply.head(response.status, response.headers.items())
            chunks = aiter(response.content)
            while (chunk := await self.chunk(chunks, clock)) is not None:
                reply.feed(chunk)
        finally:
            await response.aclose()
        return reply.message()

    async def _send(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes | Body | None, clock: CallClock
    ) -> pyqwest.Response:
        request = pyqwest.Request(method, self._address.http_url + path, pyqwest.Headers(headers), body)
        response = await self._step(self._http.execute(request), clock)
        self._answered = True
        return response

    async def _step(self, step: Awaitable[_T], clock: CallClock) -> _T:
        """Wait for one thing of a call, until its deadline. Here the exceptions of pyqwest become Quill's."""
        future = asyncio.ensure_future(step)
        self._steps.add(future)
        try:
            async with asyncio.timeout_at(clock.deadline) as clock.wait:
                return await future
        except StopAsyncIteration:
            raise
        except TimeoutError:
            raise clock.expired() from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise faults.closed_while_running() from None
        except pyqwest.RemoteProtocolError as error:
            self._check_open()
            raise self._broken(str(error)) from None
        except (pyqwest.ReadError, pyqwest.WriteError):
            self._check_open()
            raise self._lost() from None
        except ConnectionError as error:
            self._check_open()
            raise faults.unreachable_text(self._address, str(error), self._tls) from None
        except Exception as error:  # noqa: BLE001 - no foreign exception leaves the transport
            self._check_open()
            raise faults.unexpected(self._address, error) from None
        finally:
            self._steps.discard(future)

    def _broken(self, text: str) -> RpcError:
        """Only the text tells a connection that ended from one that talks nonsense."""
        broke_off = re.search(
            r"closed before|close_notify|end of file|unexpected EOF|connection reset|broken pipe", text, re.I
        )
        return self._lost() if broke_off else faults.not_http(self._address)

    def _lost(self) -> RpcError:
        return faults.lost(self._address) if self._answered else faults.hung_up(self._address, self._tls)

    def _check_open(self) -> None:
        if self._closed:
            raise faults.closed_while_running() from None


class Body:
    """The body of a request that sends several messages: one writes, pyqwest reads, at most one piece lies between."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._is_taken = True
        self._aborted = False

    async def send(self, piece: bytes) -> None:
        """Returns when the piece was taken and the next is asked for."""
        await self._pieces.put(piece)
        await self._pieces.join()

    async def finish(self) -> None:
        """The body ends here."""
        await self._pieces.put(None)

    def abort(self) -> None:
        """There will be no end: a server must not take what it has for the whole."""
        self._aborted = True
        if self._pieces.empty():
            self._pieces.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._is_taken:
            self._pieces.task_done()
        piece = await self._pieces.get()
        self._is_taken = False
        if self._aborted:
            raise ConnectionAbortedError
        if piece is None:
            raise StopAsyncIteration
        return piece


class _Stream:
    """The messages of one streaming call."""

    def __init__(self, transport: ConnectAsyncTransport, call: Call, request: bytes | Requests) -> None:
        self._transport = transport
        self._call = call
        self._request = request
        self._clock = CallClock(call, asyncio.get_running_loop().time)
        self._encoding = transport.dialect.encoding.choose(request)
        self._reply = transport.dialect.stream_reply(call)
        self._response: pyqwest.Response | None = None
        self._chunks: AsyncIterator[Buffer] | None = None
        self._body: Body | None = None
        self._pump: AsyncPump | None = None
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
        if self._body is not None:
            self._body.abort()
        response, self._response, self._chunks = self._response, None, None
        if response is not None:
            response.aclose()  # acts at once; what it returns only waits

    def _learn(self, error: RpcError) -> bool:
        return self._transport.dialect.encoding.learn(self._encoding, error, self._reply.headers)

    def _start_again(self) -> None:
        """Prepare to send the call once more, uncompressed, after a server that did not understand it."""
        self._encoding = "identity"
        self._reply = self._transport.dialect.stream_reply(self._call)
        self._done = False

    async def _next(self) -> bytes | None:
        message = self._reply.next_message()
        if message is not None:
            return message
        self._clock.begin_wait()
        chunks = self._chunks or await self._open()
        while (message := self._reply.next_message()) is None:
            chunk = None if self._reply.ended else await self._transport.chunk(chunks, self._clock)
            if chunk is None:
                await self._finish(chunks)
                return None
            self._reply.feed(chunk)
        self._clock.received()
        return message

    async def _open(self) -> AsyncIterator[Buffer]:
        body: bytes | Body
        if isinstance(self._request, bytes):
            body = self._request
        else:
            body = self._body = Body()
            self._pump = self._transport.pump(self._request, body, self._clock, self._break_off)
        self._response = await self._transport.post(self._call, body, self._clock, stream=True, encoding=self._encoding)
        self._reply.head(self._response.status, self._response.headers.items())
        self._chunks = aiter(self._response.content)
        return self._chunks

    async def _finish(self, chunks: AsyncIterator[Buffer]) -> None:
        """Read the body to its end, so that the connection can be used again, and raise what the call ended with."""
        self._clock.linger(_LINGER_MS)
        with contextlib.suppress(RpcError):  # the call has ended; all that can be lost is the connection
            await self._transport.chunk(chunks, self._clock)
        self._reply.finish()
