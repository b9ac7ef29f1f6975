"""Bombs in requests to a server process: refused on every protocol, in little memory, and the server serves on.

``python -m pytest tests/bombs -sq`` prints what each cell took.
"""

import re

import pytest

from bombs.payloads import ALLOWED_MIB, DAMAGED, LARGE, grpc_payloads, payloads, sound
from bombs.request_places import GOOD, PLACES, seen
from support.endings import content, ending
from support.http2 import ask_grpc, enveloped
from support.probe import COLLECT, STREAM, UNARY

ENDINGS = {LARGE: ("resource_exhausted", "8"), DAMAGED: ("invalid_argument", "3")}
GRPC_STATUSES = {8, 13}
"""Of C-core, the second where the data is damaged or its encoding is not known."""
GET_MIB = 44
"""What a bomb in a URL becomes: all servers take URLs of 64 KiB."""

CELLS = [
    (place, payload) for place in PLACES for payload in (payloads(GET_MIB) if place == "Connect GET" else payloads())
]


def show(cell, grown_mib, ended):
    print(f"\n{grown_mib:6.1f} MiB  {cell}: {' '.join(map(str, ended))[:120]}", end="")


@pytest.mark.parametrize(("place", "payload"), CELLS, ids=str)
def test_a_bomb_in_a_request_is_refused_in_little_memory(served, way, send, place, payload):
    served.peak.restart()
    ended = ending(*send(*PLACES[place](payload.encoding, payload.data)))
    grown_mib = served.peak.grown_mib()
    show(f"{way}, {place}, {payload}", grown_mib, ended)
    assert ended[0] in ENDINGS[payload.outcome]
    if payload.outcome == LARGE:
        assert len(re.findall(r"\d+", ended[1])) >= 2, "both numbers"
    assert grown_mib < ALLOWED_MIB
    assert serves(send, place, payload.encoding)


def serves(send, place, encoding):
    """Whether the server reads a sound message in the same place."""
    if place.endswith("JSON"):
        headers, body = send(*PLACES[place](encoding, sound(encoding, b'{"blob": "Z29vZA=="}')))
        return b'"count":4' in body
    headers, body = send(*PLACES[place](encoding, sound(encoding, GOOD)))
    return seen(b"good" * (2 if "second" in place else 1)) in content(headers, body)


@pytest.mark.parametrize("payload", grpc_payloads(), ids=str)
@pytest.mark.parametrize("path", [UNARY, STREAM, COLLECT])
def test_a_bomb_in_a_grpc_request_is_refused_in_little_memory(grpc_served, path, payload):
    def call(encoding, body):
        return ask_grpc(grpc_served.grpc, path, body, [("grpc-encoding", encoding)])

    grpc_served.peak.restart()
    status, message, _ = call(payload.encoding, enveloped(payload.data, 1))
    grown_mib = grpc_served.peak.grown_mib()
    show(f"gRPC {path}, {payload}", grown_mib, (status, message))
    assert status in GRPC_STATUSES
    assert grown_mib < ALLOWED_MIB
    status, _, body = call("identity", enveloped(GOOD))
    assert (status, body) == (0, enveloped(seen(b"good")))
