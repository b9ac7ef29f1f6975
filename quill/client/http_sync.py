"""HTTP over blocking sockets: one connection, HTTP/1.1 or HTTP/2, one exchange at a time.

What ends the wait of a call, its deadline or its cancellation, ends the wait for the socket. Among calls that shared a
connection it would end the others' too, so over HTTP/2 as well as many connections are open as calls run.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

from quill.client import faults
from quill.client.http import Head, HttpRequest
from quill.client.http_wire import Http1Wire, Http2Wire, Wire
from quill.client.peer import Peer
from quill.client.requests import close_iterator
from quill.client.sockets import Patience, PatientSocket, connect
from quill.errors import QuillError, RpcError


class Connection:
    """One connection, which one call at a time has for itself. Other threads may end it.

    Args:
        socket: Belongs to this object now.
        wire: What is spoken on it.
        peer: The server.
    """

    def __init__(self, socket: PatientSocket, wire: Wire, peer: Peer) -> None:
        self.wire = wire
        self._socket = socket
        self._peer = peer
        self._outgoing = memoryview(b"")
        """What the socket has to take first."""
        self._is_deaf = False
        """Whether sending has failed. The server may have answered before it hung up."""

    @classmethod
    def open(cls, peer: Peer, patience: Patience, *, http2: bool) -> Connection:
        """Connect.

        Raises:
            RpcError: The server cannot be reached, or speaks another version; the call may not wait longer.
        """
        socket, agreed = connect(peer, patience)
        if http2 and peer.address.tls and agreed != "h2":
            socket.close()
            raise faults.unreachable(peer.address, "it speaks no HTTP/2")
        return cls(socket, Http2Wire(peer) if http2 else Http1Wire(peer), peer)

    @property
    def takes_more(self) -> bool:
        """Whether all that was queued has left, and the server still listens."""
        return not (self._outgoing or self.wire.is_sending or self._is_deaf)

    def is_usable(self) -> bool:
        """Take in what came while no call ran: the end of the connection, it may be."""
        try:
            while (data := self._socket.receive_now()) is not None:
                if not self.wire.stays(data):
                    return False
        except (OSError, RpcError):
            return False
        return True

    def advance(self, patience: Patience, *, until_sent: bool = False) -> None:
        """Send what can be sent, and wait until something has come, more can be sent or, if asked for, all is sent."""
        must_wait = self._send(patience)
        if until_sent and self.takes_more:
            return
        data = self._socket.receive(patience, or_room=must_wait)
        if data is not None:
            self._take(data, patience)

    def glance(self, patience: Patience) -> bool:
        """Take in what is there, without a wait. Returns whether there was something."""
        try:
            data = self._socket.receive_now()
        except OSError:
            data = b""
        if data is not None:
            patience.check()
            self._take(data, patience)
        return data is not None

    def rest(self) -> bool:
        """The exchange is over. Returns whether the connection can carry another."""
        return self.wire.rest() and not self._outgoing and not self._is_deaf

    def close(self) -> None:
        """Close the socket, without a word to the peer: a forked process may still use the connection."""
        self._socket.close()

    def end(self) -> None:
        """As ``close``, under a call that another thread makes."""
        self._socket.end()

    def _send(self, patience: Patience) -> bool:
        """Send what goes at once. Returns whether more has to wait for the socket."""
        try:
            while not self._is_deaf:
                if not self._outgoing:
                    self._outgoing = memoryview(self.wire.data_to_send())
                    if not self._outgoing:
                        break
                sent = self._socket.send(self._outgoing, patience)
                if not sent:
                    return True
                self._outgoing = self._outgoing[sent:]
        except QuillError:  # a deadline is an OSError too
            raise
        except OSError:
            patience.check()
            self._is_deaf = True
        return False

    def _take(self, data: bytes, patience: Patience) -> None:
        if not (data or patience.has_sent):
            raise faults.not_sent(self._peer.lost())
        self.wire.feed(data)


class Exchange:
    """One request and its response, in one thread.

    Replies are read between the parts of a request, so neither side waits for the other to have said everything.

    Args:
        connection: Carries nothing else meanwhile.
        request: What to send; nothing is sent before the response is asked for.
        parts: The parts of the body, where the request has none.
        patience: For how long its waits may last.
        when_closed: Called with the connection, once.

    Raises, from ``head`` and ``chunk``: RpcError where the server is lost, refuses the request, or breaks the rules of
    HTTP, marked by ``faults.not_sent`` where the request provably did not run; and whatever ``parts`` raises.
    """

    def __init__(
        self,
        connection: Connection,
        request: HttpRequest,
        parts: Iterator[bytes] | None,
        patience: Patience,
        when_closed: Callable[[Connection], object],
    ) -> None:
        self._connection = connection
        self._wire = connection.wire
        self._parts = parts
        self._patience = patience
        self._when_closed = when_closed
        self._held = deque([connection])
        self._wire.begin(request)

    @property
    def has_asked(self) -> bool:
        """Whether the request is sent, whole."""
        return self._parts is None and self._connection.takes_more

    def head(self) -> Head:
        """The head of the response, which may come before the request is complete."""
        self._move()
        while (head := self._wire.head()) is None:
            self._move()
        return head

    def chunk(self) -> bytes:
        """The next piece of the body; END once it is complete."""
        while (chunk := self._wire.take()) is None:
            self._move()
        return chunk

    def close(self) -> None:
        """Give up what is not done yet. May be called again, and from any thread while no other uses it."""
        try:
            connection = self._held.pop()
        except IndexError:
            return
        self._patience.leave()  # before the connection is another call's
        self._when_closed(connection)
        if self._parts is not None:
            # What a finalizer of the user's raises has no reader any more.
            with contextlib.suppress(Exception):
                close_iterator(self._parts)

    def _move(self) -> None:
        """Send more, and take in what comes. Waits for the server where nothing else is left to do."""
        if self._parts is None:
            self._connection.advance(self._patience)
        elif not self._connection.takes_more:
            self._connection.advance(self._patience, until_sent=True)
        elif not self._connection.glance(self._patience):
            part = next(self._parts, None)
            self._wire.queue(part or b"", is_last=part is None)
            if part is None:
                self._parts = None
