"""What a servicer holds of an HTTP call: a grpc.aio.ServicerContext."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Never

import grpc
import grpc.aio

from quill.errors import Metadata
from quill.server.certificates import AuthContext
from quill.server.failure import OK

_IDENTITY_KEYS = ("x509_subject_alternative_name", "x509_common_name")

_log = logging.getLogger("quill.server")


class HttpContext(grpc.aio.ServicerContext[Any, Any]):
    """Behaves as grpcio's own context does on the gRPC port; what it collects, `Exchange` sends."""

    def __init__(
        self,
        *,
        metadata: Metadata,
        peer: str,
        auth_context: AuthContext,
        time_remaining_s: Callable[[], float | None],
        send_head: Callable[[Metadata], Awaitable[None]],
        read: Callable[[], Awaitable[Any]] | None,
        write: Callable[[Any, bool], Awaitable[None]],
    ) -> None:
        self._metadata = metadata
        self._peer = peer
        self._auth_context = auth_context
        self._time_remaining_s = time_remaining_s
        self._send_head = send_head
        self._read = read
        self._write = write
        self._head_sent = False
        self._compresses = True
        self._compresses_next = True
        self._abort_error: grpc.aio.AbortError | None = None
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailers: Metadata = ()
        self._callbacks: list[Callable[[Any], None]] = []
        self._done = False
        self._cancelled = False

    def finish(self, *, cancelled: bool) -> None:
        """The handler is over: run its callbacks. A callback that raises is logged."""
        self._done, self._cancelled = True, cancelled
        if self._abort_error is not None:
            self._abort_error.__traceback__ = None  # its frames would keep the request until a collection
        for callback in self._callbacks:
            try:
                callback(self)
            except Exception:  # noqa: BLE001 - the servicer's own, and nothing that a client should be told
                _log.exception("a done callback failed")

    async def read(self) -> Any:
        """The next request of a stream, or ``grpc.aio.EOF`` after the last. A single request is the handler's own."""
        self._raise_if_over()
        if self._read is None:
            raise grpc.aio.UsageError("the request was handed to the handler; read() is for client streams")
        return await self._read()

    async def write(self, message: Any) -> None:
        """Send a message of a stream; waits while the client does not read."""
        self._raise_if_over()
        self._head_sent = True
        await self._write(message, self.compresses_next())

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the headers; in a unary call they travel with the reply."""
        self._raise_if_over()
        if self._head_sent:
            raise grpc.aio.UsageError("the initial metadata was sent already")
        self._head_sent = True
        await self._send_head(tuple(initial_metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> Never:
        """End the call with a status: raises AbortError, which the handler should let pass."""
        if self._abort_error is not None:
            raise grpc.aio.UsageError("the call was aborted already")
        self._abort_error = grpc.aio.AbortError("Locally aborted.")
        # As in grpcio: what abort() is not given, the setters' values stand for.
        self._code = code if code not in OK else grpc.StatusCode.UNKNOWN
        self._details = details or self._details
        self._trailers = tuple(trailing_metadata) or self._trailers
        self._done = True
        raise self._abort_error

    async def abort_with_status(self, status: grpc.Status) -> Never:
        """End the call with a status: raises AbortError."""
        await self.abort(status.code, status.details or "", status.trailing_metadata or ())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set what follows the reply."""
        self._trailers = tuple(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """What follows the reply."""
        return self._trailers

    def invocation_metadata(self) -> Any:
        """The request's metadata."""
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status that the call ends with when the handler returns."""
        self._code = code

    def code(self) -> Any:
        """The status as it was set; None until then."""
        return self._code

    def set_details(self, details: str) -> None:
        """Set the message of the status."""
        self._details = details

    def details(self) -> str:
        """The message of the status."""
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress no reply of this call, or those that the client accepts compressed, if the server compresses at all.

        The client's headers choose the encoding.
        """
        self._compresses = compression is not grpc.Compression.NoCompression

    def disable_next_message_compression(self) -> None:
        """Do not compress the next reply."""
        self._compresses_next = False

    def compresses_next(self) -> bool:
        """Whether the reply that is sent now may be compressed; each reply asks once."""
        allowed, self._compresses_next = self._compresses and self._compresses_next, True
        return allowed

    def peer(self) -> str:
        """``ipv4:127.0.0.1:50000`` or ``ipv6:[::1]:50000``."""
        return self._peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """The names of the peer's certificate, of the kind that the key says; None without one."""
        key = self.peer_identity_key()
        return None if key is None else self._auth_context[key]

    def peer_identity_key(self) -> str | None:
        """Alternative names before the common name; None where the peer has no certificate."""
        return next((key for key in _IDENTITY_KEYS if key in self._auth_context), None)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Properties of the connection, named as on the gRPC port; empty without TLS."""
        return self._auth_context

    def time_remaining(self) -> Any:
        """Seconds until the deadline, 0 after it; None without one."""
        return self._time_remaining_s()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back with this context when the call is over."""
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """Whether the client or its deadline cancelled the call."""
        return self._cancelled

    def done(self) -> bool:
        """Whether the call is over."""
        return self._done

    def _raise_if_over(self) -> None:
        if self._abort_error is not None:
            raise self._abort_error
        if self._done:
            raise grpc.aio.UsageError("the call is over")
