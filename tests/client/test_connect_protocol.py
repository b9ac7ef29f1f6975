"""The Connect protocol without a socket. What servers send is made by connectrpc, not by Quill."""

import contextlib
import itertools
import json

import pytest
from connectrpc._compression import IdentityCompression
from connectrpc._protocol import ConnectWireError
from connectrpc._protocol_connect import ConnectEnvelopeWriter
from connectrpc.code import Code as ConnectCode
from connectrpc.codec import Codec
from connectrpc.compression.zstd import ZstdCompression
from connectrpc.errors import ConnectError
from connectrpc.request import Headers
from hypothesis import given, settings
from hypothesis import strategies as st
from protobuf.wkt import Any

from quill.client.connect import request_body, request_headers
from quill.client.connect_reply import StreamReply, UnaryReply
from quill.client.transport import Call, ResponseMetadata
from quill.errors import Code, Internal, ResourceExhausted, RpcError

LIMIT = 10_000


class Bytes(Codec):
    """Messages that are bytes already."""

    def name(self):
        return "proto"

    def encode(self, message):
        return message

    def decode(self, data, message_class):
        return bytes(data)


def stream_body(messages, *, compression=None, trailers=(), error=None):
    """The body of a streaming reply."""
    writer = ConnectEnvelopeWriter(Bytes(), compression or IdentityCompression())
    wire_error = None if error is None else ConnectWireError.from_exception(error)
    return b"".join(map(writer.write, messages)) + writer.end(Headers(trailers), wire_error)


def read_stream(body, cuts=(), *, call=None, headers=(), limit=LIMIT):
    """Feed a body by pieces; the messages until the end, which may raise."""
    reply = StreamReply(call or Call(service="a.B", method="C"), limit)
    reply.head(200, [("content-type", "application/connect+proto"), *headers])
    messages = []
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(edges):
        reply.feed(body[start:end])
        while (message := reply.next_message()) is not None:
            messages.append(message)
    reply.finish()
    return messages


@given(st.lists(st.binary(max_size=50), max_size=10), st.lists(st.integers(0, 2000), max_size=10), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_stream_reads_the_same_however_it_is_cut(messages, cuts, compressed):
    compression = ZstdCompression() if compressed else None
    # An empty message travels uncompressed in Connect; connectrpc compresses it nevertheless.
    messages = [message or b"x" for message in messages]
    body = stream_body(messages, compression=compression)
    headers = [("connect-content-encoding", "zstd")] if compressed else []
    assert read_stream(body, cuts, headers=headers) == messages


def test_a_stream_is_read_byte_by_byte():
    messages = [b"", b"a", b"b" * 300]
    body = stream_body(messages)
    assert read_stream(body, range(len(body))) == messages


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_body_is_read_or_refused(body, cuts):
    with contextlib.suppress(RpcError):
        read_stream(body, cuts)


@given(st.integers(400, 599), st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_any_refusal_is_an_error(status, body):
    reply = UnaryReply(Call(service="a.B", method="C"), LIMIT)
    reply.head(status, [("content-type", "application/json")])
    reply.feed(body)
    with pytest.raises(RpcError):
        reply.message()


@pytest.mark.parametrize("code", list(ConnectCode))
def test_every_code_is_read(code):
    error = ConnectError(code, "müßig", [Any(type_url="type.googleapis.com/a.B", value=b"\x00\x01")])
    wire = ConnectWireError.from_exception(error)
    call = Call(service="a.B", method="C")
    reply = UnaryReply(call, LIMIT)
    reply.head(wire.to_http_status().code, [("content-type", "application/json"), ("trailer-x-a", "1")])
    reply.feed(wire.to_json_bytes())
    with pytest.raises(RpcError) as unary:
        reply.message()
    with pytest.raises(RpcError) as streamed:
        read_stream(stream_body([b"a"], trailers=[("x-a", "1")], error=error))
    for caught in (unary.value, streamed.value):
        assert caught.code.connect_name == code.value
        assert caught.message == "müßig"
        assert [(detail.type_name, detail.value) for detail in caught.details] == [("a.B", b"\x00\x01")]
        assert caught.trailers == (("x-a", "1"),)


@pytest.mark.parametrize(
    ("status", "code"), [(503, Code.UNAVAILABLE), (401, Code.UNAUTHENTICATED), (418, Code.UNKNOWN)]
)
@pytest.mark.parametrize("name", ["ok", "nonsense", "UNAVAILABLE"])
def test_a_code_that_is_none_is_read_from_the_status(name, status, code):
    reply = UnaryReply(Call(service="a.B", method="C"), LIMIT)
    reply.head(status, [("content-type", "application/json")])
    reply.feed(json.dumps({"code": name, "message": "oops"}).encode())
    with pytest.raises(RpcError, match="oops") as caught:
        reply.message()
    assert caught.value.code is code


def test_trailers_of_a_stream_are_told():
    call = Call(service="a.B", method="C", response=ResponseMetadata())
    body = stream_body([b"a"], trailers=[("x-a", "1"), ("x-a", "2"), ("x-bin", "AAE")])
    read_stream(body, call=call)
    assert call.response.trailers == (("x-a", "1"), ("x-a", "2"), ("x-bin", b"\x00\x01"))


def test_trailers_of_a_unary_reply_are_told():
    call = Call(service="a.B", method="C")
    reply = UnaryReply(call, LIMIT)
    reply.head(200, [("Content-Type", "application/proto"), ("X-A", "1"), ("Trailer-X-B", "2"), ("Date", "now")])
    reply.feed(b"abc")
    assert reply.message() == b"abc"
    assert call.response == ResponseMetadata((("x-a", "1"),), (("x-b", "2"),))


def test_a_message_above_the_limit_is_refused_by_its_length_alone():
    reply = StreamReply(Call(service="a.B", method="C"), LIMIT)
    reply.head(200, [("content-type", "application/connect+proto")])
    reply.feed(b"\0" + (LIMIT + 1).to_bytes(4, "big"))
    with pytest.raises(ResourceExhausted, match=f"{LIMIT + 1} bytes.*{LIMIT}"):
        reply.next_message()


def test_an_empty_message_marked_as_compressed_is_refused():
    with pytest.raises(Internal):
        read_stream(b"\x01\0\0\0\0", headers=[("connect-content-encoding", "zstd")])


def test_what_follows_the_end_is_not_read():
    body = stream_body([b"a"])
    assert read_stream(body + b"\0\0\0\0\x01x", [len(body)]) == [b"a"]


def test_a_request_says_what_the_protocol_asks_for():
    call = Call(service="a.B", method="C", codec="json", timeout_ms=5, metadata=(("x-a", "1"), ("x-b-bin", b"\xff")))
    unary = dict(request_headers(call, stream=False, encoding="zstd", user_agent="me"))
    assert unary == {
        "user-agent": "me",
        "connect-protocol-version": "1",
        "content-type": "application/json",
        "accept-encoding": "zstd, gzip",
        "content-encoding": "zstd",
        "connect-timeout-ms": "5",
        "x-a": "1",
        "x-b-bin": "/w",
    }
    stream = dict(request_headers(call, stream=True, encoding="identity", user_agent="me"))
    assert stream["content-type"] == "application/connect+json"
    assert stream["connect-accept-encoding"] == "zstd, gzip"
    assert stream["accept-encoding"] == "identity"
    assert "connect-content-encoding" not in stream


@pytest.mark.parametrize("encoding", ["identity", "zstd", "gzip"])
def test_a_request_in_an_envelope_can_be_read(encoding):
    body = request_body(b"message" * 100, stream=True, encoding=encoding)
    ended = body + b"\x02\0\0\0\x02" + json.dumps({}).encode()
    assert read_stream(ended, headers=[("connect-content-encoding", encoding)]) == [b"message" * 100]
