"""Connect and gRPC-Web over blocking sockets: httpcore carries, quill.client.dialect understands."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import httpcore

from quill.client import faults
from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.connect import Encoding
from quill.client.dialect import Dialect, UnaryReply
from quill.client.http2_sync import Http2Connection
from quill.client.options import ClientOptions, user_agent
from quill.client.pool import Pool
from quill.client.requests import close_iterator
from quill.client.sockets import Patience, PatientBackend
from quill.client.transport import Call, SyncByteStream
from quill.errors import QuillError, RpcError

_KEEPALIVE_EXPIRY_S = 4.0
"""Idle connections are dropped before servers drop them (uvicorn: 5 s): a request that meets the end of a connection
may have run, and is not sent again."""

_LINGER_MS = 1000
"""How long the end of a body may take after the message that ends the stream."""


class ConnectSyncTransport:
    """Calls to one server over Connect or gRPC-Web, from any thread: HTTP/1.1 or HTTP/2, no proxies, no cookies."""

    def __init__(self, address: Address, options: ClientOptions) -> None:
        self.dialect = Dialect.of(address, options)
        self._address = address
        self._user_agent = user_agent()
        backend = PatientBackend(address, options.tls, http2=options.http2)
        self._peer = backend.peer
        self._pool = _pool(address, backend, http2=options.http2)
        self._waiting: set[Patience] = set()
        self.abandoned: deque[httpcore.Response] = deque()
        """Responses that nobody will read; closed with the next call."""
        self._closed = False

    def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        clock = CallClock(call, time.monotonic)
        clock.begin_wait()
        encoding = self.dialect.encoding.choose(request)
        while True:
            reply = self.dialect.unary_reply(call)
            try:
                return self._unary(call, clock, reply, request, encoding)
            except RpcError as error:
                if not self.dialect.encoding.learn(encoding, error, reply.headers):
                    raise clock.explain(error) from None
            encoding = "identity"

    def stream(self, call: Call, request: bytes | Iterable[bytes]) -> SyncByteStream:
        """Send one message, or those of an iterator; nothing is sent before the first ``next_message``."""
        return _Stream(self, call, request)

    def get_status(self, path: str, timeout_ms: int) -> int | None:
        """The HTTP status of a GET."""
        clock = CallClock(Call(service="", method="", timeout_ms=timeout_ms), time.monotonic)
        clock.begin_wait()
        patience = Patience(clock)
        with self.waiting(patience):
            response = self._send("GET", path, [("user-agent", self._user_agent)], b"", patience)
            response.close()
            return response.status

    def close(self) -> None:
        """End all calls and close the connections."""
        self._closed = True
        for patience in list(self._waiting):
            patience.cancel()
        self._close_abandoned()
        self._pool.close()

    def __del__(self) -> None:
        # A client that nobody closed. In a forked process this closes its copies; the parent's connections go on.
        with contextlib.suppress(Exception):
            self._pool.close()

    def _close_abandoned(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self.abandoned.popleft().close()

    def post(
        self, call: Call, request: bytes | Iterator[bytes], patience: Patience, *, stream: bool, encoding: Encoding
    ) -> httpcore.Response:
        """Send a request; of an iterator, the parts of its body. Returns with the head of the response.

        The caller closes the response.
        """
        headers = self.dialect.request_headers(call, stream=stream, encoding=encoding, user_agent=self._user_agent)
        if not isinstance(request, bytes):
            return self._send("POST", call.path, [*headers, ("transfer-encoding", "chunked")], request, patience)
        body = self.dialect.request_body(request, stream=stream, encoding=encoding)
        return self._send("POST", call.path, [*headers, ("content-length", str(len(body)))], body, patience)

    @contextmanager
    def waiting(self, patience: Patience) -> Iterator[None]:
        """A call uses its connection: ``close`` wakes it. Here the exceptions of httpcore become Quill's."""
        self._waiting.add(patience)
        try:
            yield
        except QuillError:
            self._check_open()
            raise
        except httpcore.RemoteProtocolError as error:
            self._check_open()
            # Only the text tells a connection that ended from one that talks nonsense.
            broke_off = "disconnected" in str(error) or "closed connection" in str(error)
            raise patience.judge(self._peer.lost() if broke_off else faults.not_http(self._address)) from None
        except Exception as error:  # noqa: BLE001 - no foreign exception leaves the transport
            self._check_open()
            raise faults.unexpected(self._address, error) from None
        finally:
            self._waiting.discard(patience)

    def _check_open(self) -> None:
        if self._closed:
            raise faults.closed_while_running() from None

    def _unary(self, call: Call, clock: CallClock, reply: UnaryReply, request: bytes, encoding: Encoding) -> bytes:
        patience = Patience(clock)
        with self.waiting(patience):
            response = self.post(call, request, patience, stream=False, encoding=encoding)
            try:
                reply.head(response.status, headers_of(response))
                for chunk in response.iter_stream():
                    reply.feed(chunk)
            finally:
                response.close()
            return reply.message()

    def _send(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes | Iterator[bytes], patience: Patience
    ) -> httpcore.Response:
        request = httpcore.Request(
            method,
            self._address.http_url + path,
            headers=[("host", self._address.authority), *headers],
            content=body,
            extensions={"timeout": {"connect": patience, "read": patience, "write": patience}},
        )
        self._close_abandoned()
        return self._pool.handle_request(request)


class _Stream:
    """The messages of one streaming call."""

    def __init__(self, transport: ConnectSyncTransport, call: Call, request: bytes | Iterable[bytes]) -> None:
        self._transport = transport
        self._call = call
        self._request = request
        self._clock = CallClock(call, time.monotonic)
        self._patience = Patience(self._clock)
        self._encoding = transport.dialect.encoding.choose(request)
        self._reply = transport.dialect.stream_reply(call)
        self._response: httpcore.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._failure: BaseException | None = None
        self._reading = threading.Lock()
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
            except RpcError as error:
                self._release()
                if self._failure is not None:
                    raise self._failure from None
                if self._clock.received_any or not self._learn(error):
                    raise self._clock.explain(error) from None
            except BaseException:
                self._release()
                raise
            else:
                if message is None:
                    self._release()
                return message
            self._start_again()
        return self.next_message()

    def cancel(self) -> None:
        """Cancel the call if it still runs, from any thread."""
        self._patience.cancel()
        if self._reading.acquire(blocking=False):  # else the thread that reads was woken, and releases
            try:
                self._release()
            finally:
                self._reading.release()

    def abandon(self) -> None:
        """As ``cancel``, without the locks of the connection pool."""
        self._patience.cancel()
        self._done = True
        if self._response is not None:
            self._transport.abandoned.append(self._response)

    def _learn(self, error: RpcError) -> bool:
        return self._transport.dialect.encoding.learn(self._encoding, error, self._reply.headers)

    def _start_again(self) -> None:
        """Prepare to send the call once more, uncompressed, after a server that did not understand it."""
        self._encoding = "identity"
        self._reply = self._transport.dialect.stream_reply(self._call)
        self._done = False

    def _next(self) -> bytes | None:
        message = self._reply.next_message()
        if message is not None:
            return message
        self._clock.begin_wait()
        with self._transport.waiting(self._patience):
            if self._response is None:
                self._open()
            while (message := self._reply.next_message()) is None:
                chunk = None if self._reply.ended else next(self._chunks, None)
                if chunk is None:
                    self._finish()
                    return None
                self._reply.feed(chunk)
        self._clock.received()
        return message

    def _open(self) -> None:
        request = self._request
        self._response = self._transport.post(
            self._call,
            request if isinstance(request, bytes) else self._parts(iter(request)),
            self._patience,
            stream=True,
            encoding=self._encoding,
        )
        self._reply.head(self._response.status, headers_of(self._response))
        self._chunks = self._response.iter_stream()

    def _parts(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        """The body of a request with several messages, which httpcore sends before it reads the response."""
        try:
            while True:
                self._patience.check()
                try:
                    message = next(requests)
                except StopIteration:
                    return
                except BaseException as error:
                    self._failure = error
                    raise
                self._clock.sent()
                yield self._transport.dialect.request_body(message, stream=True, encoding="identity")
                self._clock.sent()
        finally:
            close_iterator(requests)

    def _finish(self) -> None:
        """Read the body to its end, so that the connection can be used again, and raise what the call ended with."""
        self._clock.linger(_LINGER_MS)
        with contextlib.suppress(Exception):  # the call has ended; all that can be lost is the connection
            next(self._chunks, None)
        self._reply.finish()

    def _release(self) -> None:
        self._done = True
        response, self._response, self._chunks = self._response, None, iter(())
        if response is not None:
            self._patience.leave()  # before the connection is another call's
            response.close()


def _pool(address: Address, backend: PatientBackend, *, http2: bool) -> Pool:
    """The connections to a server; every call that runs holds one."""
    # Only a stand-in, so that httpcore makes none: the backend has the context of the moment.
    ssl_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if address.tls else None

    def connect(origin: httpcore.Origin) -> httpcore.ConnectionInterface:
        if http2:
            return Http2Connection(origin, address, backend, ssl_context)
        return httpcore.HTTPConnection(
            origin, ssl_context=ssl_context, uds=address.unix_path, network_backend=backend, keepalive_expiry=None
        )

    return Pool(connect, _KEEPALIVE_EXPIRY_S)


def headers_of(response: httpcore.Response) -> list[tuple[str, str]]:
    """The headers of a response as text."""
    return [(name.decode("ascii"), value.decode("latin-1")) for name, value in response.headers]
