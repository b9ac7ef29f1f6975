"""HTTP/2 on an event loop: one connection, many exchanges at a time."""

from __future__ import annotations

import asyncio
import copy
import ssl
from collections.abc import Callable

from quill.client import faults
from quill.client.http import Head, HttpRequest
from quill.client.http2 import Http2, Stream
from quill.client.peer import Peer
from quill.client.socket_async import AsyncSocket
from quill.client.turns import TURN_S
from quill.errors import RpcError

_MAX_WAITING_BYTES = 256 * 1024
"""How much may wait for the socket before requests wait too."""
_MAX_CONTROL_BYTES = 1024 * 1024
"""A server that asks more than this and does not take the answers is not read any more."""
_TICK_S = 10.0
_PING_AFTER_S = 30.0
"""A server that owes an answer and says nothing for so long is asked whether it is there, and given as long again."""
_IDLE_EXPIRY_S = 60.0
"""A connection without exchanges is closed after this."""


Failure = Callable[[Stream | None], RpcError]
"""Makes the error of an exchange, or of one that could not begin."""


class Http2Connection:
    """A connection that carries many exchanges side by side.

    Args:
        socket: Belongs to this object now.
        peer: The server.
        loop: The event loop of both.
    """

    def __init__(self, socket: AsyncSocket, peer: Peer, loop: asyncio.AbstractEventLoop) -> None:
        self.http = Http2(peer.address)
        self.peer = peer
        self._socket = socket
        self._loop = loop
        self._exchanges: dict[Stream, Http2Exchange] = {}
        self._has_received = False
        self._failure: Failure | None = None
        self._is_paused = False
        self._heard_s = self._used_s = loop.time()
        self._timer = loop.call_later(_TICK_S, self._on_tick)
        socket.when_drained = self._on_drained
        socket.watch(self._on_readable)
        self.flush()

    @property
    def closed(self) -> bool:
        """Whether it is of no more use."""
        return self._socket.closed

    @property
    def is_free(self) -> bool:
        """Whether another exchange may begin."""
        return not self._socket.closed and self.http.is_free

    def check(self) -> None:
        """Raise what has ended a connection before it was of any use."""
        if self._failure is not None:
            raise faults.not_sent(self._failure(None))

    def begin(self, request: HttpRequest) -> Http2Exchange:
        """Send a request, or its head."""
        stream = self.http.begin(request)
        exchange = self._exchanges[stream] = Http2Exchange(self, stream, self._socket.written_bytes)
        if self.http.count == 1:
            self._heard_s = self._loop.time()  # an idle connection owes nothing
        self.flush()
        return exchange

    def end(self, stream: Stream) -> None:
        """An exchange is over, complete or not."""
        del self._exchanges[stream]
        self._used_s = self._loop.time()
        if self._socket.closed:
            return
        self.http.leave(stream)
        self.flush()
        self._close_if_done()

    def flush(self) -> None:
        """Send what may be sent."""
        while not self._socket.closed:
            for stream in self.http.fill(_MAX_WAITING_BYTES - self._socket.unsent_bytes):
                self._exchanges[stream].wake()
            data = self.http.data_to_send()
            self._socket.write(data)
            if not data or self._socket.unsent_bytes:  # what waits now goes on when the socket is drained
                return

    def close(self) -> None:
        """Close the connection, and wake whoever waits for it."""
        self._fail(lambda _: faults.closed_while_running())

    def _on_readable(self) -> None:
        """Take what has come."""
        try:
            until_s = self._loop.time() + TURN_S
            while (data := self._socket.read()) is not None:
                if not data:
                    self._fail(self._lost)
                    return
                self._take(data)
                if self._loop.time() >= until_s:
                    break
            self.flush()
        except OSError as error:
            self._fail(self._insecure(error) if isinstance(error, ssl.SSLError) else self._lost)
        except RpcError as error:
            broken = error
            self._socket.write(self.http.data_to_send())  # tells the peer what it did wrong, if it takes that at once
            self._fail(lambda _: copy.copy(broken))
        except Exception as error:  # noqa: BLE001 - calls would wait for ever behind an error of the library
            kind = error
            self._fail(lambda _: faults.unexpected(self.peer.address, kind))
        else:
            self._close_if_done()
            if self._socket.unsent_bytes > _MAX_CONTROL_BYTES:
                self._is_paused = True
                self._socket.watch(None)
            elif data is not None:
                # Over TLS the rest may be here already, which no event tells.
                self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not (self._is_paused or self._socket.closed):
            self._on_readable()

    def _take(self, data: bytes) -> None:
        self._has_received = self.peer.answered = True
        self._heard_s = self._loop.time()
        for stream in self.http.feed(data):
            self._exchanges[stream].wake()

    def _on_drained(self) -> None:
        self.flush()
        if self._is_paused:
            self._is_paused = False
            self._socket.watch(self._on_readable)
            self._read_on()

    def _on_tick(self) -> None:
        """Look after a connection that is silent."""
        now = self._loop.time()
        silent_s = now - self._heard_s
        if not self._exchanges:
            if now - self._used_s >= _IDLE_EXPIRY_S:
                self.close()
                return
        elif silent_s >= 2 * _PING_AFTER_S and self.http.has_pinged:
            self._fail(self._lost)
            return
        elif silent_s >= _PING_AFTER_S and not self.http.has_pinged:
            self.http.ping()
            self.flush()
        self._timer = self._loop.call_later(_TICK_S, self._on_tick)

    def _close_if_done(self) -> None:
        if self.http.is_going_away and not self._exchanges:
            self._fail(lambda _: faults.going_away(self.peer.address, self.http.goaway_code))

    def _fail(self, failure: Failure) -> None:
        """End all exchanges; each gets an error of its own."""
        if self._socket.closed:
            return
        self._failure = failure
        self._timer.cancel()
        self._socket.close()
        self.http.fail(failure)
        for exchange in self._exchanges.values():
            exchange.wake()

    def _insecure(self, error: ssl.SSLError) -> Failure:
        if self._has_received or isinstance(error, ssl.SSLEOFError):
            return self._lost
        # In TLS 1.3 the server refuses the client's certificate after the handshake, and so before any request.
        return lambda _: self.peer.insecure(error)

    def _lost(self, stream: Stream | None) -> RpcError:
        error = self.peer.lost()
        was_sent = stream is not None and self._socket.sent_bytes > self._exchanges[stream].begun_at_bytes
        return error if was_sent else faults.not_sent(error)


class Http2Exchange:
    """As ``HttpExchange``."""

    def __init__(self, connection: Http2Connection, stream: Stream, begun_at_bytes: int) -> None:
        self.begun_at_bytes = begun_at_bytes
        """How much was written to the connection before."""
        self._connection = connection
        self._http = connection.http
        self._stream = stream
        self._closed = False
        self._reading: asyncio.Future[None] | None = None
        self._sending: asyncio.Future[None] | None = None

    async def send(self, part: bytes) -> None:
        """Send a part of the body."""
        self._check_open()
        self._http.queue(self._stream, part, is_last=False)
        self._connection.flush()
        while self._stream.outgoing:
            self._sending = asyncio.get_running_loop().create_future()
            await self._sending
        self._check_open()

    async def finish(self) -> None:
        """The body ends here."""
        self._check_open()
        self._http.queue(self._stream, b"", is_last=True)
        self._connection.flush()

    async def head(self) -> Head:
        """The head of the response."""
        while (head := self._stream.head) is None:
            if self._stream.failure is not None:
                raise self._stream.failure
            await self._news()
        return head

    async def chunk(self) -> bytes:
        """The next piece of the body; END once it is complete."""
        self._check_closed()
        while (chunk := self._http.take(self._stream)) is None:
            await self._news()
        self._connection.flush()
        return chunk

    def close(self) -> None:
        """Give up what is not complete."""
        if not self._closed:
            self._closed = True
            self._stream.outgoing.clear()
            self._connection.end(self._stream)
            self.wake()

    def wake(self) -> None:
        """Something has changed."""
        for waiter in (self._reading, self._sending):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    async def _news(self) -> None:
        self._check_closed()
        self._reading = asyncio.get_running_loop().create_future()
        await self._reading
        self._check_closed()

    def _check_closed(self) -> None:
        if self._closed:
            raise faults.closed_while_running()

    def _check_open(self) -> None:
        if self._closed or self._stream.failure is not None:
            raise ConnectionAbortedError
