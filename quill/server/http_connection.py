"""One HTTP/1.1 connection: uvicorn's protocol on httptools, within bounds and with the faults of its peers in mind.

Source of the rules: RFC 9112 (HTTP/1.1) and RFC 9110, section 7.8 (Upgrade).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from quill.limits import Limits
from quill.server.certificates import ASGI_EXTENSION, auth_context
from quill.server.closing import Drain, ReaderWatch
from quill.wire.pushback import PUSHBACK_KEY

_log = logging.getLogger("quill.server")

_MAX_PIPELINED_BYTES = 256 * 1024
_MAX_PIPELINED_REQUESTS = 256
"""What a client may send ahead while a request of its runs. A request of 18 bytes takes some 3 KiB of memory."""
_JOINED_BYTES = 64 * 1024
"""Up to here a copy costs less than a second write."""
_AGAIN = {HTTPStatus.SERVICE_UNAVAILABLE: f"retry-after: 1\r\n{PUSHBACK_KEY}: 1000\r\n"}
"""What is said of asking again: such a connection is refused before anything of it was read."""
_SMALL_REST_BYTES = 64 * 1024
"""So much of a request that was answered early is read, rather than giving up its connection."""


def bounded_protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """The protocol class of a server with these limits."""
    return type("BoundedConnection", (_Connection,), {"limits": limits})


class _Connection(HttpToolsProtocol):
    """Bounds what a peer may send and how long it may take.

    Headers: their size while they come (one read of the socket may pass before the count is looked at; complete ones
    are counted, and refused in the terms of the caller's protocol, by the application) and their time. Bodies: the
    time without progress. Connections: their number, and what may come after a request was refused. It declines
    upgrades and answers the request itself, and it tells the request that runs when its client goes away, also where
    others stand behind it in a pipeline.
    """

    limits: ClassVar[Limits]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Said here and not in the configuration, which would switch the log off for the whole process.
        self.access_log = False
        self._pending_bytes = 0
        self._in_headers = True
        self._refused = False
        self._rest_bytes: float = 0
        self._running: RequestResponseCycle | None = None
        """The last request that was started; those after it wait in the pipeline."""
        self._heard_s = 0.0
        self._auth_context: Any = {}
        self._reader: ReaderWatch
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A connection begins; its first request is awaited."""
        super().connection_made(cast("asyncio.Transport", _Lingering(transport, self)))
        self._reader = ReaderWatch(transport, self.limits.connection_idle_timeout_s)
        self._auth_context = auth_context(transport.get_extra_info("ssl_object"))
        if len(self.connections) > self.limits.max_connections:
            text = f"there are {len(self.connections)} connections and max_connections is {self.limits.max_connections}"
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, text)
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over: the request that runs is told. uvicorn tells only the last one that came."""
        self._disarm()
        self._reader.stop()
        super().connection_lost(exc)
        if (running := self._running) is not None:
            running.disconnected = not running.response_complete
            running.message_event.set()

    @property
    def is_unfinished(self) -> bool:
        """Whether the peer is in the middle of a request, or about to send one that nobody will read."""
        return not self._in_headers or self._pending_bytes > 0 or self._refused

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what completes nothing is pending in it."""
        self._heard_s = self.loop.time()
        self._unset_keepalive_if_required()
        self._pending_bytes += len(data)
        try:
            self._feed(memoryview(data))
        except httptools.HttpParserError:
            _log.debug("%s sent what is no HTTP request", self.client)
            self._refuse(HTTPStatus.BAD_REQUEST, "this is no valid HTTP/1.1 request")
            return
        self._bound_pipeline()
        if self.transport.is_closing():
            return
        if self._pending_bytes > self.limits.max_metadata_bytes:
            self._refuse_headers()
        elif self._timer is None:
            self._expect_more()

    def _feed(self, data: memoryview) -> None:
        """Feed the parser. It stops at the headers of a request that asks for an upgrade, and would skip its body.

        Such a request is parsed once more without its ``Upgrade``, as one that a server has declined: Java's
        HttpClient and ``curl --http2`` ask so on their first request. What follows it stays what it is, the body.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "this server is no proxy")
                    return
                data = data[upgrade.args[0] :]
                self._decline_upgrade()
            else:
                return

    def _decline_upgrade(self) -> None:
        """Start a parser with the head of the last request, less its ``Upgrade``."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        kept = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        head = b"\r\n".join([b"%s %s HTTP/%s" % (method, self.url, version), *kept, b"", b""])
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn's own: a client that said "close" may have sent more, which goes unread.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)

    def _bound_pipeline(self) -> None:
        """Read on while requests wait in the pipeline, within a bound.

        uvicorn stops reading there, and then nobody notices that the client has gone.
        """
        if not self.pipeline:
            return
        if sum(_held_bytes(cycle) for cycle, _ in self.pipeline) > _MAX_PIPELINED_BYTES:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = {ASGI_EXTENSION: self._auth_context}

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or after a chunked body one trailer, of which uvicorn would keep any number."""
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers are complete."""
        self._in_headers, self._pending_bytes = False, 0
        if self.parser.should_upgrade():
            return
        if len(self.pipeline) >= _MAX_PIPELINED_REQUESTS:
            self.transport.abort()
            raise ConnectionAbortedError  # or the parser would go on with what was read
        self._rest_bytes = _announced_bytes(self.headers)
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.__class__ = _Cycle
            cast("_Cycle", self.cycle).connection = self
        self._disarm()

    def on_body(self, body: bytes) -> None:
        """A part of the body, bounded by flow control."""
        self._pending_bytes = 0
        self._rest_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._in_headers, self._pending_bytes, self._rest_bytes = True, 0, 0
        self._disarm()
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The response is complete. uvicorn sets a timer here, which would keep the call's context variables alive."""
        contextvars.Context().run(super().on_response_complete)

    @property
    def has_much_to_read(self) -> bool:
        """Whether more of a request is to come than is worth reading for nothing."""
        return self._rest_bytes > _SMALL_REST_BYTES

    def _expect_more(self) -> None:
        """Bound the wait for the rest of a request. One that came whole has cost no timer."""
        if not self._in_headers:
            self._expect_body()
        elif self._pending_bytes:
            self._expect_headers()

    def _expect_headers(self) -> None:
        limit_s = self.limits.header_timeout_s
        self._arm(limit_s, lambda: self._late(f"the request headers took more than header_timeout_s = {limit_s:g} s"))

    def _expect_body(self) -> None:
        limit_s = self.limits.body_idle_timeout_s
        self._arm(limit_s, lambda: self._late(f"no more of the body came for body_idle_timeout_s = {limit_s:g} s"))

    def _arm(self, limit_s: float, late: Callable[[], None]) -> None:
        self._disarm()
        self._heard_s = self.loop.time()
        self._timer = self.loop.call_later(limit_s, self._check_time, limit_s, late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_time(self, limit_s: float, late: Callable[[], None]) -> None:
        """The time is over, unless the server itself does not read, or a body made progress."""
        silent_s = 0.0 if self.flow.read_paused else self.loop.time() - self._heard_s
        if self._in_headers and not self.flow.read_paused:
            silent_s = limit_s  # one byte now and then is no progress of headers
        if silent_s < limit_s:
            self._timer = self.loop.call_later(limit_s - silent_s, self._check_time, limit_s, late)
        else:
            self._timer = None
            late()

    def _late(self, text: str) -> None:
        was_answered = not self._in_headers and self.cycle.response_complete
        if was_answered or not self.is_unfinished:
            self.transport.close()  # nothing is asked, and an answer might be taken for one to the next request
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, text)

    def eof_received(self) -> None:
        """The peer has hung up; asyncio closes the connection once it has taken what waits for it."""
        self.expect_reader()

    def expect_reader(self) -> None:
        """Bound how long a connection that closes waits for a peer that takes nothing of what was written.

        asyncio would wait for ever, and over TLS no longer than for the end of TLS, whatever a reply may need.
        """
        self._disarm()
        self._reader.start()

    def _refuse_headers(self) -> None:
        if self._in_headers:
            text = f"the request headers exceed the limit of {self.limits.max_metadata_bytes} bytes, max_metadata_bytes"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        else:
            self.transport.close()  # trailers; the reply may be under way

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Answer in the place of the application, and hang up."""
        if self.transport.is_closing():
            return
        self._refused = True
        may_answer = self._may_answer()
        for cycle in (self._running, self.cycle):
            if cycle is not None and not cycle.response_complete:
                # The application learns that its caller is gone.
                cycle.disconnected = True
                cycle.message_event.set()
        if not may_answer:
            self.transport.abort()
            return
        body = text.encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n{_AGAIN.get(status, '')}\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether no reply is due but that to the bytes that come in now."""
        running = self._running
        if running is None or running.response_complete:
            return True
        return running is self.cycle and running.more_body and not running.response_started


class _Cycle(RequestResponseCycle):
    """A request and its response; one that is answered before it was read gives up its connection.

    uvicorn drops what is sent to nobody, and a servicer that only writes would go on for ever.
    """

    connection: _Connection

    async def send(self, message: Any) -> None:
        """Take an ASGI message.

        Raises:
            ConnectionResetError: The client has gone, and more was to come.
        """
        transport = cast("_Lingering", self.transport)
        if not self.response_started:
            if self.more_body and self.connection.has_much_to_read:
                self.keep_alive = False
            # A reply of known length comes at once: its head leaves with its body, in one write.
            if any(name == b"content-length" for name, _ in message.get("headers", ())):
                transport.hold()
            await super().send(message)
            return
        await super().send(message)
        transport.let_go()
        if self.disconnected and message.get("more_body"):
            raise ConnectionResetError("the client has gone")


class _Lingering:
    """A transport that lets the peer read its last answer before it closes.

    Closing with input unread resets the connection, and the peer may lose the answer (RFC 9112, section 9.6). So
    where a request is not complete, what still comes is thrown away, for a short time and up to a small amount.
    """

    def __init__(self, transport: asyncio.Transport, connection: _Connection) -> None:
        self._transport = transport
        self._connection = connection
        self._lingers = False
        self._held: list[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or keep for the next write."""
        if self._held is None:
            self._transport.write(data)
        else:
            self._held.append(data)

    def hold(self) -> None:
        """Keep what is written from now on."""
        self._held = []

    def let_go(self) -> None:
        """Write what was kept."""
        held, self._held = self._held or (), None
        if sum(map(len, held)) <= _JOINED_BYTES:
            held = [b"".join(held)] if held else ()
        for data in held:
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing more is to be written."""
        return self._lingers or self._transport.is_closing()

    def close(self) -> None:
        """Close after what was written, and after the peer had a chance to read it."""
        if self.is_closing():
            return
        self.let_go()
        if not self._connection.is_unfinished:
            self._transport.close()
            self._connection.expect_reader()
            return
        self._lingers = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.set_protocol(Drain(self._transport, self._connection.connection_lost))


def _held_bytes(cycle: RequestResponseCycle) -> int:
    """What a request that waits takes of the bytes that its client sent."""
    header_bytes = sum(len(name) + len(value) for name, value in cycle.scope["headers"])
    return len(cycle.body) + len(cycle.scope["raw_path"]) + header_bytes


def _announced_bytes(headers: list[tuple[bytes, bytes]]) -> float:
    """The size of a body; infinite where it is not announced and there may be one."""
    for name, value in headers:
        if name == b"content-length":
            return int(value)
        if name == b"transfer-encoding":
            return float("inf")
    return 0
