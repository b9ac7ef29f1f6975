"""Compressed messages cut off, with a bit flipped or with more behind them: an error, or exactly the message.

All cuts and all flips of one small message, in requests and in replies. A few bits say nothing of the content (gzip's
time, say): with those flipped the message is the same.
"""

import asyncio
import collections

import pytest

from bombs.payloads import sound
from bombs.request_places import PLACES, seen
from quill import AsyncQuillClient, Internal, QuillClient, ResourceExhausted
from support.endings import content, ending
from support.http2 import ask_grpc, enveloped
from support.probe import UNARY, Ask

DATA = b"words and words and " + bytes(range(4))
MESSAGE = Ask(blob=DATA).SerializeToString()
REFUSED = {"invalid_argument", "3", "resource_exhausted", "8"}
"""The latter two where the damage makes a size of another kind."""
ERRORS = (Internal, ResourceExhausted)
MEANINGLESS_BITS = 64
"""In 10 bytes of gzip's header: time, system, flags; and those that fill the last byte of the data."""


def damaged(encoding, message=MESSAGE):
    """(what was done, the bytes) for each damage but a cut that leaves nothing, which stands for an empty message."""
    whole = sound(encoding, message)
    for length in range(1, len(whole)):
        yield f"cut at {length}", whole[:length]
    for bit in range(8 * len(whole)):
        yield f"bit {bit} flipped", whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]
    for tail in (b"\0", b"\0" * 100, b"x", whole[:4], whole[:-1], sound("zstd", b""), b"\x50\x2a\x4d\x18\0\0\0\0"):
        yield f"{tail[:8]!r} behind it", whole + tail


def check(counts):
    """Nothing else happened, and what is not told is no more than gzip has of bits without a meaning."""
    print(f" {dict(counts)}", end="")
    assert set(counts) <= {"refused", "the same"}
    assert counts["refused"] > 200
    assert counts["the same"] <= MEANINGLESS_BITS


HTTP = ["Connect", "Connect GET", "Connect stream", "Connect, second of a stream", "gRPC-Web"]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("place", HTTP)
@pytest.mark.parametrize("way", ["uvicorn HTTP/1.1"], indirect=True, scope="session")
def test_a_damaged_request_never_becomes_another_message(send, place, encoding):
    counts = collections.Counter()
    whole = seen((b"good" if "second" in place else b"") + DATA)
    for damage, data in damaged(encoding):
        headers, body = send(*PLACES[place](encoding, data))
        code = ending(headers, body)[0]
        if code in REFUSED:
            counts["refused"] += 1
        else:
            assert (code in ("ok", "0"), whole in content(headers, body)) == (True, True), (damage, code)
            counts["the same"] += 1
    check(counts)


@pytest.mark.parametrize("place", HTTP)
@pytest.mark.parametrize("way", ["uvicorn HTTP/1.1"], indirect=True, scope="session")
def test_a_request_cut_to_nothing_is_refused_unless_the_protocol_says_that_it_is_an_empty_message(send, place):
    told = send(*PLACES[place]("gzip", b""))
    if place in {"Connect", "Connect GET"}:  # "Servers must not attempt to decompress zero-length HTTP request content"
        assert (ending(*told)[0], told[1]) == ("ok", seen(b""))
    else:
        assert ending(*told)[0] in REFUSED


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_damaged_grpc_request_never_becomes_another_message(grpc_served, encoding):
    counts = collections.Counter()
    for damage, data in damaged(encoding):
        status, _, body = ask_grpc(grpc_served.grpc, UNARY, enveloped(data, 1), [("grpc-encoding", encoding)])
        assert (status, body) in ((13, b""), (0, enveloped(seen(DATA)))), (damage, status)
        counts["refused" if status else "the same"] += 1
    check(counts)


CONNECT_END, WEB_END = enveloped(b"{}", 2), enveloped(b"grpc-status: 0\r\n", 0x80)
REPLIES = {
    "Connect": ("call", "proto", "content-encoding", lambda data: data),
    "Connect stream": ("stream", "connect+proto", "connect-content-encoding", lambda d: enveloped(d, 1) + CONNECT_END),
    "gRPC-Web": ("call", "grpc-web+proto", "grpc-encoding", lambda data: enveloped(data, 1) + WEB_END),
}


class Caller:
    """A client of either style; a stream of one message is that message."""

    def __init__(self, style, url, protocol):
        self._runner = asyncio.Runner() if style == "async" else None
        self._client = (AsyncQuillClient if style == "async" else QuillClient)(url, protocol=protocol)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._runner is None:
            self._client.close()
        else:
            self._runner.run(self._client.close())
            self._runner.close()

    def call(self, kind):
        if self._runner is not None:
            return self._runner.run(self._call(kind))
        made = getattr(self._client, kind)("bomb.v1.Bomb", "Damaged", b"")
        return made if kind == "call" else b"".join(made)

    async def _call(self, kind):
        made = getattr(self._client, kind)("bomb.v1.Bomb", "Damaged", b"")
        return await made if kind == "call" else b"".join([message async for message in made])

    def counted(self, kind, put, encoding):
        """How the calls end whose replies are damaged; ``put`` puts a reply in place."""
        counts = collections.Counter()
        for damage, data in damaged(encoding):
            put(data)
            try:
                received = self.call(kind)
            except ERRORS:
                counts["refused"] += 1
            else:
                assert received == MESSAGE, damage
                counts["the same"] += 1
        return counts


@pytest.mark.parametrize("style", ["sync", "async"])
@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("place", REPLIES)
def test_a_damaged_reply_never_becomes_another_message(http_peer, style, encoding, place):
    kind, subtype, header, wrap = REPLIES[place]
    headers = [f"content-type: application/{subtype}", f"{header}: {encoding}"]

    def put(data):
        http_peer.replies["/bomb.v1.Bomb/Damaged"] = "200 OK", headers, wrap(data)

    with Caller(style, http_peer.url, "grpc-web" if place == "gRPC-Web" else "connect") as caller:
        check(caller.counted(kind, put, encoding))


@pytest.mark.parametrize("style", ["sync", "async"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("kind", ["call", "stream"])
def test_a_damaged_grpc_reply_never_becomes_another_message(grpc_peer, style, encoding, kind):
    def put(data):
        grpc_peer.replies["/bomb.v1.Bomb/Damaged"] = encoding, enveloped(data, 1)

    with Caller(style, grpc_peer.url, "grpc") as caller:
        check(caller.counted(kind, put, encoding))
