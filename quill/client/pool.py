"""Connections to one server that blocking calls share: each serves one call at a time, the last used one first.

A call takes what it needs in constant time: with hundreds of calls at once, looking at all connections would cost each
of them milliseconds. There are no locks, so none is held by another thread when a process forks: deques and sets are
enough.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from quill.client import faults
from quill.client.http import HttpRequest
from quill.client.http_sync import Connection, Exchange
from quill.client.sockets import Patience


class Pool:
    """Connections, as many as calls run at once.

    Args:
        connect: Makes one.
        keepalive_expiry_s: After so many idle seconds a connection is not used again.
    """

    def __init__(self, connect: Callable[[Patience], Connection], keepalive_expiry_s: float) -> None:
        self._connect = connect
        self._keepalive_expiry_s = keepalive_expiry_s
        self._idle: deque[tuple[float, Connection]] = deque()
        """With the time until which each may be used, the last used one last."""
        self._all: set[Connection] = set()
        self._closed = False

    def open(self, request: HttpRequest, patience: Patience, parts: Iterator[bytes] | None = None) -> Exchange:
        """Begin an exchange, which the caller closes.

        Args:
            request: What to send.
            patience: For how long the call waits.
            parts: The parts of the body, where the request has none.

        Raises:
            RpcError: The server cannot be reached; marked by ``faults.not_sent``.
        """
        connection = self._idle_one() or self._new(patience)
        try:
            return Exchange(connection, request, parts, patience, self._give_back)
        except BaseException:
            self._drop(connection)
            raise

    def close(self) -> None:
        """Close every connection; those that calls hold, too."""
        self._closed = True
        self._idle.clear()
        for connection in list(self._all):
            self._all.discard(connection)
            connection.end()

    def forget(self) -> None:
        """Close this process's sockets, under no call: nobody has the pool any more, or it is a forked copy."""
        for connection in list(self._all):
            self._drop(connection)

    def _give_back(self, connection: Connection) -> None:
        """A call is done with its connection."""
        if self._closed or not connection.rest():
            self._drop(connection)
            return
        now = time.monotonic()
        self._idle.append((now + self._keepalive_expiry_s, connection))
        self._close_expired(now)

    def _idle_one(self) -> Connection | None:
        """The connection that was used last, if the server still holds it."""
        while True:
            try:
                expires_at, connection = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() < expires_at and connection.is_usable():
                return connection
            self._drop(connection)

    def _new(self, patience: Patience) -> Connection:
        connection = self._connect(patience)
        self._all.add(connection)
        if self._closed:
            self._drop(connection)
            raise faults.closed_while_running()
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

    def _drop(self, connection: Connection) -> None:
        self._all.discard(connection)
        connection.close()
