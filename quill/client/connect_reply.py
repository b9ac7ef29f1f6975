"""Replies of the Connect protocol, read in two steps, ``head`` and ``feed``; without a socket and without a clock.

Every length is checked before it is buffered.
"""

from __future__ import annotations

import http
import json
from collections.abc import Iterable
from typing import Any, cast

from quill.client import faults
from quill.client.connect import ACCEPTED, COMPRESSED, ENVELOPE, Encoding, content_type
from quill.client.connect_error import from_http_status, from_json
from quill.client.transport import Call, Codec, ResponseMetadata
from quill.errors import Code, Internal, InvalidArgument, Metadata, ResourceExhausted, RpcError
from quill.wire import compression
from quill.wire.buffer import Buffer
from quill.wire.metadata import from_http
from quill.wire.pushback import PUSHBACK_KEY

_TRAILER_PREFIX = "trailer-"
_MAX_ERROR_BYTES = 1024 * 1024
"""An error with all its details; gRPC's own bound, that of metadata, is far below."""
MAX_WINDOW_BYTES = 8 * 1024 * 1024
_END = 0x02


class Reply:
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

    @property
    def _is_refusal(self) -> bool:
        """Whether the status says that the body is an error."""
        return self._status != http.HTTPStatus.OK

    def _content_type(self) -> str:
        """The content type without its parameters, in lower case."""
        return self._header("content-type").partition(";")[0].strip().lower()

    def _check_content_type(self) -> None:
        got = self._content_type()
        if self._is_refusal:
            if got != "application/json":
                raise self._error(from_http_status(self._status))
            return
        wanted = content_type(self._codec, stream=self.stream)
        if got != wanted:
            family = wanted.removesuffix(self._codec)
            code = Code.INTERNAL if got.startswith(family) else Code.UNKNOWN
            raise self._error(RpcError.of(code, f"the answer has content type {got[:64]!r}, expected {wanted!r}"))

    def _find_encoding(self) -> Encoding:
        streams = self.stream and not self._is_refusal
        got = self._header("connect-content-encoding" if streams else "content-encoding") or "identity"
        if got not in {"identity", "gzip", "zstd"}:
            raise self._error(Internal(f"the answer is encoded with {got[:32]!r}, accepted are {ACCEPTED}"))
        return cast("Encoding", got)

    def _check_declared_length(self) -> None:
        length = self._header("content-length")
        if length.isdigit() and not self.stream and int(length[:20]) > self._body_limit():
            raise self._error(faults.reply_too_large(int(length[:20]), self._body_limit()))

    def _body_limit(self) -> int:
        return _MAX_ERROR_BYTES if self._is_refusal else self._max_bytes

    def feed(self, chunk: Buffer) -> None:
        """Take a piece of the body; of a stream, once ``next_message`` finds no more.

        Raises:
            RpcError: There is more than may be, or it is damaged.
        """
        if self._is_refusal:
            self._buffer(chunk)
        else:
            self._take(chunk)

    def _take(self, chunk: Buffer) -> None:
        """Take a piece of the body of a success."""
        raise NotImplementedError

    def _buffer(self, chunk: Buffer) -> None:
        if len(self._body) + len(chunk) > self._body_limit():
            raise self._error(faults.reply_too_large(None, self._body_limit()))
        self._body += chunk

    def _whole_body(self) -> bytes:
        body = bytes(self._body)
        return self._decompress(body, self._body_limit()) if body else body

    def _decompress(self, data: bytes, limit: int) -> bytes:
        try:
            return compression.decompress(self._encoding, data, max_bytes=limit, max_window_bytes=MAX_WINDOW_BYTES)
        except InvalidArgument as error:
            raise self._error(Internal(f"the reply is damaged: {error.message}")) from None
        except ResourceExhausted as error:
            raise self._error(ResourceExhausted(f"the reply is too large: {error.message}")) from None

    def _error_body(self) -> RpcError:
        """The error that the body of a refusal describes."""
        described = self._described()
        fallback = from_http_status(self._status)
        return self._error(fallback if described is None else from_json(described, fallback))

    def _described(self) -> dict[str, Any] | None:
        """The JSON object that the body is; None where it is none."""
        try:
            described = json.loads(self._whole_body())
        except (ValueError, RecursionError):
            return None
        return described if isinstance(described, dict) else None

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


class UnaryReply(Reply):
    """The reply to a unary call: the whole body is the message."""

    stream = False

    def _take(self, chunk: Buffer) -> None:
        self._buffer(chunk)

    def message(self) -> bytes:
        """The message, once the body is complete.

        Raises:
            RpcError: The server refused the call, or the message is damaged or too large.
        """
        if self._is_refusal:
            raise self._error_body()
        message = self._whole_body()
        self._response.trailers = _trailers(self.headers)
        return message


class StreamReply(Reply):
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

    def _take(self, chunk: Buffer) -> None:
        del self._body[: self._position]
        self._position = 0
        self._body += chunk

    def next_message(self) -> bytes | None:
        """The next message that is complete; None where there is none, or the call has ended.

        Raises:
            RpcError: The message is damaged or too large.
        """
        if self.ended or len(self._body) - self._position < ENVELOPE.size:
            return None
        if self._is_refusal:
            return None
        flags, length = ENVELOPE.unpack_from(self._body, self._position)
        self._check_envelope(flags, length)
        start = self._position + ENVELOPE.size
        if len(self._body) < start + length:
            return None
        self._position = start + length
        data = bytes(memoryview(self._body)[start : start + length])
        if flags & COMPRESSED:
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
        if self._is_refusal:
            raise self._error_body()
        if self._ending is None:
            raise faults.cut_off(self._error(Internal("the answer ended before the message that ends the stream")))
        self._response.trailers = (*_trailers(self.headers), *_ending_metadata(self._ending))
        described = self._ending.get("error")
        if described is not None:
            fallback = RpcError.of(Code.UNKNOWN, "the stream ended with an error that cannot be read")
            raise self._error(from_json(described, fallback) if isinstance(described, dict) else fallback)

    def _pushback(self) -> str | None:
        metadata = (self._ending or {}).get("metadata")
        values = metadata.get(PUSHBACK_KEY) if isinstance(metadata, dict) else None
        return str(values[0]) if isinstance(values, list) and values else super()._pushback()

    def _check_envelope(self, flags: int, length: int) -> None:
        if flags & ~(COMPRESSED | self.end_flag):
            raise self._error(Internal(f"the stream has a message with unknown flags {flags:#04x}"))
        if flags & COMPRESSED and self._encoding == "identity":
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
