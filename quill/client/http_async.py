"""HTTP on an event loop: the connections to one server, HTTP/1.1 or HTTP/2. No proxies, no cookies, no redirects."""

from __future__ import annotations

import asyncio
import copy
import weakref

from quill.client import faults
from quill.client.address import Address
from quill.client.connecting import connect
from quill.client.http import HttpExchange, HttpRequest
from quill.client.http1_async import Http1Connection
from quill.client.http2_async import Http2Connection
from quill.client.options import ClientOptions
from quill.client.peer import Peer
from quill.errors import RpcError

Connection = Http1Connection | Http2Connection


class AsyncHttp:
    """The connections to one server, on the running event loop.

    Over TLS the server chooses the version of HTTP. HTTP/1.1 has as many connections as there are exchanges, HTTP/2
    one, and another when the server takes no more on it.

    Args:
        address: The server.
        options: The client's settings. With ``http2`` nothing else is spoken: in clear text with prior knowledge.
    """

    def __init__(self, address: Address, options: ClientOptions) -> None:
        self._peer = Peer.of(address, options.tls, ["h2"] if options.http2 else ["h2", "http/1.1"])
        self._loop = asyncio.get_running_loop()
        self._needs_http2 = options.http2
        self._speaks_http2: bool | None = None if address.tls else options.http2
        """None where that is not known yet."""
        self._idle: list[Http1Connection] = []
        """The one used last is last."""
        self._expiry: asyncio.TimerHandle | None = None
        """Set while there are idle connections, whose server may have gone."""
        self._busy: set[Http1Connection] = set()
        self._shared: list[Http2Connection] = []
        self._opening: _Opening | None = None
        """The connection that several wait for."""
        self._closed = False

    async def open(self, request: HttpRequest) -> HttpExchange:
        """Begin an exchange. The caller closes it, and bounds all waits.

        Raises:
            RpcError: The server cannot be reached; marked by ``faults.not_sent``.
        """
        while (exchange := self._begin(request)) is None:
            connection = await self._connect()
            if isinstance(connection, Http2Connection):
                connection.check()  # else a server that hangs up at once would be called again and again
        return exchange

    def close(self) -> None:
        """Close all connections; whoever waits for one is woken."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        if self._opening is not None:
            self._opening.task.cancel()
        for single in [*self._idle, *self._busy]:
            single.close()
        for shared in self._shared:
            shared.close()
        self._idle.clear()
        self._busy.clear()
        self._shared.clear()

    def _begin(self, request: HttpRequest) -> HttpExchange | None:
        """An exchange on a connection that is there."""
        if self._closed:
            raise faults.closed_while_running()
        self._shared = [connection for connection in self._shared if not connection.closed]
        for shared in self._shared:
            if shared.is_free:
                return shared.begin(request)
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                exchange = connection.begin(request, self._give_back)
                self._busy.add(connection)
                return exchange
            connection.close()
        return None

    def _give_back(self, connection: Http1Connection) -> None:
        """Keep a connection for the next request where it can carry one."""
        self._busy.discard(connection)
        if self._closed or not connection.rest():
            connection.close()
            return
        self._rest(connection)

    def _rest(self, connection: Http1Connection) -> None:
        self._idle.append(connection)
        if self._expiry is None:
            # Weakly: a client that is left with its loop has its connections closed when it goes, not by the collector.
            self._expiry = self._loop.call_at(connection.expires_s, _expire, weakref.ref(self))

    def expire(self) -> None:
        """Close idle connections whose time is up, and those that have ended."""
        self._expiry = None
        idle, self._idle = self._idle, []
        for connection in idle:
            if connection.is_usable:
                self._rest(connection)
            else:
                connection.close()

    async def _connect(self) -> Connection:
        """Make a connection: of one's own where it carries one exchange, else together with whoever waits."""
        if self._speaks_http2 is False:
            return await self._add()
        if self._opening is None:
            self._opening = _Opening(self._loop.create_task(self._add()))
        opening = self._opening
        opening.waiting += 1
        try:
            await asyncio.wait([opening.task])
        finally:
            opening.waiting -= 1
            if not opening.waiting or opening.task.done():
                opening.task.cancel()
                if self._opening is opening:
                    self._opening = None
        return opening.result()

    async def _add(self) -> Connection:
        socket, agreed = await connect(self._peer)
        if self._closed:
            socket.close()
            raise faults.closed_while_running()
        if self._peer.address.tls:
            self._speaks_http2 = agreed == "h2"
            if self._needs_http2 and not self._speaks_http2:
                socket.close()
                raise faults.unreachable(self._peer.address, "it speaks no HTTP/2")
        if self._speaks_http2:
            shared = Http2Connection(socket, self._peer, self._loop)
            self._shared.append(shared)
            return shared
        single = Http1Connection(socket, self._peer, self._loop.time)
        self._rest(single)
        return single


def _expire(http: weakref.ref[AsyncHttp]) -> None:
    if (here := http()) is not None:
        here.expire()


class _Opening:
    """A connection that is being made, and how many wait for it."""

    def __init__(self, task: asyncio.Task[Connection]) -> None:
        self.task = task
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # whoever waited may be gone
        self.waiting = 0

    def result(self) -> Connection:
        """The connection. Raises what went wrong, for each that has waited an error of its own."""
        if self.task.cancelled():
            raise faults.closed_while_running()
        error = self.task.exception()
        if isinstance(error, RpcError):
            raise copy.copy(error) from None
        return self.task.result()
