"""HTTP/1.1 on one connection: uvicorn's protocol on httptools, within bounds and with the faults of its peers in mind.

Source of the rules: RFC 9112 (HTTP/1.1) and RFC 9110, section 7.8 (Upgrade).
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from quill.limits import Limits

_log = logging.getLogger("quill.server")

_MAX_PIPELINED_BYTES = 256 * 1024
"""What a client may send ahead while a request of its runs."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with what it lacks.

    It bounds connections and headers, which neither uvicorn nor its parser does: one read of the socket may pass
    before pending bytes are looked at; complete headers are counted, and refused in the terms of the caller's
    protocol, by the application. It declines upgrades and answers the request itself, and it tells the request that
    runs when its client goes away, also where others stand behind it in a pipeline.

    Args:
        limits: What is accepted.
        options: What uvicorn's protocol takes.
    """

    def __init__(self, limits: Limits, **options: Any) -> None:
        super().__init__(**options)
        self._limits = limits
        self._pending_bytes = 0
        """What the parser was fed since it last completed something."""
        self._in_headers = True
        self._pipelined_bytes = 0
        self._running: RequestResponseCycle | None = None
        """The last request that was started; those after it wait in the pipeline."""
        # Said here and not in the configuration, which would switch the log off for the whole process.
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A connection, refused where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "this server has as many connections as it takes")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: the request that runs is told. uvicorn tells only the last one that came."""
        super().connection_lost(exc)
        if (running := self._running) is not None:
            running.disconnected = not running.response_complete
            running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what completes nothing is pending in it."""
        self._unset_keepalive_if_required()
        self._pending_bytes += len(data)
        try:
            self._feed(memoryview(data))
        except httptools.HttpParserError:
            _log.debug("%s sent what is no HTTP request", self.client)
            self._refuse(HTTPStatus.BAD_REQUEST, "this is no valid HTTP/1.1 request")
            return
        if self._pending_bytes > self._limits.max_metadata_bytes:
            limit = self._limits.max_metadata_bytes
            text = f"the request headers exceed the limit of {limit} bytes"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        self._bound_pipeline(len(data))

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

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_headers = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or after a chunked body one trailer, of which uvicorn would keep any number."""
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers are complete."""
        self._in_headers, self._pending_bytes = False, 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body, bounded by flow control."""
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._pending_bytes = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Close the connection, and say why where that cannot be taken for a part of another reply."""
        if self.transport.is_closing():
            return
        if self._may_answer():
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
                f"content-length: {len(text)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write((head + text).encode())
        self.transport.close()

    def _bound_pipeline(self, size_bytes: int) -> None:
        """Read on while requests wait in the pipeline, within a bound.

        uvicorn stops reading there, and then nobody notices that the client has gone.
        """
        if not self.pipeline:
            self._pipelined_bytes = 0
            return
        self._pipelined_bytes += size_bytes
        if self._pipelined_bytes > _MAX_PIPELINED_BYTES:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.flow.resume_reading()

    def _may_answer(self) -> bool:
        """Whether no reply is due but that to the bytes that come in now."""
        running = self._running
        if running is None or running.response_complete:
            return True
        return running is self.cycle and running.more_body and not running.response_started
