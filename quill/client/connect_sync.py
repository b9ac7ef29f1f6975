"""Connect, gRPC-Web and the Quill protocol over blocking sockets.

``quill.client.http_sync`` carries, ``quill.client.dialect`` understands.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from quill.client import faults
from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.connect import Encoding
from quill.client.dialect import Dialect, UnaryReply
from quill.client.http import END, IDLE_EXPIRY_S, HttpRequest
from quill.client.http_sync import Connection, Exchange
from quill.client.options import ClientOptions
from quill.client.peer import Peer
from quill.client.pool import Pool
from quill.client.requests import close_iterator
from quill.client.sockets import Patience
from quill.client.transport import LINGER_MS, Call, SyncByteStream
from quill.errors import QuillError, RpcError


class ConnectSyncTransport:
    """Calls to one server in a dialect, from any thread: HTTP/1.1 or HTTP/2, no proxies, no cookies."""

    def __init__(self, address: Address, options: ClientOptions) -> None:
        self.dialect = Dialect.of(address, options)
        self._address = address
        self._waiting: set[Patience] = set()
        self.abandoned: deque[Exchange] = deque()
        """Those whose responses nobody will read; closed with the next call."""
        peer = Peer.of(address, options.tls, ["h2" if options.http2 else "http/1.1"])
        connect = functools.partial(Connection.open, peer, http2=options.http2)
        self._pool = Pool(connect, IDLE_EXPIRY_S)
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
        headers = [("user-agent", self.dialect.user_agent)]
        with self.waiting(patience):
            exchange = self.open(HttpRequest("GET", self._address.path + path, headers, b""), patience)
            try:
                return exchange.head().status
            finally:
                exchange.close()

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
            self._pool.forget()

    def _close_abandoned(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self.abandoned.popleft().close()

    def open(self, request: HttpRequest, patience: Patience, parts: Iterator[bytes] | None = None) -> Exchange:
        """Send a request; where it has no body yet, in parts. The caller closes the exchange."""
        self._close_abandoned()
        return self._pool.open(request, patience, parts)

    @contextmanager
    def waiting(self, patience: Patience) -> Iterator[None]:
        """A call uses its connection: ``close`` wakes it."""
        self._waiting.add(patience)
        try:
            self._check_open()  # a close that came before would not end this wait
            yield
        except QuillError:
            self._check_open()
            raise
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
            exchange = self.open(self.dialect.unary_request(call, request, encoding), patience)
            try:
                head = exchange.head()
                reply.head(head.status, head.headers)
                while (chunk := exchange.chunk()) != END:
                    reply.feed(chunk)
            finally:
                exchange.close()
            return reply.message()


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
        self._exchange: Exchange | None = None
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
        if self._exchange is not None:
            self._transport.abandoned.append(self._exchange)

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
            exchange = self._exchange or self._open()
            while (message := self._reply.next_message()) is None:
                chunk = END if self._reply.ended else exchange.chunk()
                if chunk == END:
                    self._finish(exchange)
                    return None
                self._reply.feed(chunk)
        self._clock.received()
        return message

    def _open(self) -> Exchange:
        requests = None if isinstance(self._request, bytes) else iter(self._request)
        whole = self._request if isinstance(self._request, bytes) else None
        request = self._transport.dialect.stream_request(self._call, whole, self._encoding)
        parts = None if requests is None else self._parts(requests)
        self._exchange = exchange = self._transport.open(request, self._patience, parts)
        head = exchange.head()
        self._reply.head(head.status, head.headers)
        return exchange

    def _parts(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        """The body of a request with several messages: each is pulled when the one before has left."""
        try:
            while True:
                self._patience.check()
                try:
                    message = next(requests)
                except StopIteration:
                    break
                except BaseException as error:
                    self._failure = error
                    raise
                self._clock.sent()
                if self._clock.received_any:  # the time that the iterator takes in this thread is no gap
                    self._clock.begin_wait()
                yield self._transport.dialect.request_part(message, self._encoding)
                self._clock.sent()
            if self._transport.dialect.request_end:
                yield self._transport.dialect.request_end
        finally:
            close_iterator(requests)

    def _finish(self, exchange: Exchange) -> None:
        """Read the body to its end, so that the connection can be used again, and raise what the call ended with."""
        if exchange.has_asked:
            self._clock.linger(LINGER_MS)
            with contextlib.suppress(Exception):  # the call has ended; all that can be lost is the connection
                exchange.chunk()
        self._reply.finish()

    def _release(self) -> None:
        self._done = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
