"""The Connect protocol, as a client speaks it: requests and replies as bytes, without a socket and without a clock.

Written from https://connectrpc.com/docs/protocol. A reply is read in two steps, ``head`` and ``feed``, and every
length is checked before it is buffered.
"""

from __future__ import annotations

import base64
import binascii
import http
import json
import struct
from collections.abc import Iterable
from typing import Any, Literal, cast

from quill.client import faults
from quill.client.requests import Requests
from quill.client.transport import Call, Codec, ResponseMetadata
from quill.errors import Code, ErrorDetail, Internal, InvalidArgument, Metadata, ResourceExhausted, RpcError
from quill.wire import compression
from quill.wire.metadata import from_http, to_http
from quill.wire.pushback import PREVIOUS_ATTEMPTS_KEY, PUSHBACK_KEY

Encoding = Literal["identity", "gzip", "zstd"]

_ACCEPTED = "zstd, gzip"
_SERVER_ACCEPTS = frozenset({"accept-encoding", "connect-accept-encoding", "grpc-accept-encoding"})
_TRAILER_PREFIX = "trailer-"
_MAX_ERROR_BYTES = 1024 * 1024
"""An error with all its details; gRPC's own bound, that of metadata, is far below."""
_MAX_WINDOW_BYTES = 8 * 1024 * 1024
_COMPRESSED, _END = 0x01, 0x02
_ENVELOPE = struct.Struct(">BI")

_CODES = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}
"""The code of an answer that is no Connect error (https://connectrpc.com/docs/protocol#http-to-error-code)."""


def request_headers(call: Call, *, stream: bool, encoding: Encoding, user_agent: str) -> list[tuple[str, str]]:
    """The headers of a request."""
    prefix = "connect-" if stream else ""
    headers = [
        ("user-agent", user_agent),
        ("connect-protocol-version", "1"),
        ("content-type", _content_type(call.codec, stream=stream)),
        (f"{prefix}accept-encoding", _ACCEPTED),
    ]
    if stream:
        headers.append(("accept-encoding", "identity"))
    if encoding != "identity":
        headers.append((f"{prefix}content-encoding", encoding))
    if call.remaining_ms is not None:
        headers.append(("connect-timeout-ms", str(call.remaining_ms)))
    return headers + attempt_headers(call) + to_http(call.metadata)


def attempt_headers(call: Call) -> list[tuple[str, str]]:
    """What says that the call was sent before."""
    return [(PREVIOUS_ATTEMPTS_KEY, str(call.previous_attempts))] if call.previous_attempts else []


def request_body(message: bytes, *, stream: bool, encoding: Encoding) -> bytes:
    """The body of a request with one message; of one with several, a part."""
    data = compression.compress(encoding, message)
    flags = 0 if encoding == "identity" else _COMPRESSED
    return _ENVELOPE.pack(flags, len(data)) + data if stream else data


class RequestEncoding:
    """Chooses how requests are encoded, and learns from a server that does not know the encoding.

    Args:
        encoding: For requests that are large enough; "identity" for none.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def choose(self, request: bytes | Requests) -> Encoding:
        """The encoding for a request. Several go as they are: their iterator cannot be asked a second time."""
        compressed = isinstance(request, bytes) and len(request) >= compression.MIN_COMPRESS_BYTES
        return self._encoding if compressed else "identity"

    def learn(self, used: Encoding, error: RpcError, headers: Iterable[tuple[str, str]]) -> bool:
        """Whether an error says that the server does not know the encoding, and so has not run the call.

        From then on nothing is compressed, and the call may be sent once more.
        """
        if used == "identity" or error.code is not Code.UNIMPLEMENTED:
            return False
        accepted = [value for name, value in headers if name in _SERVER_ACCEPTS]
        known = {part.strip() for value in accepted for part in value.split(",")}
        if used in known or not (accepted or "unknown compression" in error.message):
            return False
        self._encoding = "identity"
        return True


class _Reply:
    """What the replies of unary and streaming calls have in common: the head, and errors that are whole bodies."""

    stream: bool

    def __init__(self, call: Call, max_message_bytes: int) -> None:
        self.headers: list[tuple[str, str]] = []
        self._first: dict[str, str] = {}
        """The first header of each name."""
        self._codec: Codec = call.codec
        self._response: ResponseMetadata = call.response
        self._max_bytes = max_message_bytes
        self._status = 0
        self._encoding: Encoding = "identity"
        self._body = bytearray()

    def head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Take the status and the headers.

        Raises:
            RpcError: The answer is none of the Connect protocol, or too large.
        """
        self._status = status
        self.headers = [(name.lower(), value) for name, value in headers]
        self._first = dict(reversed(self.headers))
        self._response.headers = metadata_of(self.headers)
        self._check_content_type()
        self._encoding = self._find_encoding()
        self._check_declared_length()

    def _check_content_type(self) -> None:
        got = self._header("content-type").partition(";")[0].strip().lower()
        if self._status != http.HTTPStatus.OK:
            if got != "application/json":
                raise self._error(from_http_status(self._status))
            return
        wanted = _content_type(self._codec, stream=self.stream)
        if got != wanted:
            family = wanted.removesuffix(self._codec)
            code = Code.INTERNAL if got.startswith(family) else Code.UNKNOWN
            raise self._error(RpcError.of(code, f"the answer has content type {got[:64]!r}, expected {wanted!r}"))

    def _find_encoding(self) -> Encoding:
        streams = self.stream and self._status == http.HTTPStatus.OK
        got = self._header("connect-content-encoding" if streams else "content-encoding") or "identity"
        if got not in {"identity", "gzip", "zstd"}:
            raise self._error(Internal(f"the answer is encoded with {got[:32]!r}, accepted are {_ACCEPTED}"))
        return cast("Encoding", got)

    def _check_declared_length(self) -> None:
        length = self._header("content-length")
        if length.isdigit() and not self.stream and int(length[:20]) > self._body_limit():
            raise self._error(faults.reply_too_large(int(length[:20]), self._body_limit()))

    def _body_limit(self) -> int:
        return self._max_bytes if self._status == http.HTTPStatus.OK else _MAX_ERROR_BYTES

    def _buffer(self, chunk: bytes | bytearray | memoryview) -> None:
        if len(self._body) + len(chunk) > self._body_limit():
            raise self._error(faults.reply_too_large(None, self._body_limit()))
        self._body += chunk

    def _whole_body(self) -> bytes:
        body = bytes(self._body)
        return self._decompress(body, self._body_limit()) if body else body

    def _decompress(self, data: bytes, limit: int) -> bytes:
        try:
            return compression.decompress(self._encoding, data, max_bytes=limit, max_window_bytes=_MAX_WINDOW_BYTES)
        except InvalidArgument as error:
            raise self._error(Internal(f"the reply is damaged: {error.message}")) from None
        except ResourceExhausted as error:
            raise self._error(ResourceExhausted(f"the reply is too large: {error.message}")) from None

    def _error_body(self) -> RpcError:
        """The error that the body of a refusal describes."""
        try:
            described = json.loads(self._whole_body())
        except (ValueError, RecursionError):
            described = None
        fallback = from_http_status(self._status)
        return self._error(_from_json(described, fallback) if isinstance(described, dict) else fallback)

    def _error(self, error: RpcError) -> RpcError:
        """The same error with the metadata of the reply."""
        response = self._response
        response.trailers = response.trailers or _trailers(self.headers)
        told = RpcError.of(
            error.code,
            error.message,
            details=error.details,
            metadata=response.headers,
            trailers=response.trailers,
        )
        return faults.pushed_back(told, self._pushback())

    def _pushback(self) -> str | None:
        """What the server says of sending the call again."""
        return self._header(_TRAILER_PREFIX + PUSHBACK_KEY) or self._header(PUSHBACK_KEY) or None

    def _header(self, key: str) -> str:
        return self._first.get(key, "")


class UnaryReply(_Reply):
    """The reply to a unary call: the whole body is the message."""

    stream = False

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take a piece of the body.

        Raises:
            ResourceExhausted: There is more than may be.
        """
        self._buffer(chunk)

    def message(self) -> bytes:
        """The message, once the body is complete.

        Raises:
            RpcError: The server refused the call, or the message is damaged or too large.
        """
        if self._status != http.HTTPStatus.OK:
            raise self._error_body()
        message = self._whole_body()
        self._response.trailers = _trailers(self.headers)
        return message


class StreamReply(_Reply):
    """The reply to a streaming call: envelopes of one flag byte, a four-byte big-endian length and a message."""

    stream = True
    end_flag = _END
    """Marks the envelope that says how the call ended."""

    def __init__(self, call: Call, max_message_bytes: int) -> None:
        super().__init__(call, max_message_bytes)
        self._position = 0
        self._received_any = False
        self._ending: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether the server has said how the call ended."""
        return self._ending is not None

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take a piece of the body, once ``next_message`` finds no more.

        Raises:
            ResourceExhausted: The server refused the call with more than an error may have.
        """
        if self._status != http.HTTPStatus.OK:
            self._buffer(chunk)
            return
        del self._body[: self._position]
        self._position = 0
        self._body += chunk

    def next_message(self) -> bytes | None:
        """The next message that is complete; None where there is none, or the call has ended.

        Raises:
            RpcError: The message is damaged or too large.
        """
        if self.ended or len(self._body) - self._position < _ENVELOPE.size:
            return None
        if self._status != http.HTTPStatus.OK:
            return None
        flags, length = _ENVELOPE.unpack_from(self._body, self._position)
        self._check_envelope(flags, length)
        start = self._position + _ENVELOPE.size
        if len(self._body) < start + length:
            return None
        self._position = start + length
        data = bytes(memoryview(self._body)[start : start + length])
        if flags & _COMPRESSED:
            data = self._decompress(data, _MAX_ERROR_BYTES if flags & self.end_flag else self._max_bytes)
        if flags & self.end_flag:
            self._take_ending(data)
            return None
        self._received_any = True
        return data

    def finish(self) -> None:
        """Tell how the call ended, once ``ended`` or the body is complete. Returns where it ended with OK.

        Raises:
            RpcError: The status that the call ended with, or INTERNAL where the body ended without one.
        """
        if self._status != http.HTTPStatus.OK:
            raise self._error_body()
        if self._ending is None:
            raise faults.cut_off(self._error(Internal("the answer ended before the message that ends the stream")))
        self._response.trailers = (*_trailers(self.headers), *_ending_metadata(self._ending))
        described = self._ending.get("error")
        if described is not None:
            fallback = RpcError.of(Code.UNKNOWN, "the stream ended with an error that cannot be read")
            raise self._error(_from_json(described, fallback) if isinstance(described, dict) else fallback)

    def _pushback(self) -> str | None:
        metadata = (self._ending or {}).get("metadata")
        values = metadata.get(PUSHBACK_KEY) if isinstance(metadata, dict) else None
        return str(values[0]) if isinstance(values, list) and values else super()._pushback()

    def _check_envelope(self, flags: int, length: int) -> None:
        if flags & ~(_COMPRESSED | self.end_flag):
            raise self._error(Internal(f"the stream has a message with unknown flags {flags:#04x}"))
        if flags & _COMPRESSED and self._encoding == "identity":
            raise self._error(Internal("the stream has a compressed message and names no compression"))
        limit = _MAX_ERROR_BYTES if flags & self.end_flag else self._max_bytes
        if length > limit:
            raise self._error(faults.reply_too_large(length, limit))

    def _take_ending(self, data: bytes) -> None:
        try:
            ending = json.loads(data)
        except (ValueError, RecursionError):
            ending = None
        if not isinstance(ending, dict):
            raise self._error(Internal("the message that ends the stream is no JSON object"))
        self._ending = ending


def _content_type(codec: Codec, *, stream: bool) -> str:
    return f"application/connect+{codec}" if stream else f"application/{codec}"


def from_http_status(status: int) -> RpcError:
    """What an answer that is no Connect error means."""
    try:
        name = f"HTTP {status} ({http.HTTPStatus(status).phrase})"
    except ValueError:
        name = f"HTTP {status}"
    if status // 100 == 3:  # noqa: PLR2004 - the class of redirects
        return RpcError.of(Code.UNKNOWN, f"the server answered with {name}; redirects are not followed")
    return RpcError.of(_CODES.get(status, Code.UNKNOWN), f"the server answered with {name}")


def _from_json(described: dict[str, Any], fallback: RpcError) -> RpcError:
    """The error that a Connect error object describes; its parts that cannot be read are left out."""
    name, message = described.get("code"), described.get("message")
    code = fallback.code
    if isinstance(name, str):
        known = Code.from_connect(name)
        code = known if known is not Code.OK else Code.UNKNOWN
    elif message is None:
        return fallback
    details = described.get("details")
    parsed = [_detail(detail) for detail in details] if isinstance(details, list) else []
    return RpcError.of(
        code,
        message if isinstance(message, str) else "",
        details=[detail for detail in parsed if detail is not None],
    )


def _detail(described: Any) -> ErrorDetail | None:
    """One detail: a type name, and a message in base64 without padding."""
    if not isinstance(described, dict):
        return None
    name, value = described.get("type"), described.get("value")
    if not isinstance(name, str) or not isinstance(value, str):
        return None
    try:
        return ErrorDetail(name, base64.b64decode(value + "=" * (-len(value) % 4), validate=True))
    except binascii.Error:
        return None


def metadata_of(headers: Iterable[tuple[str, str]]) -> Metadata:
    """The metadata in headers.

    Raises:
        Internal: It is damaged.
    """
    try:
        return from_http(headers)
    except InvalidArgument as error:
        raise Internal(f"the server's metadata is damaged: {error.message}") from None


def _trailers(headers: Iterable[tuple[str, str]]) -> Metadata:
    """The trailing metadata of a unary reply: headers with a prefix."""
    found = [(name.removeprefix(_TRAILER_PREFIX), value) for name, value in headers if name.startswith(_TRAILER_PREFIX)]
    return metadata_of(found) if found else ()


def _ending_metadata(ending: dict[str, Any]) -> Metadata:
    """The trailing metadata of a stream: name to values."""
    metadata = ending.get("metadata")
    if not isinstance(metadata, dict):
        return ()
    return metadata_of(
        (name, value)
        for name, values in metadata.items()
        if isinstance(values, list)
        for value in values
        if isinstance(value, str)
    )
