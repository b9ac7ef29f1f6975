"""One connection to a sidecar: HTTP/1.1, one exchange at a time, bounded in time and size."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, cast

import h11

_MAX_HEAD_BYTES = 64 * 1024
_MAX_EVENTS = 4096
"""In so many pieces a reply may come: each costs as much, however small it is."""
_EXCERPT_BYTES = 2048
_OK: Final = range(200, 300)
_END = h11.EndOfMessage()


class Lost(Exception):  # noqa: N818 - what became of an exchange
    """The connection ended before the reply was whole, or the reply is no HTTP.

    Args:
        sent: Whether anything of the request may have gone out.
    """

    def __init__(self, *, sent: bool = True) -> None:
        super().__init__("the connection was lost")
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """Their names are in lower case."""
    body: bytes
    whole: bool
    """Whether that is all of the body, and not the beginning of one that is too long."""

    @property
    def ok(self) -> bool:
        """Whether it is what was asked for."""
        return self.status in _OK

    def header(self, name: bytes) -> str | None:
        """The first value of a header."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)


class Connection(asyncio.Protocol):
    """Made by ``loop.create_connection``. Whoever made it closes it.

    Redirects, cookies, compression and upgrades are not part of it.
    """

    def __init__(self) -> None:
        self.idle_since_s = 0.0
        """When its last exchange ended, on the loop's clock."""
        self.usable = False
        """Whether it can have another exchange."""
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._transport: asyncio.Transport | None = None
        self._reply: asyncio.Future[Reply] | None = None
        self._head: h11.Response | None = None
        self._body = bytearray()
        self._cap = 0
        self._events = 0

    async def exchange(self, request: h11.Request, body: bytes, *, max_body_bytes: int, due_s: float) -> Reply:
        """Send a request, and wait for its reply. Of an error's body the beginning is enough.

        Args:
            request: With the length of the body, if there is one.
            body: May be empty.
            max_body_bytes: How much of a good reply is read.
            due_s: Until when, on the loop's clock.

        Raises:
            Lost: The reply did not come whole.
            TimeoutError: It was not there in time.
        """
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Reply] = loop.create_future()
        self._reply = reply
        self._head, self._body, self._events, self._cap = None, bytearray(), 0, max_body_bytes
        timer = loop.call_at(due_s, self._fail, TimeoutError())
        try:
            self._send(request, body)
            return await reply
        finally:
            timer.cancel()
            self._reply = None
            self._renew()
            self.idle_since_s = loop.time()

    def abort(self) -> None:
        """Drop it."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # What the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if self._reply is None or self._reply.done():
            self.abort()  # nobody asked for that
            return
        self._take(data)

    def eof_received(self) -> None:
        """Nothing more comes. Where nothing else says so, that is the end of a reply."""
        self.usable = False
        if self._reply is not None and not self._reply.done():
            self._take(b"")

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone."""
        self.usable = False
        self._fail(Lost())

    # Inside

    def _send(self, request: h11.Request, body: bytes) -> None:
        if self._transport is None or not self.usable:
            raise Lost(sent=False)
        parts = [self._http.send(request)]
        if body:
            parts.append(self._http.send(h11.Data(data=body)))
        parts.append(self._http.send(_END))
        self._transport.write(b"".join(part for part in parts if part))

    def _take(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while self._read(self._http.next_event()):
                pass
        except h11.RemoteProtocolError:
            self._fail(Lost())

    def _read(self, event: object) -> bool:
        """Whether there may be another event."""
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return False
        self._events += 1
        if isinstance(event, h11.Response):
            self._head = event
            if event.status_code not in _OK:
                self._cap = min(self._cap, _EXCERPT_BYTES)
        elif isinstance(event, h11.Data):
            self._body += event.data
            if len(self._body) > self._cap:
                return self._done(whole=False)
        elif isinstance(event, h11.EndOfMessage):
            return self._done(whole=True)
        elif isinstance(event, h11.ConnectionClosed):
            return self._fail(Lost())
        return self._events < _MAX_EVENTS or self._fail(Lost())

    def _done(self, *, whole: bool) -> bool:
        if self._head is not None and self._reply is not None and not self._reply.done():
            headers = list(self._head.headers)
            self._reply.set_result(Reply(self._head.status_code, headers, bytes(self._body[: self._cap]), whole))
        return False

    def _fail(self, error: Exception) -> bool:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
        return False

    def _renew(self) -> None:
        """Make ready for another exchange, or drop it: where anything is left over, the next reply could be wrong."""
        http = self._http
        if (
            self.usable
            and http.our_state is h11.DONE
            and http.their_state is h11.DONE
            and not http.trailing_data[0]
            and self._transport is not None
            and not self._transport.get_write_buffer_size()
        ):
            http.start_next_cycle()
        else:
            self.abort()
