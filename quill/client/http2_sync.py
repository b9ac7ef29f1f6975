"""HTTP/2 over blocking sockets, for the pool: a connection that carries one call at a time.

What ends the wait of a call, its deadline or its cancellation, ends the wait for the socket. Among calls that shared a
connection it would end the others' too, so as many connections are open as calls run, as over HTTP/1.1.
"""

from __future__ import annotations

import enum
import ssl
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import httpcore

from quill.client import faults
from quill.client.address import Address
from quill.errors import Internal, Unavailable

_READ_BYTES = 64 * 1024
_WINDOW_BYTES = 1024 * 1024
"""How much of a response may lie here unread."""
_HEADER_BYTES = 64 * 1024
_FRAME_HEAD_BYTES = 9
_GOAWAY = 7
"""The type of the frame that says which streams the server still serves."""
_MAX_STREAM = 2**31 - 1
_NOT_IN_HTTP2 = frozenset({b"host", b"transfer-encoding"})
_SETTINGS: dict[h2.settings.SettingCodes, int] = {
    h2.settings.SettingCodes.ENABLE_PUSH: 0,
    h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES,
    h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: _HEADER_BYTES,
}


class State(enum.Enum):
    """What a connection is doing."""

    NEW = enum.auto()
    BUSY = enum.auto()
    IDLE = enum.auto()
    CLOSED = enum.auto()


class Http2Connection(httpcore.ConnectionInterface):
    """One connection. Threads other than that of the call may ask and close.

    Args:
        origin: Where it leads.
        address: The server, for the texts of errors.
        backend: Makes the sockets.
        ssl_context: For TLS; None for clear text with prior knowledge.
    """

    def __init__(
        self,
        origin: httpcore.Origin,
        address: Address,
        backend: httpcore.NetworkBackend,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self._origin = origin
        self._address = address
        self._backend = backend
        self._tls = ssl_context
        self._lock = threading.Lock()
        self._state = State.NEW
        self._stream: httpcore.NetworkStream | None = None
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._unread = bytearray()
        """The beginning of a frame."""
        self._last_stream: int | None = None
        """Of the streams, the last that a server which is leaving still serves."""
        self._is_deaf = False
        """Whether writing has failed."""
        self._call = Call(0)

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; returns with the head of the response."""
        with self._lock:
            if self._state not in {State.NEW, State.IDLE}:
                raise httpcore.ConnectionNotAvailable
            is_new, self._state = self._state is State.NEW, State.BUSY
        patience = request.extensions["timeout"]["read"]
        try:
            stream = self._open(patience) if is_new else self._open_again(patience)
            self._call = call = Call(self._h2.get_next_available_stream_id())
            self._send(request, call, stream, patience)
            while call.status is None:
                self._check(call, is_repeatable=not is_new and _has_length(request))
                self._receive(stream, patience)
        except BaseException:
            self.close()
            raise
        return httpcore.Response(call.status, headers=call.headers, content=_Body(self, call, stream, patience))

    def chunk(self, call: Call, stream: httpcore.NetworkStream, patience: float) -> bytes | None:
        """The next piece of a response's body; None at its end."""
        while not call.chunks:
            if call.has_ended:
                return None
            self._check(call, is_repeatable=False)
            self._receive(stream, patience)
        data, size = call.chunks.popleft()
        self._h2.acknowledge_received_data(size, call.stream_id)
        return data

    def release(self, call: Call) -> None:
        """The call is done with the connection, which serves the next where this one is over for both sides."""
        is_over = call.is_sent and call.has_ended and not call.chunks
        with self._lock:
            if is_over and self._last_stream is None and not self._is_deaf and self._state is State.BUSY:
                self._state = State.IDLE
                return
        self.close()

    def close(self) -> None:
        """Close the socket, without a word to the peer: a forked process may still use the connection."""
        self._state = State.CLOSED
        if self._stream is not None:
            self._stream.close()

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        """Whether it leads there."""
        return origin == self._origin

    def is_available(self) -> bool:
        """Whether it can take a call now."""
        return self._state is State.IDLE

    def is_idle(self) -> bool:
        """Whether it is open and without a call."""
        return self._state is State.IDLE

    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._state is State.CLOSED

    def has_expired(self) -> bool:
        """Whether it is known to have ended: the next call finds out."""
        return False

    def info(self) -> str:
        """For httpcore's own texts."""
        return f"{self._origin!r}, HTTP/2, {self._state.name}"

    def _open(self, patience: float) -> httpcore.NetworkStream:
        if self._address.unix_path is None:
            stream = self._backend.connect_tcp(self._origin.host.decode("ascii"), self._origin.port, patience)
        else:
            stream = self._backend.connect_unix_socket(self._address.unix_path, patience)
        self._stream = stream
        if self._tls is not None:
            self._stream = stream = stream.start_tls(self._tls, self._origin.host.decode("ascii"), patience)
            if stream.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
                raise faults.unreachable(self._address, "it speaks no HTTP/2")
        self._h2.local_settings = h2.settings.Settings(client=True, initial_values=_SETTINGS)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW_BYTES)
        return stream

    def _open_again(self, patience: float) -> httpcore.NetworkStream:
        """Take in what came while no call ran: the end of the connection, it may be."""
        stream = self._stream
        assert stream is not None  # noqa: S101 - it has served a call
        try:
            while stream.get_extra_info("is_readable"):
                if self._tls is not None:
                    raise httpcore.ConnectionNotAvailable  # of TLS's own, it may be, behind which a read would wait
                self._receive(stream, patience)
        except (httpcore.RemoteProtocolError, Internal, Unavailable):
            self._last_stream = 0
        if self._last_stream is not None:
            raise httpcore.ConnectionNotAvailable
        return stream

    def _send(self, request: httpcore.Request, call: Call, stream: httpcore.NetworkStream, patience: float) -> None:
        """Send head and body, as long as the server has not answered in full."""
        has_body = request.method != b"GET"
        self._h2.send_headers(call.stream_id, _head(request), end_stream=not has_body)
        is_whole = _has_length(request)
        if has_body:
            for part in cast("Iterable[bytes]", request.stream):
                self._send_part(part, call, stream, patience, is_last=is_whole)
                if call.is_over or self._is_deaf:
                    return
            if not is_whole:
                self._h2.end_stream(call.stream_id)
        self._flush(stream, patience)
        call.is_sent = True

    def _send_part(
        self, part: bytes, call: Call, stream: httpcore.NetworkStream, patience: float, *, is_last: bool
    ) -> None:
        rest = memoryview(part)
        while not (call.is_over or self._is_deaf):
            room = min(self._h2.local_flow_control_window(call.stream_id), self._h2.max_outbound_frame_size)
            if room or not rest:
                data, rest = rest[:room], rest[room:]
                self._h2.send_data(call.stream_id, data, end_stream=is_last and not rest)
            self._flush(stream, patience)
            if not rest:
                return
            if not room or (self._tls is None and stream.get_extra_info("is_readable")):
                self._receive(stream, patience)

    def _flush(self, stream: httpcore.NetworkStream, patience: float) -> None:
        data = self._h2.data_to_send()
        if data and not self._is_deaf:
            try:
                stream.write(data, patience)
            except httpcore.WriteError:
                self._is_deaf = True  # it may have answered before it hung up

    def _receive(self, stream: httpcore.NetworkStream, patience: float) -> None:
        """Wait for something, and take it in."""
        self._flush(stream, patience)
        data = stream.read(_READ_BYTES, patience)
        if not data:
            raise httpcore.RemoteProtocolError("Server disconnected")
        try:
            for frame in self._frames(data):
                self._take(frame)
        except h2.exceptions.ProtocolError:
            raise faults.not_http(self._address, "HTTP/2") from None

    def _take(self, frame: bytes) -> None:
        if frame[3] == _GOAWAY:
            # h2 takes it for the end of all streams, and refuses what a server sends that lets its calls finish.
            self._last_stream = int.from_bytes(frame[_FRAME_HEAD_BYTES:][:4]) & _MAX_STREAM
            return
        for event in self._h2.receive_data(frame):
            self._call.take(event)

    def _frames(self, data: bytes) -> Iterator[bytes]:
        """Whole frames (RFC 9113, section 4.1)."""
        self._unread += data
        while len(self._unread) >= _FRAME_HEAD_BYTES:
            end = _FRAME_HEAD_BYTES + int.from_bytes(self._unread[:3])
            if end > _FRAME_HEAD_BYTES + self._h2.max_inbound_frame_size:
                raise h2.exceptions.FrameTooLargeError
            if len(self._unread) < end:
                return
            frame = bytes(self._unread[:end])
            del self._unread[:end]
            yield frame

    def _check(self, call: Call, *, is_repeatable: bool) -> None:
        """Raise where nothing more will come."""
        if self._last_stream is not None and self._last_stream < call.stream_id:  # the server has not looked at it
            raise httpcore.ConnectionNotAvailable if is_repeatable else faults.lost(self._address)
        if call.reset_code is not None:
            raise faults.reset(self._address, call.reset_code)
        if call.has_ended and call.status is None:
            raise faults.not_http(self._address, "HTTP/2")


class Call:
    """What has come for one stream."""

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.is_sent = False
        """Whether the whole request was sent."""
        self.has_ended = False
        """Whether the whole response has come."""
        self.reset_code: int | None = None
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: deque[tuple[bytes, int]] = deque()
        """Pieces of the body, and what each counts against the window."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.has_ended or self.reset_code is not None

    def take(self, event: h2.events.Event) -> None:
        """Take in what h2 made of a frame."""
        match event:
            case h2.events.ResponseReceived():
                headers = event.headers
                self.status = int(dict(headers)[b":status"])
                self.headers = [(name, value) for name, value in headers if not name.startswith(b":")]
            case h2.events.DataReceived():
                self.chunks.append((event.data, event.flow_controlled_length))
            case h2.events.StreamEnded():
                self.has_ended = True
            case h2.events.StreamReset() if not self.has_ended:
                self.reset_code = int(event.error_code)


class _Body:
    """The body of a response, as httpcore's pool takes it."""

    def __init__(
        self, connection: Http2Connection, call: Call, stream: httpcore.NetworkStream, patience: float
    ) -> None:
        self._connection = connection
        self._call = call
        self._stream = stream
        self._patience = patience
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        while (chunk := self._connection.chunk(self._call, self._stream, self._patience)) is not None:
            yield chunk

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._connection.release(self._call)


def _head(request: httpcore.Request) -> list[tuple[bytes, bytes]]:
    """The headers of a request as HTTP/2 writes them."""
    authority = next(value for name, value in request.headers if name.lower() == b"host")
    pseudo = [
        (b":method", request.method),
        (b":scheme", request.url.scheme),
        (b":authority", authority),
        (b":path", request.url.target),
    ]
    return pseudo + [(name.lower(), value) for name, value in request.headers if name.lower() not in _NOT_IN_HTTP2]


def _has_length(request: httpcore.Request) -> bool:
    """Whether the body is one piece, which can be sent again."""
    return any(name.lower() == b"content-length" for name, _ in request.headers)
