"""What travels over HTTP and how it is read: the seam between the HTTP transports and Connect or gRPC-Web."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from quill.client import connect, connect_reply, grpc_web
from quill.client.address import Address
from quill.client.connect import Encoding, RequestEncoding
from quill.client.connect_reply import StreamReply
from quill.client.options import ClientOptions
from quill.client.transport import Call

Buffer = bytes | bytearray | memoryview


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

    @classmethod
    def of(cls, address: Address, options: ClientOptions) -> Dialect:
        """The dialect of an address."""
        speaks_web = address.protocol == "grpc-web"
        compressed: Encoding = "gzip" if speaks_web else "zstd"
        encoding = RequestEncoding(compressed if options.enable_compression else "identity")
        return cls(speaks_web, encoding, options.max_message_bytes)

    def request_headers(
        self, call: Call, *, stream: bool, encoding: Encoding, user_agent: str
    ) -> list[tuple[str, str]]:
        """The headers of a request."""
        if self.speaks_web:
            return grpc_web.request_headers(call, encoding=encoding, user_agent=user_agent)
        return connect.request_headers(call, stream=stream, encoding=encoding, user_agent=user_agent)

    def request_body(self, message: bytes, *, stream: bool, encoding: Encoding) -> bytes:
        """The body of a request with one message; of one with several, a part."""
        return connect.request_body(message, stream=stream or self.speaks_web, encoding=encoding)

    def unary_reply(self, call: Call) -> UnaryReply:
        """What reads the reply to a unary call."""
        kind = grpc_web.UnaryReply if self.speaks_web else connect_reply.UnaryReply
        return kind(call, self.max_message_bytes)

    def stream_reply(self, call: Call) -> StreamReply:
        """What reads the reply to a streaming call."""
        kind = grpc_web.StreamReply if self.speaks_web else StreamReply
        return kind(call, self.max_message_bytes)
