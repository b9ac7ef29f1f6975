"""HTTP/1.1 and HTTP/2 behind one face, for connections that carry one exchange after the other; without a socket."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from quill.client.http import Head, HttpRequest
from quill.client.http1 import Http1
from quill.client.http2 import Http2, Stream
from quill.client.peer import Peer

_SEND_BYTES = 256 * 1024
"""How much is prepared for the socket at a time."""
_JOIN_BYTES = 64 * 1024
"""What is shorter is joined to one system call."""


class Wire(Protocol):
    """A version of HTTP, without a socket, as one exchange after the other sees it.

    Raises, from all methods: RpcError where the server ends the exchange or breaks the rules of HTTP.
    """

    def begin(self, request: HttpRequest) -> None:
        """Have a request sent, or its head where its body comes in parts."""
        ...

    def queue(self, part: bytes, *, is_last: bool) -> None:
        """Have a part of the body sent. Nothing is sent of an exchange that the server has ended."""
        ...

    def data_to_send(self) -> bytes:
        """The next piece to send; handed out once. Nothing where there is none, or it has to wait for the server."""
        ...

    @property
    def is_sending(self) -> bool:
        """Whether something that was queued is still to be handed out."""
        ...

    def feed(self, data: bytes) -> None:
        """Take what was read; no bytes are the end of the connection."""
        ...

    def head(self) -> Head | None:
        """The head of the response; None where more must be fed."""
        ...

    def take(self) -> bytes | None:
        """The next piece of the body; END once it is complete, None where more must be fed."""
        ...

    def rest(self) -> bool:
        """The exchange is over; whether the connection can carry another."""
        ...

    def stays(self, data: bytes) -> bool:
        """Whether the connection can still carry another exchange after what was read between two."""
        ...


class Http1Wire:
    """As ``Wire``: HTTP/1.1."""

    def __init__(self, peer: Peer) -> None:
        self._http = Http1(peer)
        self._pieces: deque[bytes] = deque()
        self.feed = self._http.feed
        self.head = self._http.head
        self.take = self._http.chunk
        self.rest = self._http.next_request

    def begin(self, request: HttpRequest) -> None:
        """Have a request sent, or its head."""
        self._pieces = deque(self._http.request(request))

    def queue(self, part: bytes, *, is_last: bool) -> None:
        """Have a part of the body sent."""
        self._pieces.append(self._http.part(part) + (self._http.end() if is_last else b""))

    def data_to_send(self) -> bytes:
        """The next piece to send."""
        if not self._pieces:
            return b""
        if sum(map(len, self._pieces)) > _JOIN_BYTES:
            return self._pieces.popleft()
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    @property
    def is_sending(self) -> bool:
        """Whether something is still to be handed out."""
        return bool(self._pieces)

    def stays(self, data: bytes) -> bool:
        """What an idle connection has to say can only be its end."""
        return False


class Http2Wire:
    """As ``Wire``: HTTP/2."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._http = Http2(peer.address)
        self._stream = Stream(0)

    def begin(self, request: HttpRequest) -> None:
        """Have a request sent, or its head."""
        self._stream = self._http.begin(request)

    def queue(self, part: bytes, *, is_last: bool) -> None:
        """Have a part of the body sent."""
        self._http.queue(self._stream, part, is_last=is_last)

    def data_to_send(self) -> bytes:
        """The next piece to send, as the windows allow."""
        self._http.fill(_SEND_BYTES)
        return self._http.data_to_send()

    @property
    def is_sending(self) -> bool:
        """Whether something waits for the server's windows."""
        return bool(self._stream.outgoing)

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        if data:
            self._http.feed(data)
        else:
            self._http.fail(lambda _: self._peer.lost())

    def head(self) -> Head | None:
        """The head of the response."""
        stream = self._stream
        if stream.head is None and stream.failure is not None:
            raise stream.failure
        return stream.head

    def take(self) -> bytes | None:
        """The next piece of the body, in whose place the server may send more."""
        return self._http.take(self._stream)

    def rest(self) -> bool:
        """The exchange is over; one that is not complete takes the connection along."""
        stream = self._stream
        complete = stream.ended and stream.sent_all and not stream.chunks
        self._http.leave(stream)
        return complete and self._http.is_free

    def stays(self, data: bytes) -> bool:
        """A server may talk about the connection, or leave it."""
        if not data:
            return False
        self._http.feed(data)
        return self._http.is_free
