"""HTTP/1.1 on an event loop: one connection, one exchange at a time."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from quill.client import faults
from quill.client.http import IDLE_EXPIRY_S, Head, HttpRequest
from quill.client.http1 import Http1
from quill.client.peer import Peer
from quill.client.socket_async import AsyncSocket
from quill.errors import RpcError


class Http1Connection:
    """A connection that carries one exchange after the other.

    Args:
        socket: Belongs to this object now.
        peer: The server.
        now: A monotonic clock, in seconds.
    """

    def __init__(self, socket: AsyncSocket, peer: Peer, now: Callable[[], float]) -> None:
        self.socket = socket
        self.peer = peer
        self.http = Http1(peer)
        self.has_received = False
        """Whether the server has ever said anything."""
        self._now = now
        self._idle_since_s = now()
        self._is_fresh = True

    def begin(self, request: HttpRequest, when_closed: Callable[[Http1Connection], object]) -> Http1Exchange:
        """Send a request, or its head. ``when_closed`` is called when the exchange has closed."""
        self._is_fresh = False
        return Http1Exchange(self, request, when_closed)

    def rest(self) -> bool:
        """Prepare for the next request; whether there may be one."""
        if self.socket.closed or self.socket.unsent_bytes or not self.http.next_request():
            return False
        self.socket.watch(None)
        self._idle_since_s = self._now()
        return True

    @property
    def is_usable(self) -> bool:
        """Whether it may carry another request. What an idle connection has to say can only be its end.

        After the handshake of TLS a server may say more than that.
        """
        if self.expires_s <= self._now():
            return False
        return self._is_fresh or not self.socket.is_readable

    @property
    def expires_s(self) -> float:
        """When it is dropped, unless it is used before."""
        return self._idle_since_s + IDLE_EXPIRY_S

    def close(self) -> None:
        """Close the connection, and wake whoever waits for it."""
        self.socket.close()


class Http1Exchange:
    """As ``HttpExchange``."""

    def __init__(
        self, connection: Http1Connection, request: HttpRequest, when_closed: Callable[[Http1Connection], object]
    ) -> None:
        self._connection = connection
        self._socket = connection.socket
        self._http = connection.http
        self._when_closed = when_closed
        self._closed = False
        self._begun_at_bytes = self._socket.written_bytes
        self._socket.write(*self._http.request(request))

    async def send(self, part: bytes) -> None:
        """Send a part of the body."""
        self._check_open()
        self._socket.write(self._http.part(part))
        await self._socket.drained()

    async def finish(self) -> None:
        """The body ends here."""
        self._check_open()
        self._socket.write(self._http.end())

    async def head(self) -> Head:
        """The head of the response."""
        while (head := self._http.head()) is None:
            await self._receive()
        return head

    async def chunk(self) -> bytes:
        """The next piece of the body; END once it is complete."""
        if self._closed:
            raise faults.closed_while_running()
        while (chunk := self._http.chunk()) is None:
            await self._receive()
        return chunk

    def close(self) -> None:
        """Give the connection back. It serves again where request and response are complete."""
        if not self._closed:
            self._closed = True
            self._when_closed(self._connection)

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionAbortedError

    async def _receive(self) -> None:
        """Hand what comes to the protocol."""
        try:
            data = await self._socket.receive()
        except ssl.SSLError as error:
            if self._connection.has_received or isinstance(error, ssl.SSLEOFError):
                raise self._lost() from None
            # In TLS 1.3 the server refuses the client's certificate after the handshake, and so before the request.
            raise self._connection.peer.insecure(error) from None
        except OSError:
            raise self._lost() from None
        if not data and self._sent_nothing:
            raise self._lost()
        if data:
            self._connection.has_received = self._connection.peer.answered = True
        self._http.feed(data)

    def _lost(self) -> RpcError:
        error = self._connection.peer.lost()
        return faults.not_sent(error) if self._sent_nothing else error

    @property
    def _sent_nothing(self) -> bool:
        return self._socket.sent_bytes <= self._begun_at_bytes
