"""Requests of the Connect protocol as bytes, without a socket and without a clock.

Written from https://connectrpc.com/docs/protocol; the replies are in ``connect_reply``.
"""

from __future__ import annotations

import struct
import urllib.parse
from collections.abc import Iterable
from typing import Literal

from quill.client.requests import Requests
from quill.client.transport import Call, Codec
from quill.errors import Code, RpcError
from quill.wire import compression
from quill.wire.base64 import encode_base64
from quill.wire.metadata import to_http
from quill.wire.pushback import PREVIOUS_ATTEMPTS_KEY

Encoding = Literal["identity", "gzip", "zstd"]

ACCEPTED = "zstd, gzip"
"""The encodings of replies."""
COMPRESSED = 0x01
"""The flag of an envelope whose message is compressed."""
ENVELOPE = struct.Struct(">BI")
"""Flags and length of a message in a stream."""

_URL_SAFE = str.maketrans("+/", "-_")

_SERVER_ACCEPTS = frozenset({"accept-encoding", "connect-accept-encoding", "grpc-accept-encoding"})


def request_headers(call: Call, *, stream: bool, encoding: Encoding, user_agent: str) -> list[tuple[str, str]]:
    """The headers of a request."""
    prefix = "connect-" if stream else ""
    headers = [
        ("user-agent", user_agent),
        ("connect-protocol-version", "1"),
        ("content-type", content_type(call.codec, stream=stream)),
        (f"{prefix}accept-encoding", ACCEPTED),
    ]
    if stream:
        headers.append(("accept-encoding", "identity"))
    if encoding != "identity":
        headers.append((f"{prefix}content-encoding", encoding))
    return headers + _call_headers(call)


def get_headers(call: Call, *, user_agent: str) -> list[tuple[str, str]]:
    """The headers of a unary request by GET."""
    return [("user-agent", user_agent), ("accept-encoding", ACCEPTED), *_call_headers(call)]


def get_query(call: Call, message: bytes, *, encoding: Encoding) -> str:
    """The query of a unary request by GET, which holds the message.

    Parameters are in the order of their names, so that equal requests are one and the same to a cache.

    Source: https://connectrpc.com/docs/protocol#unary-get-request.
    """
    compressed = "" if encoding == "identity" else f"&compression={encoding}"
    start, middle = "connect=v1", f"{compressed}&encoding={call.codec}&message="
    if call.codec == "json" and not compressed:
        return start + middle + urllib.parse.quote(message, safe="")
    data = compression.compress(encoding, message)
    return f"{start}&base64=1{middle}{encode_base64(data).translate(_URL_SAFE)}"


def _call_headers(call: Call) -> list[tuple[str, str]]:
    """The deadline and the caller's own."""
    timeout = [] if call.remaining_ms is None else [("connect-timeout-ms", str(call.remaining_ms))]
    return timeout + attempt_headers(call) + to_http(call.metadata)


def attempt_headers(call: Call) -> list[tuple[str, str]]:
    """What says that the call was sent before."""
    return [(PREVIOUS_ATTEMPTS_KEY, str(call.previous_attempts))] if call.previous_attempts else []


def request_body(message: bytes, *, stream: bool, encoding: Encoding) -> bytes:
    """The body of a request with one message; of one with several, a part."""
    data = compression.compress(encoding, message)
    flags = 0 if encoding == "identity" else COMPRESSED
    return ENVELOPE.pack(flags, len(data)) + data if stream else data


class RequestEncoding:
    """Chooses how requests are encoded, and learns from a server that does not know the encoding.

    Args:
        encoding: For requests that are large enough; "identity" for none.
        from_bytes: How large that is.
        is_known: Whether the server is known to understand the encoding.
    """

    def __init__(self, encoding: Encoding, from_bytes: int, *, is_known: bool) -> None:
        self._encoding = encoding
        self._from_bytes = from_bytes
        self._is_known = is_known

    def choose(self, request: bytes | Requests) -> Encoding:
        """The encoding for a request, or for those of several that are large enough.

        Where the server may not know it, several go as they are: their iterator cannot be asked a second time.
        """
        if isinstance(request, bytes):
            return self.of(request, self._encoding)
        return self._encoding if self._is_known else "identity"

    def of(self, message: bytes, chosen: Encoding) -> Encoding:
        """The encoding for one of several."""
        return chosen if len(message) >= self._from_bytes else "identity"

    def learn(self, used: Encoding, error: RpcError, headers: Iterable[tuple[str, str]]) -> bool:
        """Whether an error says that the server does not know the encoding, and so has not run the call.

        From then on nothing is compressed, and the call may be sent once more.
        """
        if used == "identity" or self._is_known or error.code is not Code.UNIMPLEMENTED:
            return False
        accepted = [value for name, value in headers if name in _SERVER_ACCEPTS]
        known = {part.strip() for value in accepted for part in value.split(",")}
        if used in known or not (accepted or "unknown compression" in error.message):
            return False
        self._encoding = "identity"
        return True


def content_type(codec: Codec, *, stream: bool) -> str:
    """The content type of a request, and of a reply that is no error."""
    return f"application/connect+{codec}" if stream else f"application/{codec}"
