"""Bombs in requests to a server process: refused on every protocol, in little memory, and the server serves on.

``python -m pytest tests/bombs -sq`` prints what each cell took.
"""

import base64
import http.client
import json
import re

import pytest

from bombs.payloads import ALLOWED_MIB, DAMAGED, LARGE, grpc_payloads, payloads, sound
from support import http2
from support.http2 import enveloped
from support.probe import COLLECT, LOOK, STREAM, UNARY, Answer, Ask

GOOD = Ask(blob=b"good").SerializeToString()
CODES = {LARGE: "resource_exhausted", DAMAGED: "invalid_argument"}
NUMBERS = {LARGE: "8", DAMAGED: "3"}
GRPC_STATUSES = {8, 13}
"""Of C-core, the second where the data is damaged or its encoding is not known."""
GET_MIB = 44
"""What a bomb in a URL becomes: all servers take URLs of 64 KiB."""


def unary(subtype, header="content-encoding"):
    """A request without envelopes."""
    return lambda encoding, data: ("POST", UNARY, [("content-type", f"application/{subtype}"), (header, encoding)], data)


def stream(path, subtype, header, before=b"", wrap=bytes):
    """A request in envelopes; one message may come before."""

    def make(encoding, data):
        headers = [("content-type", f"application/{subtype}"), (header, encoding)]
        return "POST", path, headers, wrap(before + enveloped(data, 1))

    return make


def get(encoding, data):
    text = base64.urlsafe_b64encode(data).decode()
    return "GET", f"{LOOK}?connect=v1&encoding=proto&base64=1&compression={encoding}&message={text}", [], b""


PLACES = {
    "Connect": unary("proto"),
    "Connect, JSON": unary("json"),
    "Connect GET": get,
    "Connect stream": stream(STREAM, "connect+proto", "connect-content-encoding"),
    "Connect stream, JSON": stream(STREAM, "connect+json", "connect-content-encoding"),
    "Connect, second of a stream": stream(COLLECT, "connect+proto", "connect-content-encoding", enveloped(GOOD)),
    "gRPC-Web": stream(UNARY, "grpc-web+proto", "grpc-encoding"),
    "gRPC-Web stream": stream(STREAM, "grpc-web+proto", "grpc-encoding"),
    "gRPC-Web text": stream(UNARY, "grpc-web-text", "grpc-encoding", wrap=base64.b64encode),
}


@pytest.fixture(scope="session")
def send(way, served):
    """Sends a request as it is and tells the reply's headers and body."""
    if way.endswith("h2c"):
        yield lambda method, path, headers, body: http2.ask(served.http, path, headers, body, method)
        return
    connection = http.client.HTTPConnection(served.http, timeout=30)

    def send_http1(method, path, headers, body):
        connection.request(method, path, body, dict(headers))
        reply = connection.getresponse()
        return {name.lower(): value for name, value in reply.getheaders()}, reply.read()

    yield send_http1
    connection.close()


def ending(headers, body):
    """How a call ended: the Connect code or gRPC number, and the message."""
    kind = headers["content-type"]
    if kind.startswith("application/grpc-web"):
        if "grpc-status" not in headers:
            body = base64.b64decode(body) if "text" in kind else body
            lines = body[body.index(b"\x80") + 5 :].decode().split("\r\n")
            headers = dict(line.partition(":")[::2] for line in lines if line)
        return headers["grpc-status"].strip(), headers.get("grpc-message", "")
    if kind.startswith("application/connect+"):
        error = json.loads(body[body.rindex(b"\x02\0\0") + 5 :]).get("error", {})
    else:
        error = json.loads(body) if kind == "application/json" else {}
    return error.get("code", "ok"), error.get("message", "")


def show(cell, grown_mib, ended):
    print(f"\n{grown_mib:6.1f} MiB  {cell}: {' '.join(map(str, ended))[:120]}", end="")


CELLS = [
    (place, payload) for place in PLACES for payload in (payloads(GET_MIB) if place == "Connect GET" else payloads())
]


@pytest.mark.parametrize(("place", "payload"), CELLS, ids=str)
def test_a_bomb_in_a_request_is_refused_in_little_memory(served, way, send, place, payload):
    make = PLACES[place]
    served.peak.restart()
    ended = ending(*send(*make(payload.encoding, payload.data)))
    grown_mib = served.peak.grown_mib()
    show(f"{way}, {place}, {payload}", grown_mib, ended)
    assert ended[0] in (CODES[payload.outcome], NUMBERS[payload.outcome])
    if payload.outcome == LARGE:
        assert len(re.findall(r"\d+", ended[1])) >= 2, "both numbers"
    assert grown_mib < ALLOWED_MIB
    assert good(send, make, payload.encoding)


def good(send, make, encoding):
    """Whether the server reads a sound message in the same place."""
    if make is PLACES["Connect, JSON"] or make is PLACES["Connect stream, JSON"]:
        return b'"count":4' in send(*make(encoding, sound(encoding, b'{"blob": "Z29vZA=="}')))[1]
    headers, body = send(*make(encoding, sound(encoding, GOOD)))
    body = base64.b64decode(body) if "text" in headers["content-type"] else body
    return Answer(count=8 if make is PLACES["Connect, second of a stream"] else 4).SerializeToString() in body


@pytest.mark.parametrize("payload", grpc_payloads(), ids=str)
@pytest.mark.parametrize("path", [UNARY, STREAM, COLLECT])
def test_a_bomb_in_a_grpc_request_is_refused_in_little_memory(grpc_served, path, payload):
    def call(encoding, body):
        return http2.ask_grpc(grpc_served.grpc, path, body, [("grpc-encoding", encoding)])

    grpc_served.peak.restart()
    status, message, _ = call(payload.encoding, enveloped(payload.data, 1))
    grown_mib = grpc_served.peak.grown_mib()
    show(f"gRPC {path}, {payload}", grown_mib, (status, message))
    assert status in GRPC_STATUSES
    assert grown_mib < ALLOWED_MIB
    status, _, body = call("identity", enveloped(GOOD))
    assert (status, body) == (0, enveloped(Answer(count=4).SerializeToString()))
