"""Bombs in replies to a client process: every protocol, blocking and asyncio, unary and streams, errors and endings.

The peers are bare sockets, and HTTP/2 by the library h2. ``python -m pytest tests/bombs -sq`` prints what each took.
"""

import itertools
import re

import pytest

from bombs.payloads import ALLOWED_MIB, DAMAGED, LARGE, Payload, grpc_payloads, payloads, sound
from support.http2 import enveloped

OK, REFUSED = "200 OK", "429 Too Many Requests"
CONNECT_END = enveloped(b"{}", 2)
WEB_END = enveloped(b"grpc-status: 0\r\n", 0x80)
MESSAGE = b"good"
ERROR = b'{"code": "aborted", "message": "good"}'


def connect(kind, subtype, status=OK):
    """The body of a unary reply or of a refusal: how it is called, the status, the headers, body and sound content."""

    def make(encoding, data):
        return status, [f"content-type: application/{subtype}", f"content-encoding: {encoding}"], data

    return kind, make, MESSAGE if status == OK else ERROR


def stream(kind, subtype, header, content=MESSAGE, *, flags=1, end=b""):
    """One envelope, and what follows it."""

    def make(encoding, data):
        headers = [f"content-type: application/{subtype}", f"{header}: {encoding}"]
        return OK, headers, enveloped(data, flags) + end

    return kind, make, content


PROTO, WEB = "connect+proto", "grpc-web+proto"
ENCODED = "connect-content-encoding"
PLACES = {
    "Connect": connect("call", "proto"),
    "Connect, error": connect("call", "json", REFUSED),
    "Connect stream": stream("stream", PROTO, ENCODED, end=CONNECT_END),
    "Connect stream, second message": stream("stream", PROTO, ENCODED, end=CONNECT_END),
    "Connect stream, its end": stream("stream", PROTO, ENCODED, b"{}", flags=3),
    "Connect stream, error in its end": stream("stream", PROTO, ENCODED, b'{"error": ' + ERROR + b"}", flags=3),
    "Connect stream, error": connect("stream", "json", REFUSED),
    "gRPC-Web": stream("call", WEB, "grpc-encoding", end=WEB_END),
    "gRPC-Web stream": stream("stream", WEB, "grpc-encoding", end=WEB_END),
    "gRPC-Web, trailers": stream(
        "call", WEB, "grpc-encoding", b"grpc-status: 10\r\ngrpc-message: good\r\n", flags=0x81
    ),
    "gRPC-Web stream, trailers": stream("stream", WEB, "grpc-encoding", b"grpc-status: 0\r\n", flags=0x81),
}
CLASSES = {LARGE: "ResourceExhausted", DAMAGED: "Internal"}
"""An error, and the message that ends a stream, may have 1 MiB: there a damaged bomb may be too large before that."""
STYLES = ("sync", "async")


def show(cell, result):
    print(f"\n{result['grown_mib']:6.1f} MiB  {cell}: {result.get('error')} {result.get('message')}"[:170], end="")


@pytest.fixture
def call(clients, http_peer):
    """Puts the replies of one cell in place, the bomb and a sound one, and makes the calls."""

    def make_calls(style, place, payload):
        kind, make, content = PLACES[place]
        status, headers, body = make(payload.encoding, payload.data)
        if place.endswith("second message"):
            body = enveloped(MESSAGE) + body
        http_peer.replies["/bomb.v1.Bomb/Bomb"] = status, headers, body
        http_peer.replies["/bomb.v1.Bomb/Good"] = make(payload.encoding, sound(payload.encoding, content))
        protocol = "grpc-web" if place.startswith("gRPC-Web") else "connect"
        return clients(http_peer.url, protocol, style, kind, "Bomb"), content

    return make_calls


@pytest.mark.parametrize("payload", payloads(), ids=str)
@pytest.mark.parametrize(("style", "place"), [*itertools.product(STYLES, PLACES)])
def test_a_bomb_in_a_reply_is_refused_in_little_memory(call, style, place, payload):
    result, content = call(style, place, payload)
    show(f"{style}, {place}, {payload}", result)
    assert result["error"] in {CLASSES[payload.outcome], CLASSES[LARGE if content is not MESSAGE else payload.outcome]}
    if payload.outcome == LARGE:
        assert len(re.findall(r"\d+", result["message"])) >= 2, "both numbers"
    assert result["grown_mib"] < ALLOWED_MIB
    said = result["next"]
    if content is MESSAGE:
        assert said == {"received": MESSAGE.hex()}
    elif b"good" in content:
        assert (said["error"], said["message"]) == ("Aborted", "ABORTED: good")
    else:
        assert said == {"received": ""}


NESTED = (b"[" * 300_000, b'{"code": "aborted", "details": ' + b"[" * 300_000)


@pytest.mark.parametrize("document", NESTED, ids=["an array", "details"])
@pytest.mark.parametrize(
    ("style", "place"), [*itertools.product(STYLES, ("Connect, error", "Connect stream, its end"))]
)
def test_json_that_is_nested_too_deep_in_a_reply_is_an_error_as_any_other(call, style, place, document):
    result, _ = call(style, place, Payload("nested", "zstd", sound("zstd", document), DAMAGED))
    assert (result["error"], result["message"]) in (
        ("Unavailable", "UNAVAILABLE: the server answered with HTTP 429 (Too Many Requests)"),
        ("Internal", "INTERNAL: the message that ends the stream is no JSON object"),
    )
    assert result["grown_mib"] < ALLOWED_MIB


GRPC_ERRORS = {"ResourceExhausted", "Internal"}
"""Of C-core, the second where the data is damaged or its encoding is not known."""


@pytest.mark.parametrize("payload", grpc_payloads(), ids=str)
@pytest.mark.parametrize(("style", "kind"), [*itertools.product(STYLES, ("call", "stream"))])
def test_a_bomb_in_a_grpc_reply_is_refused_in_little_memory(clients, grpc_peer, style, kind, payload):
    grpc_peer.replies["/bomb.v1.Bomb/Bomb"] = payload.encoding, enveloped(payload.data, 1)
    grpc_peer.replies["/bomb.v1.Bomb/Good"] = "identity", enveloped(MESSAGE)
    result = clients(grpc_peer.url, "grpc", style, kind, "Bomb")
    show(f"{style}, gRPC {kind}, {payload}", result)
    assert result["error"] in GRPC_ERRORS
    assert result["grown_mib"] < ALLOWED_MIB
    assert result["next"] == {"received": MESSAGE.hex()}
