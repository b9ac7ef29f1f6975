"""The Quill framework's own protocol, as a client speaks it: requests as bytes, without a socket and without a clock.

A unary call is a POST of the message, as it is. In a stream both directions are frames (``quill.wire.frames``) of the
same content type, and nothing follows them: no trailers. The replies are in ``native_reply``.
"""

from __future__ import annotations

from quill.client.connect import Encoding
from quill.client.transport import Call
from quill.wire import compression, frames
from quill.wire.metadata import to_http

CONTENT_TYPE = "application/proto"
ACCEPTED = "zstd"
"""The encoding of replies."""
REQUEST_END = frames.encode_frame(frames.END_STREAM)
"""What follows the last request of a stream."""

_PROFILES = "prism=hyper,turbo,classic"
"""The versions of HTTP that the framework has, the best first: what carries the call is settled already."""


def request_headers(call: Call, *, encoding: Encoding, user_agent: str) -> list[tuple[str, str]]:
    """The headers of a request. The protocol has none for deadlines: they end the exchange."""
    headers = [
        ("user-agent", user_agent),
        ("content-type", CONTENT_TYPE),
        ("accept", CONTENT_TYPE),
        ("accept-encoding", ACCEPTED),
        ("prefer", _PROFILES),
    ]
    if encoding != "identity":
        headers.append(("content-encoding", encoding))
    return headers + to_http(call.metadata)


def request_body(message: bytes, *, stream: bool, encoding: Encoding) -> bytes:
    """The body of a request with one message."""
    # The end is a frame of its own: servers are known that look for it first, and would drop a message beside it.
    body = request_part(message) + REQUEST_END if stream else message
    return compression.compress(encoding, body)


def request_part(message: bytes) -> bytes:
    """One of several requests."""
    return frames.encode_frame(frames.DATA, message)
