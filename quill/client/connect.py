"""Requests of the Connect protocol as bytes, without a socket and without a clock.

Written from https://connectrpc.com/docs/protocol; the replies are in ``connect_reply``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Literal

from quill.client.requests import Requests
from quill.client.transport import Call, Codec
from quill.errors import Code, RpcError
from quill.wire import compression
from quill.wire.metadata import to_http
from quill.wire.pushback import PREVIOUS_ATTEMPTS_KEY

Encoding = Literal["identity", "gzip", "zstd"]

ACCEPTED = "zstd, gzip"
"""The encodings of replies."""
COMPRESSED = 0x01
"""The flag of an envelope whose message is compressed."""
ENVELOPE = struct.Struct(">BI")
"""Flags and length of a message in a stream."""

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
    if call.remaining_ms is not None:
        headers.append(("connect-timeout-ms", str(call.remaining_ms)))
    return headers + attempt_headers(call) + to_http(call.metadata)


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


def content_type(codec: Codec, *, stream: bool) -> str:
    """The content type of a request, and of a reply that is no error."""
    return f"application/connect+{codec}" if stream else f"application/{codec}"
