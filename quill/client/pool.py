"""Connections to one server that blocking calls share: each serves one call at a time, the last used one first.

httpcore's own pool looks at every connection, under one lock, whenever a call begins or ends: with 256 calls at once it
took some 20 ms a call, and calls waited for the lock past their deadlines. Here a call takes what it needs in constant
time. There are no locks, so none is held by another thread when a process forks: deques and sets are enough.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import httpcore


class Pool:
    """Connections, as many as calls run at once.

    Args:
        connect: Makes one, which connects with its first request.
        keepalive_expiry_s: After so many idle seconds a connection is not used again.
    """

    def __init__(
        self, connect: Callable[[httpcore.Origin], httpcore.ConnectionInterface], keepalive_expiry_s: float
    ) -> None:
        self._connect = connect
        self._keepalive_expiry_s = keepalive_expiry_s
        self._idle: deque[tuple[float, httpcore.ConnectionInterface]] = deque()
        """With the time until which each may be used, the last used one last."""
        self._all: set[httpcore.ConnectionInterface] = set()

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request. The connection is the caller's until the response is closed."""
        while True:
            connection = self._idle_one() or self._new(request.url.origin)
            try:
                response = connection.handle_request(request)
            except httpcore.ConnectionNotAvailable:  # the server was leaving, and has not looked at the request
                self._drop(connection)
                continue
            except BaseException:
                self._drop(connection)
                raise
            break
        return httpcore.Response(
            response.status,
            headers=response.headers,
            content=_Body(response, self, connection),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Close every connection; those that calls hold, too."""
        self._idle.clear()
        for connection in list(self._all):
            self._drop(connection)

    def give_back(self, connection: httpcore.ConnectionInterface) -> None:
        """A call is done with its connection."""
        if not connection.is_idle():
            self._drop(connection)
            return
        now = time.monotonic()
        self._idle.append((now + self._keepalive_expiry_s, connection))
        self._close_expired(now)

    def _idle_one(self) -> httpcore.ConnectionInterface | None:
        """The connection that was used last, if the server still holds it."""
        while True:
            try:
                expires_at, connection = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() < expires_at and not connection.has_expired():
                return connection
            self._drop(connection)

    def _new(self, origin: httpcore.Origin) -> httpcore.ConnectionInterface:
        connection = self._connect(origin)
        self._all.add(connection)
        return connection

    def _close_expired(self, now: float) -> None:
        """Close what nobody has used for so long, from the end where the oldest are."""
        while True:
            try:
                entry = self._idle.popleft()
            except IndexError:
                return
            if entry[0] > now:
                self._idle.appendleft(entry)
                return
            self._drop(entry[1])

    def _drop(self, connection: httpcore.ConnectionInterface) -> None:
        self._all.discard(connection)
        connection.close()


class _Body:
    """The body of a response; closing it gives the connection back, once."""

    def __init__(self, response: httpcore.Response, pool: Pool, connection: httpcore.ConnectionInterface) -> None:
        self._response = response
        self._held = deque([(pool, connection)])

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response.iter_stream())

    def close(self) -> None:
        """Read no more."""
        try:
            pool, connection = self._held.pop()
        except IndexError:
            return
        self._response.close()
        pool.give_back(connection)
