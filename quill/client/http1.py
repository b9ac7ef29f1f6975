"""One HTTP/1.1 connection as a client sees it, without a socket: bytes to send out, bytes that came in (RFC 9112)."""

from __future__ import annotations

import h11

from quill.client import faults
from quill.client.http import END, MAX_HEAD_BYTES, Head, HttpRequest
from quill.client.peer import Peer

_MAX_INTERIM_RESPONSES = 64
"""How many responses of class 1xx may stand before one that is final."""


class Http1:
    """Requests and responses, one after the other, on one connection.

    Raises, from ``head`` and ``chunk``: Unavailable where the connection has ended too early, Internal where the peer
    breaks the rules of HTTP.

    Args:
        peer: The server, for the Host header and the texts of errors.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._ended = False
        self._complete = False
        self._interim_responses = 0

    def request(self, request: HttpRequest) -> list[bytes]:
        """What to send for a request, in order: all of it, or its head where the body comes in parts."""
        body = request.body
        fields = [("host", self._peer.address.authority), *request.headers, *request.framing]
        if body is None:
            fields.append(("transfer-encoding", "chunked"))
        pieces = [self._http.send(h11.Request(method=request.method, target=request.path, headers=fields))]
        if body is not None:
            pieces += [self.part(body), self.end()]
        return [piece for piece in pieces if piece]

    def part(self, data: bytes) -> bytes:
        """What to send for a part of the body."""
        # An empty chunk would be the end.
        return self._http.send(h11.Data(data=data)) or b"" if data else b""

    def end(self) -> bytes:
        """What to send at the end of the body."""
        return self._http.send(h11.EndOfMessage()) or b""

    def feed(self, data: bytes) -> None:
        """Take what was read; no bytes are the end of the connection."""
        self._ended = self._ended or not data
        self._http.receive_data(data)

    def head(self) -> Head | None:
        """The head of the response; None where more must be fed."""
        while self._interim_responses <= _MAX_INTERIM_RESPONSES:
            event = self._next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Response):
                headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers]
                return Head(event.status_code, headers)
            if not isinstance(event, h11.InformationalResponse):  # the connection was closed in good order
                raise self._peer.lost()
            self._interim_responses += 1
        raise faults.not_http(self._peer.address)

    def chunk(self) -> bytes | None:
        """The next piece of the body; END once it is complete, None where more must be fed."""
        if self._complete:
            return END
        event = self._next_event()
        if event is h11.NEED_DATA:
            return None
        if isinstance(event, h11.Data):
            return bytes(event.data)
        self._complete = True
        return END

    def next_request(self) -> bool:
        """Whether the connection can carry another request, which may then be sent."""
        whole = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        if not whole or self._ended or self._http.trailing_data[0]:
            return False
        self._http.start_next_cycle()
        self._complete = False
        self._interim_responses = 0
        return True

    def _next_event(self) -> object:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError:
            raise (self._peer.lost() if self._ended else faults.not_http(self._peer.address)) from None
