"""What travels over HTTP and how it is read: the seam between the HTTP transports and Connect or gRPC-Web."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from quill.client import connect, connect_reply, grpc_web
from quill.client.address import Address
from quill.client.connect import Encoding, RequestEncoding
from quill.client.connect_reply import StreamReply
from quill.client.http import HttpRequest
from quill.client.options import ClientOptions, user_agent
from quill.client.transport import Call

Buffer = bytes | bytearray | memoryview

_MAX_GET_BYTES = 4 * 1024
"""How long a path with its query may be: servers and proxies bound the line that it stands in, often at 8 KiB."""


class UnaryReply(Protocol):
    """The reply to a unary call, read piece by piece. Every method may raise RpcError."""

    headers: list[tuple[str, str]]

    def head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Take the status and the headers."""
        ...

    def feed(self, chunk: Buffer) -> None:
        """Take a piece of the body."""
        ...

    def message(self) -> bytes:
        """The message, once the body is complete."""
        ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """Connect or gRPC-Web, with the compression of requests that the server is known to understand."""

    speaks_web: bool
    encoding: RequestEncoding
    max_message_bytes: int
    base_path: str
    """What all methods stand under."""
    uses_get: bool
    user_agent: str

    @classmethod
    def of(cls, address: Address, options: ClientOptions) -> Dialect:
        """The dialect of an address."""
        speaks_web = address.protocol == "grpc-web"
        usual: Encoding = "gzip" if speaks_web else "zstd"
        wanted = options.compression or (usual if options.enable_compression else "identity")
        return cls(
            speaks_web=speaks_web,
            encoding=RequestEncoding(wanted, options.compress_from_bytes, is_known=options.compression is not None),
            max_message_bytes=options.max_message_bytes,
            base_path=address.path,
            uses_get=options.use_get,
            user_agent=user_agent(),
        )

    def unary_request(self, call: Call, message: bytes, encoding: Encoding) -> HttpRequest:
        """The request of a unary call: by GET where that is wanted, the method allows it, and it is not too long."""
        if self.uses_get and call.may_run_twice():
            path = f"{self.base_path}{call.path}?{connect.get_query(call, message, encoding=encoding)}"
            if len(path) <= _MAX_GET_BYTES:
                return HttpRequest("GET", path, connect.get_headers(call, user_agent=self.user_agent), b"")
        return self._post(call, self._body(message, stream=False, encoding=encoding), stream=False, encoding=encoding)

    def stream_request(self, call: Call, message: bytes | None, encoding: Encoding) -> HttpRequest:
        """The request of a streaming call; without a message, that of several, which follow."""
        body = None if message is None else self._body(message, stream=True, encoding=encoding)
        return self._post(call, body, stream=True, encoding=encoding)

    def part(self, message: bytes, encoding: Encoding) -> bytes:
        """One of several messages, as a part of the body of their request."""
        return self._body(message, stream=True, encoding=self.encoding.of(message, encoding))

    def _body(self, message: bytes, *, stream: bool, encoding: Encoding) -> bytes:
        return connect.request_body(message, stream=stream or self.speaks_web, encoding=encoding)

    def _post(self, call: Call, body: bytes | None, *, stream: bool, encoding: Encoding) -> HttpRequest:
        if self.speaks_web:
            headers = grpc_web.request_headers(call, encoding=encoding, user_agent=self.user_agent)
        else:
            headers = connect.request_headers(call, stream=stream, encoding=encoding, user_agent=self.user_agent)
        return HttpRequest("POST", self.base_path + call.path, headers, body)

    def unary_reply(self, call: Call) -> UnaryReply:
        """What reads the reply to a unary call."""
        kind = grpc_web.UnaryReply if self.speaks_web else connect_reply.UnaryReply
        return kind(call, self.max_message_bytes)

    def stream_reply(self, call: Call) -> StreamReply:
        """What reads the reply to a streaming call."""
        kind = grpc_web.StreamReply if self.speaks_web else StreamReply
        return kind(call, self.max_message_bytes)
