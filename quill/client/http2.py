"""One HTTP/2 connection as a client sees it, without a socket: many exchanges side by side (RFC 9113).

Both directions obey flow control: what a server sends is held in the window of its stream until somebody takes it, and
what is queued for sending leaves as the server's windows open.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from quill.client import faults
from quill.client.address import Address
from quill.client.http import END, MAX_HEAD_BYTES, Head, HttpRequest
from quill.client.http2_frames import BrokenFrames, FrameSieve, GoAway
from quill.errors import RpcError

STREAM_WINDOW_BYTES = 2 * 1024 * 1024
"""How much of a response may come before somebody takes it."""

_CONNECTION_WINDOW_BYTES = 2**31 - 1
"""As good as unlimited: else a few responses that nobody reads would stop all others on the connection."""

_MAX_FRAME_BYTES = 256 * 1024
_STREAMS_AT_FIRST = 100
"""How many exchanges there may be before the server has said (RFC 9113 asks servers for no less)."""
_LAST_STREAM_ID = 2**31 - 10_000


@dataclass(slots=True, eq=False)
class Stream:
    """One exchange."""

    id: int
    head: Head | None = None
    failure: RpcError | None = None
    """Why there will be no more of the response."""
    ended: bool = False
    """Whether the response has come to its end."""
    chunks: deque[bytes] = field(default_factory=deque)
    """What has come of the body and was not taken."""
    held_bytes: int = 0
    """How much of the window it holds, padding included."""
    outgoing: deque[memoryview] = field(default_factory=deque)
    """What is to be sent of the request."""
    finished: bool = False
    """Whether the end of the request is behind ``outgoing``."""
    sent_all: bool = False


class Http2:
    """Frames to send out, frames that came in.

    Args:
        address: The server, for the headers and the texts of errors.
    """

    def __init__(self, address: Address) -> None:
        self.is_going_away = False
        """Whether the server takes no new exchanges."""
        self.goaway_code = 0
        """Why, as an error code of HTTP/2; 0 for no error."""
        self.has_pinged = False
        """Whether the answer to a ping is outstanding."""
        self._address = address
        self._streams: dict[int, Stream] = {}
        self._sending: dict[int, Stream] = {}
        """Those whose request is not sent to its end."""
        self._max_streams = _STREAMS_AT_FIRST
        self._last_id = -1
        self._sieve = FrameSieve(_MAX_FRAME_BYTES)
        self._h2 = _connection()

    @property
    def count(self) -> int:
        """How many exchanges there are."""
        return len(self._streams)

    @property
    def is_free(self) -> bool:
        """Whether another exchange may begin. The first always may: the server says what it has against it."""
        if self.is_going_away or self._last_id > _LAST_STREAM_ID:
            return False
        return len(self._streams) < self._max_streams or self._last_id < 0

    def begin(self, request: HttpRequest) -> Stream:
        """Begin an exchange with the head of its request, and its body where that is whole.

        Raises:
            Unavailable: The server takes none at all.
        """
        address = self._address
        headers = [
            (":method", request.method),
            (":scheme", "https" if address.tls else "http"),
            (":authority", address.authority),
            (":path", request.path),
            *request.headers,
            *request.framing,
        ]
        stream = Stream(self._h2.get_next_available_stream_id())
        try:
            self._h2.send_headers(stream.id, headers, end_stream=request.body == b"")
        except h2.exceptions.TooManyStreamsError:
            raise faults.refused(address) from None
        self._last_id = stream.id
        self._streams[stream.id] = stream
        if request.body:
            self.queue(stream, request.body, is_last=True)
        stream.sent_all = request.body == b""
        return stream

    def queue(self, stream: Stream, data: bytes, *, is_last: bool) -> None:
        """Have a part of the body sent, as the windows allow. Nothing is sent of a stream that has ended."""
        if stream.id not in self._streams or stream.failure is not None:
            return
        if data:
            stream.outgoing.append(memoryview(data))
        stream.finished = stream.finished or is_last
        if stream.outgoing or stream.finished:
            self._sending[stream.id] = stream

    def fill(self, max_bytes: int) -> set[Stream]:
        """Frame what is queued, about so much and as the windows allow, in turns. Returns those that have sent all."""
        sent: set[Stream] = set()
        moving = True
        while moving and max_bytes > 0:
            moving = False
            for stream in list(self._sending.values()):
                framed_bytes = self._send_frame(stream)
                if framed_bytes is None:
                    continue
                max_bytes -= framed_bytes
                moving = True
                if not stream.outgoing:
                    del self._sending[stream.id]
                    sent.add(stream)
        return sent

    def data_to_send(self) -> bytes:
        """What is to be sent; handed out once."""
        return self._h2.data_to_send()

    def feed(self, data: bytes) -> set[Stream]:
        """Take what was read. Returns the exchanges of which something has come.

        Raises:
            Internal: The server breaks the rules of HTTP/2; the connection is of no more use.
        """
        try:
            passed, goaways = self._sieve.feed(data)
            news = {stream for event in self._h2.receive_data(passed) if (stream := self._take(event)) is not None}
        except (BrokenFrames, h2.exceptions.H2Error):
            raise faults.not_http(self._address, "HTTP/2") from None
        for goaway in goaways:
            news |= self._go_away(goaway)
        return news

    def take(self, stream: Stream) -> bytes | None:
        """What has come of a body, which opens its window again; END once it is complete, None where more must come.

        Raises:
            RpcError: There will be no more, though it is not complete.
        """
        if stream.chunks:
            data = stream.chunks[0] if len(stream.chunks) == 1 else b"".join(stream.chunks)
            stream.chunks.clear()
            self._release(stream)
            if data:
                return data
        if stream.ended:
            return END
        if stream.failure is not None:
            raise stream.failure
        return None

    def leave(self, stream: Stream) -> None:
        """The exchange is over; what is not complete is given up, and the server told so."""
        if self._streams.pop(stream.id, None) is None:
            return
        self._sending.pop(stream.id, None)
        stream.chunks.clear()
        self._release(stream)
        if stream.failure is None and not (stream.ended and stream.sent_all):
            with contextlib.suppress(h2.exceptions.ProtocolError):  # it has closed meanwhile
                self._h2.reset_stream(stream.id, h2.errors.ErrorCodes.CANCEL)

    def ping(self) -> None:
        """Ask the server whether it is there."""
        self.has_pinged = True
        self._h2.ping(b"quillrpc")

    def fail(self, failure: Callable[[Stream], RpcError]) -> set[Stream]:
        """End all exchanges that are not complete. Returns them."""
        return {self._fail(stream, failure(stream)) for stream in self._streams.values() if not stream.ended}

    def _take(self, event: h2.events.Event) -> Stream | None:
        """What an event changes; the exchange that it is news for."""
        match event:
            case h2.events.DataReceived():
                return self._take_data(event)
            case h2.events.ResponseReceived():
                stream = self._streams.get(event.stream_id or 0)
                if stream is not None:
                    stream.head = _head(event.headers or [])
                return stream
            case h2.events.StreamEnded():
                stream = self._streams.get(event.stream_id or 0)
                if stream is not None:
                    stream.ended = True
                return stream
            case h2.events.StreamReset():
                stream = self._streams.get(event.stream_id or 0)
                if stream is None:
                    return None
                # A server may answer in full, and then refuse the rest of the request.
                return self._fail(stream, faults.reset(self._address, int(event.error_code or 0)))
            case h2.events.RemoteSettingsChanged():
                self._max_streams = self._h2.remote_settings.max_concurrent_streams
            case h2.events.PingAckReceived():
                self.has_pinged = False
        return None

    def _take_data(self, event: h2.events.DataReceived) -> Stream | None:
        length = event.flow_controlled_length or 0
        stream = self._streams.get(event.stream_id or 0)
        if stream is None:  # given up meanwhile
            self._h2.acknowledge_received_data(length, event.stream_id or 0)
            return None
        stream.held_bytes += length
        stream.chunks.append(bytes(event.data or b""))
        return stream

    def _release(self, stream: Stream) -> None:
        """Let the server send more in place of what was taken."""
        if stream.held_bytes:
            with contextlib.suppress(h2.exceptions.ProtocolError):  # the stream has closed
                self._h2.acknowledge_received_data(stream.held_bytes, stream.id)
            stream.held_bytes = 0

    def _send_frame(self, stream: Stream) -> int | None:
        """Frame the next piece of a request; None where its window is closed."""
        data = b""
        if stream.outgoing:
            room = min(self._h2.local_flow_control_window(stream.id), self._h2.max_outbound_frame_size)
            if room <= 0:
                return None
            piece = stream.outgoing.popleft()
            if len(piece) > room:
                stream.outgoing.appendleft(piece[room:])
            data = bytes(piece[:room])
        is_last = stream.finished and not stream.outgoing
        self._h2.send_data(stream.id, data, end_stream=is_last)
        stream.sent_all = is_last
        return len(data)

    def _go_away(self, goaway: GoAway) -> set[Stream]:
        self.is_going_away = True
        self.goaway_code = goaway.error_code
        refused = [
            stream for stream in self._streams.values() if stream.id > goaway.last_stream_id and not stream.ended
        ]
        return {self._fail(stream, faults.going_away(self._address, goaway.error_code)) for stream in refused}

    def _fail(self, stream: Stream, failure: RpcError) -> Stream:
        stream.failure = stream.failure or failure
        stream.outgoing.clear()
        self._sending.pop(stream.id, None)
        return stream


def _connection() -> h2.connection.H2Connection:
    """h2's side of a connection, which has said what a client says first."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    codes = h2.settings.SettingCodes
    connection.local_settings = h2.settings.Settings(
        client=True,
        initial_values={
            codes.ENABLE_PUSH: 0,
            codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            codes.MAX_FRAME_SIZE: _MAX_FRAME_BYTES,
            codes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
        },
    )
    del connection.local_settings[codes.ENABLE_CONNECT_PROTOCOL]  # a server's setting
    connection.max_inbound_frame_size = _MAX_FRAME_BYTES
    connection.decoder.max_header_list_size = MAX_HEAD_BYTES
    connection.initiate_connection()
    connection.increment_flow_control_window(_CONNECTION_WINDOW_BYTES - connection.inbound_flow_control_window)
    return connection


def _head(headers: list[tuple[bytes, bytes]]) -> Head:
    """Status and headers; h2 has checked that there is a status."""
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return Head(int(dict(fields)[":status"]), [field for field in fields if not field[0].startswith(":")])
