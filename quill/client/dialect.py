"""What travels over HTTP and how it is read: the seam between the HTTP transports and the protocols they carry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Protocol

from quill.client import connect, connect_reply, grpc_web, native, native_reply
from quill.client.address import Address
from quill.client.connect import Encoding, RequestEncoding
from quill.client.http import HttpRequest
from quill.client.options import ClientOptions, user_agent
from quill.client.transport import Call
from quill.wire.buffer import Buffer

_MAX_GET_BYTES = 4 * 1024
"""How long a path with its query may be: servers and proxies bound the line that it stands in, often at 8 KiB."""


class _Reply(Protocol):
    """A reply, read piece by piece. Every method may raise RpcError."""

    headers: list[tuple[str, str]]

    def __init__(self, call: Call, max_message_bytes: int) -> None: ...

    def head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Take the status and the headers."""
        ...

    def feed(self, chunk: Buffer) -> None:
        """Take a piece of the body; of a stream, once ``next_message`` finds no more."""
        ...


class UnaryReply(_Reply, Protocol):
    """The reply to a unary call."""

    def message(self) -> bytes:
        """The message, once the body is complete."""
        ...


class StreamReply(_Reply, Protocol):
    """The reply to a streaming call."""

    @property
    def ended(self) -> bool:
        """Whether the server has said how the call ended."""
        ...

    def next_message(self) -> bytes | None:
        """The next message that is complete; None where there is none, or the call has ended."""
        ...

    def finish(self) -> None:
        """Tell how the call ended, once ``ended`` or the body is complete. Returns where it ended with OK."""
        ...


class Dialect(ABC):
    """A protocol over HTTP, with the compression of requests that the server is known to understand."""

    compression: ClassVar[Encoding]
    """How requests are compressed where the caller wants it."""
    request_end: ClassVar[bytes] = b""
    """What goes into the body after the last of several requests."""
    _unary: ClassVar[type[UnaryReply]]
    _stream: ClassVar[type[StreamReply]]

    def __init__(self, address: Address, options: ClientOptions) -> None:
        usual = self.compression if options.enable_compression else "identity"
        is_known = options.compression is not None
        self.encoding = RequestEncoding(options.compression or usual, options.compress_from_bytes, is_known=is_known)
        self.user_agent = user_agent()
        self._base_path = address.path
        self._uses_get = options.use_get
        self._max_message_bytes = options.max_message_bytes

    @staticmethod
    def of(address: Address, options: ClientOptions) -> Dialect:
        """The dialect of an address."""
        kinds: dict[str, type[Dialect]] = {"connect": _Connect, "grpc-web": _GrpcWeb, "quill": _Native}
        return kinds[address.protocol](address, options)

    def unary_request(self, call: Call, message: bytes, encoding: Encoding) -> HttpRequest:
        """The request of a unary call."""
        body = self._body(message, stream=False, encoding=encoding)
        return HttpRequest("POST", self._path(call), self._headers(call, stream=False, encoding=encoding), body)

    def stream_request(self, call: Call, message: bytes | None, encoding: Encoding) -> HttpRequest:
        """The request of a streaming call; without a message, that of several, which follow."""
        body = None if message is None else self._body(message, stream=True, encoding=encoding)
        return HttpRequest("POST", self._path(call), self._headers(call, stream=True, encoding=encoding), body)

    @abstractmethod
    def request_part(self, message: bytes, encoding: Encoding) -> bytes:
        """One of several requests, as it goes into the body."""

    @abstractmethod
    def _headers(self, call: Call, *, stream: bool, encoding: Encoding) -> list[tuple[str, str]]:
        """The headers of a request."""

    @abstractmethod
    def _body(self, message: bytes, *, stream: bool, encoding: Encoding) -> bytes:
        """The body of a request with one message."""

    def _path(self, call: Call) -> str:
        return self._base_path + call.path

    def unary_reply(self, call: Call) -> UnaryReply:
        """What reads the reply to a unary call."""
        return self._unary(call, self._max_message_bytes)

    def stream_reply(self, call: Call) -> StreamReply:
        """What reads the reply to a streaming call."""
        return self._stream(call, self._max_message_bytes)


class _Connect(Dialect):
    compression: ClassVar[Encoding] = "zstd"
    _unary: ClassVar[type[UnaryReply]] = connect_reply.UnaryReply
    _stream = connect_reply.StreamReply

    def unary_request(self, call: Call, message: bytes, encoding: Encoding) -> HttpRequest:
        """By GET where that is wanted, the method allows it, and it is not too long."""
        if self._uses_get and call.may_run_twice():
            path = f"{self._path(call)}?{connect.get_query(call, message, encoding=encoding)}"
            if len(path) <= _MAX_GET_BYTES:
                return HttpRequest("GET", path, connect.get_headers(call, user_agent=self.user_agent), b"")
        return super().unary_request(call, message, encoding)

    def request_part(self, message: bytes, encoding: Encoding) -> bytes:
        return connect.request_body(message, stream=True, encoding=self.encoding.of(message, encoding))

    def _headers(self, call: Call, *, stream: bool, encoding: Encoding) -> list[tuple[str, str]]:
        return connect.request_headers(call, stream=stream, encoding=encoding, user_agent=self.user_agent)

    def _body(self, message: bytes, *, stream: bool, encoding: Encoding) -> bytes:
        return connect.request_body(message, stream=stream, encoding=encoding)


class _GrpcWeb(_Connect):
    """Envelopes as in Connect's streams, around unary messages too."""

    compression = "gzip"
    _unary = grpc_web.UnaryReply
    _stream = grpc_web.StreamReply

    def _headers(self, call: Call, *, stream: bool, encoding: Encoding) -> list[tuple[str, str]]:
        return grpc_web.request_headers(call, encoding=encoding, user_agent=self.user_agent)

    def _body(self, message: bytes, *, stream: bool, encoding: Encoding) -> bytes:
        return connect.request_body(message, stream=True, encoding=encoding)


class _Native(Dialect):
    """The Quill framework's own."""

    compression = "zstd"
    request_end = native.REQUEST_END
    _unary = native_reply.UnaryReply
    _stream = native_reply.StreamReply

    def stream_request(self, call: Call, message: bytes | None, encoding: Encoding) -> HttpRequest:
        """Several requests go as they are: what is compressed is a body, not a message."""
        return super().stream_request(call, message, "identity" if message is None else encoding)

    def request_part(self, message: bytes, encoding: Encoding) -> bytes:
        return native.request_part(message)

    def _headers(self, call: Call, *, stream: bool, encoding: Encoding) -> list[tuple[str, str]]:
        return native.request_headers(call, encoding=encoding, user_agent=self.user_agent)

    def _body(self, message: bytes, *, stream: bool, encoding: Encoding) -> bytes:
        return native.request_body(message, stream=stream, encoding=encoding)
