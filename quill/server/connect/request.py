"""The HTTP request of a call, read from its ASGI scope."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from quill.server.certificates import ASGI_EXTENSION, AuthContext
from quill.server.registry import CallDetails
from quill.wire.metadata import from_http, header_bytes

Protocol = Literal["connect", "grpc-web", "grpc"]

_CONNECT = re.compile(r"application/(?:connect\+)?(?:proto|json)")
_GRPC = re.compile(r"application/grpc(?P<web>-web(?P<text>-text)?)?(?P<codec>\+[a-z]+)?")
_HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]+")
"""The characters of a host and a port (RFC 3986, section 3.2.2); what they mean is nobody's matter here."""
_GET = re.compile(rb"(?=(?:.*&)?encoding=(?:proto|json)(?:&|$))(?:.*&)?message=")


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


@dataclass(frozen=True, slots=True)
class _Form:
    """What a content type says of a request."""

    content_type: str
    """Without parameters."""
    binary_content_type: str
    """That of the same request without its base64."""
    protocol: Protocol
    is_text: bool
    is_call: bool
    is_enveloped: bool
    is_json: bool
    headers: Headers


@lru_cache(maxsize=64)
def _form(content_type: str) -> _Form:
    """The form of a request with this header; a few of them make up nearly all traffic."""
    plain = content_type.partition(";")[0].strip().lower()
    grpc = _GRPC.fullmatch(plain)
    is_text = grpc is not None and grpc["text"] is not None
    is_enveloped = grpc is not None or plain.startswith("application/connect+")
    return _Form(
        content_type=plain,
        binary_content_type=plain.replace("-text", "") if is_text else plain,
        protocol="connect" if grpc is None else "grpc-web" if grpc["web"] else "grpc",
        is_text=is_text,
        is_call=grpc is not None or _CONNECT.fullmatch(plain) is not None,
        is_enveloped=is_enveloped,
        is_json=plain.endswith(("/json", "+json")),
        headers=_GRPC_HEADERS if grpc is not None else _STREAM if is_enveloped else _UNARY,
    )


class Request:
    """What is known before the body is read."""

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        self._scope = scope
        self._headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self._values = dict(self._headers)
        self._metadata: tuple[tuple[str, str | bytes], ...] | None = None
        self.path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        """``/package.Service/Method``, for a call."""
        self.method: str = scope["method"]
        """The HTTP method."""
        form = _form(self.header("content-type") or "")
        self._form = form
        self.protocol: Protocol = form.protocol
        """Which protocol it is written in."""
        self.is_text = form.is_text
        """Whether the bodies of gRPC-Web are base64."""
        self.is_enveloped = form.is_enveloped
        """Whether the content type says that messages are enveloped."""
        self.is_json = form.is_json
        """Whether messages are JSON."""
        self.headers = form.headers
        """Where the compression of messages is spoken of."""
        self.content_type = form.content_type
        """Without parameters."""
        self.binary_content_type = form.binary_content_type
        """The content type of the same request without its base64."""

    def header(self, name: str) -> str | None:
        """The values of a header, joined with commas; None without it."""
        wanted = name.encode()
        if wanted not in self._values:
            return None
        if len(self._values) == len(self._headers):
            return self._values[wanted].decode("latin-1")
        return b",".join([value for key, value in self._headers if key == wanted]).decode("latin-1")

    @property
    def names_its_host(self) -> bool:
        """Whether HTTP/1.1 says which host is meant, and no version says it twice (RFC 9112, section 3.2)."""
        if len(self._values) != len(self._headers) and [key for key, _ in self._headers].count(b"host") > 1:
            return False
        return self._scope.get("http_version") != "1.1" or _HOST.fullmatch(self._values.get(b"host", b"")) is not None

    @property
    def is_call(self) -> bool:
        """Whether this has the form of a call, whatever its path."""
        if self.method == "GET":
            query: bytes = self._scope.get("query_string", b"")
            return _GET.match(query) is not None
        return self.method == "POST" and self._form.is_call

    @property
    def is_grpc_without_trailers(self) -> bool:
        """Whether this is gRPC on a host that cannot send the trailers in which gRPC tells its status."""
        return self.protocol == "grpc" and "http.response.trailers" not in (self._scope.get("extensions") or {})

    @property
    def takes_turns(self) -> bool:
        """Whether both sides can go on after they have heard the other: on one stream of HTTP/2, not from a browser."""
        return self.protocol != "grpc-web" and not self._scope.get("http_version", "1.1").startswith("1")

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
        """The size of all headers together, the URL among them, as HTTP/2 counts it, so that both ports agree."""
        url_bytes = len(self._scope.get("raw_path") or self.path) + len(self._scope.get("query_string", b""))
        return url_bytes + header_bytes(self._headers)

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """The headers that are the caller's own, as gRPC metadata.

        Raises:
            InvalidArgument: The value of a ``-bin`` header is not base64.
        """
        if self._metadata is None:
            headers = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in self._headers]
            self._metadata = tuple(from_http(headers))
        return self._metadata

    @property
    def details(self) -> CallDetails:
        """What decides about the call; made anew each time, because an interceptor may write into it.

        Raises:
            InvalidArgument: As `metadata`.
        """
        return CallDetails(self.path, self.metadata)

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
