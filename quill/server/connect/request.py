"""The HTTP request of a call, read from its ASGI scope."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from quill.errors import Metadata
from quill.server.certificates import ASGI_EXTENSION, AuthContext
from quill.server.registry import CallDetails
from quill.wire.metadata import from_http

Protocol = Literal["connect", "grpc-web", "grpc"]

_CONNECT = re.compile(r"application/(?:connect\+)?(?:proto|json)")
_GRPC = re.compile(r"application/grpc(?P<web>-web(?P<text>-text)?)?(?P<codec>\+[a-z]+)?")
_GET = re.compile(rb"(?=(?:.*&)?encoding=(?:proto|json)(?:&|$))(?:.*&)?message=")
_HEADER_OVERHEAD_BYTES = 32  # per header, as HTTP/2 counts it (RFC 9113, section 6.5.2), so that both ports agree


@dataclass(frozen=True, slots=True)
class Headers:
    """The names under which a protocol speaks of compression."""

    encoding: str
    """How the messages beside it are encoded."""
    accepted: str
    """Which encodings its sender accepts."""


_UNARY = Headers("content-encoding", "accept-encoding")
_STREAM = Headers("connect-content-encoding", "connect-accept-encoding")
_GRPC_HEADERS = Headers("grpc-encoding", "grpc-accept-encoding")
_WITHHELD = frozenset(
    header.encode() for names in (_UNARY, _STREAM, _GRPC_HEADERS) for header in (names.accepted, "content-type")
)


class Request:
    """What is known before the body is read."""

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        self._scope = scope
        self._headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self.path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        """``/package.Service/Method``, for a call."""
        self.method: str = scope["method"]
        """The HTTP method."""
        self.content_type = (self.header("content-type") or "").partition(";")[0].strip().lower()
        """Without parameters."""
        grpc = _GRPC.fullmatch(self.content_type)
        self.protocol: Protocol = "connect" if grpc is None else "grpc-web" if grpc["web"] else "grpc"
        """Which protocol it is written in."""
        self.is_text = grpc is not None and grpc["text"] is not None
        """Whether the bodies of gRPC-Web are base64."""

    def header(self, name: str) -> str | None:
        """The values of a header, joined with commas; None without it."""
        wanted = name.encode()
        values = [value.decode("latin-1") for key, value in self._headers if key == wanted]
        return ",".join(values) if values else None

    @property
    def binary_content_type(self) -> str:
        """The content type of the same request without its base64."""
        return self.content_type.replace("-text", "") if self.is_text else self.content_type

    @property
    def is_call(self) -> bool:
        """Whether this has the form of a call, whatever its path."""
        if self.method == "GET":
            query: bytes = self._scope.get("query_string", b"")
            return _GET.match(query) is not None
        well_formed = self.protocol != "connect" or _CONNECT.fullmatch(self.content_type)
        return self.method == "POST" and bool(well_formed)

    @property
    def is_enveloped(self) -> bool:
        """Whether the content type says that messages are enveloped."""
        return self.protocol != "connect" or self.content_type.startswith("application/connect+")

    @property
    def is_json(self) -> bool:
        """Whether messages are JSON."""
        return self.content_type.endswith(("/json", "+json"))

    @property
    def is_grpc_without_trailers(self) -> bool:
        """Whether this is gRPC on a host that cannot send the trailers in which gRPC tells its status."""
        return self.protocol == "grpc" and "http.response.trailers" not in (self._scope.get("extensions") or {})

    @property
    def takes_turns(self) -> bool:
        """Whether both sides can go on after they have heard the other: on one stream of HTTP/2, not from a browser."""
        return self.protocol != "grpc-web" and not self._scope.get("http_version", "1.1").startswith("1")

    @property
    def headers(self) -> Headers:
        """Where the compression of messages is spoken of."""
        if self.protocol != "connect":
            return _GRPC_HEADERS
        return _STREAM if self.is_enveloped else _UNARY

    @property
    def encoding(self) -> str:
        """How messages are compressed; ``identity`` when they are not."""
        return self.header(self.headers.encoding) or "identity"

    @property
    def content_length(self) -> int:
        """The announced size of the body, without its base64; 0 where it is not announced."""
        text = self.header("content-length") or ""
        length = int(text) if text.isascii() and text.isdigit() else 0
        return length * 3 // 4 if self.is_text else length

    @property
    def header_bytes(self) -> int:
        """The size of all headers together, the URL among them, as HTTP/2 counts it."""
        url_bytes = len(self._scope.get("raw_path") or self.path) + len(self._scope.get("query_string", b""))
        return url_bytes + sum(len(key) + len(value) + _HEADER_OVERHEAD_BYTES for key, value in self._headers)

    @cached_property
    def metadata(self) -> Metadata:
        """The headers that are the caller's own, as gRPC metadata.

        Raises:
            InvalidArgument: The value of a ``-bin`` header is not base64.
        """
        return from_http((key.decode("latin-1"), value.decode("latin-1")) for key, value in self._headers)

    @property
    def details(self) -> CallDetails:
        """What decides about the call.

        Raises:
            InvalidArgument: As `metadata`.
        """
        return CallDetails(self.path, tuple(self.metadata))

    @property
    def auth_context(self) -> AuthContext:
        """What is known of the connection; nothing on a host that does not tell."""
        found: AuthContext = self._scope.get("extensions", {}).get(ASGI_EXTENSION, {})
        return found

    @property
    def peer(self) -> str:
        """The other end of the connection, written as gRPC writes it."""
        if not (client := self._scope.get("client")):
            # The ASGI address of a Unix socket has no port.
            server = self._scope.get("server")
            return "unix:" if server and server[1] is None else "unknown:"
        host, port = client
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def scope(self) -> MutableMapping[str, Any]:
        """The scope for connectrpc: without the wish for compressed replies, and safe to decode as UTF-8."""
        headers = [
            (key, value if value.isascii() else value.decode("latin-1").encode())
            for key, value in self._headers
            if key not in _WITHHELD
        ]
        headers.append((b"content-type", self.binary_content_type.encode("ascii", "replace")))
        return {**self._scope, "headers": headers}
