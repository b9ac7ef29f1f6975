"""The HTTP request of a call, read from its ASGI scope."""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import cached_property
from typing import Any

from quill.errors import Metadata
from quill.server.certificates import ASGI_EXTENSION, AuthContext
from quill.server.registry import CallDetails
from quill.wire.metadata import from_http

_STREAM_PREFIX = "application/connect+"
_CALL_TYPES = frozenset(
    {"application/proto", "application/json", "application/connect+proto", "application/connect+json"}
)
_HEADER_OVERHEAD_BYTES = 32  # per header, as HTTP/2 counts it (RFC 9113, section 6.5.2), so that both ports agree
_WITHHELD = frozenset({b"accept-encoding", b"connect-accept-encoding"})


class Request:
    """What is known before the body is read."""

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        self._scope = scope
        self._headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self.path: str = scope["path"]
        """``/package.Service/Method``, for a call."""
        self.method: str = scope["method"]
        """The HTTP method."""
        self.content_type = (self.header(b"content-type") or "").partition(";")[0].strip().lower()
        """Without parameters."""

    def header(self, name: bytes) -> str | None:
        """The first value of a header."""
        for key, value in self._headers:
            if key == name:
                return value.decode("latin-1")
        return None

    @property
    def is_call(self) -> bool:
        """Whether this has the form of a Connect call, whatever its path."""
        return self.method == "POST" and self.content_type in _CALL_TYPES

    @property
    def is_stream(self) -> bool:
        """Whether messages are enveloped."""
        return self.content_type.startswith(_STREAM_PREFIX)

    @property
    def is_json(self) -> bool:
        """Whether messages are JSON."""
        return self.content_type.endswith(("/json", "+json"))

    @property
    def encoding(self) -> str:
        """How messages are compressed; ``identity`` when they are not."""
        return self.header(b"connect-content-encoding" if self.is_stream else b"content-encoding") or "identity"

    @property
    def content_length(self) -> int:
        """The announced size of the body; 0 where it is not announced."""
        return int(self.header(b"content-length") or 0)

    @property
    def header_bytes(self) -> int:
        """The size of all headers together."""
        return sum(len(key) + len(value) + _HEADER_OVERHEAD_BYTES for key, value in self._headers)

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
            return "unknown:"
        host, port = client
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def scope(self) -> MutableMapping[str, Any]:
        """The scope for connectrpc: without the wish for compressed replies, and safe to decode as UTF-8."""
        headers = [
            (key, value if value.isascii() else value.decode("latin-1").encode())
            for key, value in self._headers
            if key not in _WITHHELD
        ]
        return {**self._scope, "headers": headers}
