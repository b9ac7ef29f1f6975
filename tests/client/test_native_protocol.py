"""The Quill framework's protocol without a socket, against bytes written by hand from its description."""

import contextlib
import itertools
import json

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.client import native
from quill.client.native_reply import StreamReply, UnaryReply
from quill.client.transport import Call, ResponseMetadata
from quill.errors import Cancelled, Code, Internal, ResourceExhausted, RpcError
from support.native_peer import CANCEL, CREDIT, DATA, END, frame, number

LIMIT = 10_000
PROTO = ("content-type", "application/proto")
PROBLEM = ("content-type", "application/problem+json")


def call(**options):
    return Call(service="a.B", method="C", **options)


def read_stream(body, cuts=(), *, headers=(), limit=LIMIT, status=200):
    """Feed a body by pieces; the messages until the end, which may raise."""
    reply = StreamReply(call(), limit)
    reply.head(status, [PROTO, *headers])
    messages = []
    for start, end in itertools.pairwise([0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]):
        reply.feed(body[start:end])
        while (message := reply.next_message()) is not None:
            messages.append(message)
        if reply.ended:
            break
    reply.finish()
    return messages


def refusal(status, body=b"", headers=(PROBLEM,), reader=UnaryReply):
    """The error of an answer that is no success."""

    def read():
        reply = reader(call(), LIMIT)
        reply.head(status, headers)
        reply.feed(body)
        return reply.message() if reader is UnaryReply else reply.finish()

    with pytest.raises(RpcError) as caught:
        read()
    return caught.value


def test_a_request_is_as_described():
    assert native.request_headers(call(metadata=(("x-bin", b"\xff"),)), encoding="identity", user_agent="me") == [
        ("user-agent", "me"),
        ("content-type", "application/proto"),
        ("accept", "application/proto"),
        ("accept-encoding", "zstd"),
        ("prefer", "prism=hyper,turbo,classic"),
        ("x-bin", "/w"),
    ]
    assert native.request_body(b"hello", stream=False, encoding="identity") == b"hello"
    assert native.request_body(b"hello", stream=True, encoding="identity") == b"\x05\x01hello\x00\x02"
    assert native.request_part(b"a" * 200) == b"\xc8\x01\x01" + b"a" * 200
    assert native.REQUEST_END == b"\x00\x02"


def test_a_compressed_request_says_so_and_is_compressed_as_a_whole():
    headers = dict(native.request_headers(call(), encoding="zstd", user_agent="me"))
    assert headers["content-encoding"] == "zstd"
    body = native.request_body(b"a" * 2000, stream=True, encoding="zstd")
    assert zstandard.ZstdDecompressor().decompress(body) == b"\xd0\x0f\x01" + b"a" * 2000 + b"\x00\x02"


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0, 3000), max_size=10), st.data())
@settings(max_examples=200, deadline=None)
def test_a_stream_reads_the_same_however_it_is_cut(messages, cuts, data):
    sent = list(messages)
    body = b"".join(frame(DATA, message) + frame(CREDIT, number(1)) for message in sent) + frame(END)
    if messages and data.draw(st.booleans(), label="the last message ends the stream"):
        body = b"".join(frame(DATA, message) for message in sent[:-1]) + frame(DATA | END, sent[-1])
    headers = []
    if data.draw(st.booleans(), label="compressed"):
        headers = [("content-encoding", "zstd")]
        encoder = zstandard.ZstdCompressor().compressobj()
        body = encoder.compress(body) + encoder.flush()
    assert read_stream(body, cuts, headers=headers) == messages


def test_a_stream_is_read_byte_by_byte():
    body = frame(DATA) + frame(CREDIT, number(300)) + frame(DATA, b"b" * 300) + frame(DATA | END, b"c")
    assert read_stream(body, range(len(body))) == [b"", b"b" * 300, b"c"]


def test_what_follows_the_end_is_not_read():
    assert read_stream(frame(DATA | END, b"a") + b"\xff\xff\xff") == [b"a"]


@pytest.mark.parametrize("size", range(len(frame(DATA, b"ab") + frame(END))))
def test_a_stream_that_is_cut_is_an_error_wherever_it_is_cut(size):
    with pytest.raises(Internal, match="ended before"):
        read_stream((frame(DATA, b"ab") + frame(END))[:size])


def test_a_stream_that_the_server_cancels_is_cancelled():
    with pytest.raises(Cancelled, match="server cancelled"):
        read_stream(frame(DATA, b"a") + frame(CANCEL))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"\x00\x00", "0x00"),
        (b"\x00\x10", "0x10"),
        (b"\x01\x02a", "1 bytes"),
        (b"\x80\x80\x80\x80\x80\x01", "5 bytes"),
        (b"\x00\x08", "credit"),
    ],
)
def test_what_are_no_frames_is_an_error(body, named):
    with pytest.raises(Internal, match=named):
        read_stream(body + frame(END))


@pytest.mark.parametrize("compressed", [False, True])
def test_credit_without_end_is_an_error_and_takes_no_time(compressed):
    body = frame(CREDIT, number(1)) * 1_000_000
    headers = []
    if compressed:
        body, headers = zstandard.ZstdCompressor().compress(body), [("content-encoding", "zstd")]
    with pytest.raises(Internal, match="4096 frames of credit"):
        read_stream(body, headers=headers)


def test_credit_that_comes_bit_by_bit_has_no_bound():
    reply = StreamReply(call(), LIMIT)
    reply.head(200, [PROTO])
    for _ in range(3):
        reply.feed(frame(CREDIT, number(1)) * 4096)
        assert reply.next_message() is None


def test_a_message_above_the_limit_is_refused_by_its_length_alone():
    with pytest.raises(ResourceExhausted, match=f"{LIMIT + 1} bytes.*{LIMIT}"):
        read_stream(number(LIMIT + 1))


def test_a_bomb_in_a_stream_is_refused():
    bomb = zstandard.ZstdCompressor().compress(frame(DATA, bytes(100 * 1024 * 1024)))
    with pytest.raises(ResourceExhausted, match="limit"):
        read_stream(bomb, headers=[("content-encoding", "zstd")])


def test_a_unary_reply_is_the_body_of_any_success():
    for status in (200, 201, 202, 299):
        reply = UnaryReply(call(), LIMIT)
        reply.head(status, [PROTO])
        reply.feed(b"ab")
        reply.feed(b"c")
        assert reply.message() == b"abc"


def test_a_reply_without_a_body_needs_no_content_type():
    reply = UnaryReply(call(), LIMIT)
    reply.head(204, [])
    assert reply.message() == b""


def test_headers_are_metadata():
    asked = call(response=ResponseMetadata())
    reply = UnaryReply(asked, LIMIT)
    reply.head(200, [PROTO, ("X-From", "peer")])
    assert reply.message() == b""
    assert asked.response == ResponseMetadata((("x-from", "peer"),), ())


@pytest.mark.parametrize("reader", [UnaryReply, StreamReply])
@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ([("content-type", "text/html")], "text/html"),
        ([PROTO, ("content-encoding", "gzip")], "gzip"),
        ([PROTO, ("content-encoding", "br")], "br"),
    ],
)
def test_a_success_that_is_none_of_the_protocol_is_an_error(reader, headers, named):
    with pytest.raises(Internal, match=named):
        reader(call(), LIMIT).head(200, headers)


@pytest.mark.parametrize("damage", [b"", b"x", b"(\xb5/\xfd"])
def test_a_damaged_compressed_reply_is_an_error(damage):
    whole = zstandard.ZstdCompressor().compress(b"a" * 100)
    reply = UnaryReply(call(), LIMIT)
    reply.head(200, [PROTO, ("content-encoding", "zstd")])
    reply.feed(whole[:-1] if not damage else whole + damage)
    with pytest.raises(Internal, match="damaged"):
        reply.message()


@pytest.mark.parametrize("reader", [UnaryReply, StreamReply])
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Code.INVALID_ARGUMENT),
        (401, Code.UNAUTHENTICATED),
        (403, Code.PERMISSION_DENIED),
        (404, Code.NOT_FOUND),
        (409, Code.ALREADY_EXISTS),
        (412, Code.FAILED_PRECONDITION),
        (413, Code.RESOURCE_EXHAUSTED),
        (418, Code.UNKNOWN),
        (429, Code.RESOURCE_EXHAUSTED),
        (499, Code.CANCELLED),
        (500, Code.INTERNAL),
        (501, Code.UNIMPLEMENTED),
        (502, Code.UNAVAILABLE),
        (503, Code.UNAVAILABLE),
        (504, Code.DEADLINE_EXCEEDED),
        (302, Code.UNKNOWN),
    ],
)
def test_the_status_is_the_code_with_a_document_and_without(reader, status, code):
    document = {"type": f"urn:quill:error:{status}", "title": "Titled", "status": status}
    described = refusal(status, json.dumps(document).encode(), reader=reader)
    assert (described.code, described.message) == (code, "Titled")
    for headers in ([("content-type", "text/html")], [], [PROBLEM]):
        plain = refusal(status, b"<h1>no</h1>", headers, reader)
        assert plain.code is code
        assert f"HTTP {status}" in plain.message
        assert "<h1>" not in plain.message


def test_a_problem_document_has_a_text_and_a_typed_detail():
    document = {
        "type": "urn:quill:error:404",
        "title": "Not Found",
        "status": 404,
        "detail": "no such shelf",
        "instance": "/shelves/1",
        "quill_proto_type": "library.v1.Shelf",
        "quill_proto_detail_base64": "AAEC/w==",
    }
    error = refusal(404, json.dumps(document).encode(), [PROBLEM, ("X-From", "peer")])
    assert (error.code, error.message) == (Code.NOT_FOUND, "no such shelf")
    assert [(detail.type_name, detail.value) for detail in error.details] == [("library.v1.Shelf", b"\0\x01\x02\xff")]
    assert error.metadata == (("x-from", "peer"),)


@pytest.mark.parametrize(
    "document",
    [
        [],
        "text",
        None,
        {},
        {"title": 5, "detail": ["x"]},
        {"title": "", "detail": ""},
        {"quill_proto_type": "a.B", "quill_proto_detail_base64": "no base64!"},
        {"quill_proto_type": 5, "quill_proto_detail_base64": "AA=="},
        {"quill_proto_type": "a.B"},
    ],
)
def test_a_document_that_is_none_is_a_clean_error(document):
    error = refusal(409, json.dumps(document).encode())
    assert (error.code, error.message) == (Code.ALREADY_EXISTS, "the server answered with HTTP 409 (Conflict)")
    assert error.details == ()


@given(st.integers(400, 599), st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_any_refusal_is_an_error(status, body):
    assert isinstance(refusal(status, body), RpcError)


def test_an_error_is_bounded():
    error = refusal(400, b"{" + b" " * 2_000_000)
    assert error.code is Code.RESOURCE_EXHAUSTED


def test_a_compressed_problem_document_is_read():
    body = zstandard.ZstdCompressor().compress(b'{"title": "No"}')
    assert refusal(403, body, [PROBLEM, ("content-encoding", "zstd")]).message == "No"


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_body_is_read_or_refused(body, cuts, compressed):
    with contextlib.suppress(RpcError):
        read_stream(body, cuts, headers=[("content-encoding", "zstd")] if compressed else [])
