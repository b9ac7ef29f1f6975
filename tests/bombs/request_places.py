"""Where a compressed message may stand in a request."""

import base64
import zlib

from support.http2 import enveloped
from support.probe import COLLECT, LOOK, STREAM, UNARY, Answer, Ask

GOOD = Ask(blob=b"good").SerializeToString()


def seen(data):
    """What the servicer answers to data."""
    return Answer(count=len(data), text=f"crc {zlib.crc32(data)}").SerializeToString()


def _unary(subtype):
    """A request without envelopes."""
    kind = ("content-type", f"application/{subtype}")
    return lambda encoding, data: ("POST", UNARY, [kind, ("content-encoding", encoding)], data)


def _enveloped(path, subtype, header, before=b"", wrap=bytes):
    """A request in envelopes; one message may come before."""

    def make(encoding, data):
        headers = [("content-type", f"application/{subtype}"), (header, encoding)]
        return "POST", path, headers, wrap(before + enveloped(data, 1))

    return make


def _get(encoding, data):
    text = base64.urlsafe_b64encode(data).decode()
    return "GET", f"{LOOK}?connect=v1&encoding=proto&base64=1&compression={encoding}&message={text}", [], b""


_PROTO, _WEB = "connect+proto", "grpc-web+proto"
_CONNECT, _GRPC = "connect-content-encoding", "grpc-encoding"
PLACES = {
    "Connect": _unary("proto"),
    "Connect, JSON": _unary("json"),
    "Connect GET": _get,
    "Connect stream": _enveloped(STREAM, _PROTO, _CONNECT),
    "Connect, second of a stream": _enveloped(COLLECT, _PROTO, _CONNECT, enveloped(GOOD)),
    "gRPC-Web": _enveloped(UNARY, _WEB, _GRPC),
    "gRPC-Web stream": _enveloped(STREAM, _WEB, _GRPC),
    "gRPC-Web text": _enveloped(UNARY, "grpc-web-text", _GRPC, wrap=base64.b64encode),
}
"""By name: what makes a request (method, path, headers, body) of an encoding and a compressed message."""
