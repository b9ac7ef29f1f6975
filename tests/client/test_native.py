"""protocol="quill" over real sockets: a small server of its own, quill.Server, and servers that misbehave."""

import asyncio
import contextlib
import threading

import pytest
import zstandard

import quill
from client.harness import answer, answering, ask, read_request
from quill import Cancelled, DeadlineExceeded, Internal, InvalidUsage, NotFound, ResourceExhausted, ResponseMetadata
from quill.errors import Code
from support.native_peer import DATA, END, SERVICE, serving

MIB = 1024 * 1024
PROTO = ["content-type: application/proto"]


@pytest.fixture(scope="module", params=["http1", "h2c"])
def carried(request, host):
    with serving(host, http2=request.param == "h2c") as (peer, url):
        yield peer, url, {"protocol": "quill", "http2": request.param == "h2c"}


@pytest.fixture
def peer(carried):
    peer = carried[0]
    peer.heads.clear()
    peer.frames.clear()
    peer.compresses = False
    peer.cut = peer.left = 0
    return peer


@pytest.fixture
def client(carried, peer, drive):
    return drive(carried[1], **carried[2])


@pytest.fixture
def another(carried, peer, drive):
    """Makes a further client, with other options."""
    return lambda path="", **options: drive(carried[1] + path, **carried[2], **options)


@pytest.fixture
def answered(host, drive):
    """Makes a client of a server that gives one answer."""
    with contextlib.ExitStack() as stack:

        def make(response, **options):
            port = stack.enter_context(host.tcp(answering(response)))
            return drive(f"http://127.0.0.1:{port}", protocol="quill", **options)

        yield make


def refused(action, *arguments, **options):
    with pytest.raises(quill.RpcError) as caught:
        action(*arguments, **options)
    return caught.value


@pytest.mark.parametrize("path", ["", "/", "/api", "/api/"])
def test_a_request_is_these_bytes_and_has_no_double_slash(host, drive, path):
    seen = []

    async def handle(reader, writer):
        seen.append(await read_request(reader))
        writer.write(answer(headers=PROTO, body=b"reply"))
        await writer.drain()

    with host.tcp(handle) as port:
        client = drive(f"http://127.0.0.1:{port}{path}", protocol="quill")
        assert client.call("a.B", "C", b"\x00ask", headers={"x-in": "v"}) == b"reply"
    head, body = seen[0]
    assert body == b"\x00ask"
    lines = head.decode().split("\r\n")
    assert lines[0] == f"POST {path.rstrip('/')}/a.B/C HTTP/1.1"
    assert {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])} == {
        "host": f"127.0.0.1:{port}",
        "user-agent": f"quill-python/{quill.__version__}",
        "content-type": "application/proto",
        "accept": "application/proto",
        "accept-encoding": "zstd",
        "prefer": "prism=hyper,turbo,classic",
        "x-in": "v",
        "content-length": "4",
    }


def test_a_stream_of_one_request_is_these_bytes(host, drive):
    seen = []

    async def handle(reader, writer):
        seen.append(await read_request(reader))
        writer.write(answer(headers=PROTO, body=bytes.fromhex("03 01 6f6e65 00 01 05 03 7468726565")))
        await writer.drain()

    with host.tcp(handle) as port:
        client = drive(f"http://127.0.0.1:{port}", protocol="quill")
        assert client.stream("a.B", "C", b"hello") == [b"one", b"", b"three"]
    assert seen[0][1] == bytes.fromhex("05 01 68656c6c6f 00 02")


@pytest.mark.parametrize("request_bytes", [b"", b"\xff\x00", bytes(2 * MIB), b"{" + bytes(5 * MIB)])
def test_a_unary_call(client, request_bytes):
    assert client.call(SERVICE, "Unary", request_bytes) == request_bytes


def test_any_success_is_one(client):
    assert client.call(SERVICE, "Accepted", b"a") == b"A"
    assert client.call(SERVICE, "Nothing", b"a") == b""


@pytest.mark.parametrize("count", [0, 1, 3, 500])
def test_a_stream_of_replies_has_all_of_them_with_the_last_in_the_end(client, count):
    assert client.stream(SERVICE, "Count", str(count).encode()) == [str(index).encode() for index in range(count)]


def test_a_stream_of_requests(client, peer):
    assert client.stream(SERVICE, "Collect", iter([b"a", b"", b"c"])) == [b"a,,c"]
    assert peer.frames == [(DATA, b"a"), (DATA, b""), (DATA, b"c"), (END, b"")]
    assert peer.cut == 0


def test_a_stream_of_no_requests(client, peer):
    assert client.stream(SERVICE, "Collect", iter([])) == [b""]
    assert peer.frames == [(END, b"")]


def test_requests_and_replies_with_credit_between(client):
    assert client.stream(SERVICE, "Chat", [b"a", b"b"] * 50) == [b"A", b"B"] * 50


def test_both_sides_take_turns_over_http2(host):
    async def talk(url):
        heard = []
        more = asyncio.Event()

        async def requests():
            for text in (b"a", b"b", b"c"):
                yield text
                await asyncio.wait_for(more.wait(), 10)
                more.clear()

        async with quill.AsyncQuillClient(url, protocol="quill", http2=True) as client:
            async for reply in client.stream(SERVICE, "Chat", requests()):
                heard.append(reply)
                more.set()
        return heard

    with serving(host, http2=True) as (_, url):
        assert asyncio.run(talk(url)) == [b"A", b"B", b"C"]


def test_large_messages_in_streams(client):
    assert client.stream(SERVICE, "Large", str(4 * MIB).encode()) == [bytes(4 * MIB)]
    assert client.stream(SERVICE, "Collect", [bytes(4 * MIB)]) == [bytes(4 * MIB)]


@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_request_that_no_frame_holds_is_refused_here(client, peer, kind):
    request = bytes(4 * MIB + 1)
    error = refused(client.stream, SERVICE, "Collect", request if kind == "one" else iter([b"a", request]))
    assert isinstance(error, ResourceExhausted)
    assert "4194305 bytes, the largest frame of the protocol is 4194304" in error.message
    assert client.call(SERVICE, "Unary", b"after it") == b"after it"


def test_replies_above_the_limit_are_refused(another):
    client = another(max_message_bytes=1000)
    assert isinstance(refused(client.stream, SERVICE, "Large", b"1001"), ResourceExhausted)
    assert client.stream(SERVICE, "Large", b"1000") == [bytes(1000)]


def test_zstd_replies_are_understood(client, peer):
    peer.compresses = True
    assert client.call(SERVICE, "Unary", b"a" * 100_000) == b"a" * 100_000
    assert client.stream(SERVICE, "Count", b"500") == [str(index).encode() for index in range(500)]
    assert client.stream(SERVICE, "Large", str(2 * MIB).encode()) == [bytes(2 * MIB)]


def test_requests_are_compressed_only_where_the_caller_insists(client, another, peer):
    request = b"a" * 5000
    assert client.call(SERVICE, "Unary", request) == request
    insisting = another(enable_compression=True)
    assert insisting.call(SERVICE, "Unary", request) == request
    assert insisting.call(SERVICE, "Unary", b"small") == b"small"
    assert insisting.stream(SERVICE, "Collect", request) == [request]
    assert insisting.stream(SERVICE, "Collect", iter([request])) == [request]
    encodings = [dict(headers).get("content-encoding") for _, headers in peer.heads]
    assert encodings == [None, "zstd", None, "zstd", None]


def test_a_server_that_takes_no_zstd_is_asked_once_more(host, drive):
    seen = []

    async def handle(reader, writer):
        head, body = await read_request(reader)
        seen.append(body)
        if b"content-encoding: zstd" in head.lower():
            writer.write(answer("415 Unsupported Media Type", ["accept-encoding: identity"]))
        else:
            writer.write(answer(headers=PROTO, body=body))
        await writer.drain()

    with host.tcp(handle) as port:
        client = drive(f"http://127.0.0.1:{port}", protocol="quill", enable_compression=True)
        for _ in range(2):
            assert client.call("a.B", "C", b"a" * 2000) == b"a" * 2000
    assert [len(body) for body in seen][1:] == [2000, 2000]
    assert zstandard.ZstdDecompressor().decompress(seen[0]) == b"a" * 2000


def test_headers_are_told_and_there_are_no_trailers(client):
    response = ResponseMetadata()
    client.stream(SERVICE, "Count", b"1", response=response)
    assert ("x-from", "peer") in response.headers
    assert response.trailers == ()


def test_a_refusal_has_its_code_text_and_detail(client):
    asked = b'{"status": 409, "title": "Taken", "detail": "the id is taken", "quill_proto_type": "a.B", "bytes": "hi"}'
    error = refused(client.call, SERVICE, "Refuse", asked, codec="proto")
    assert (error.code, error.message) == (Code.ALREADY_EXISTS, "the id is taken")
    assert [(detail.type_name, detail.value) for detail in error.details] == [("a.B", b"hi")]


def test_a_method_that_is_not_there_is_not_found(client):
    for action in (client.call, client.stream):
        error = refused(action, SERVICE, "Nowhere", b"")
        assert isinstance(error, NotFound)
        assert error.message == f"no handler for /{SERVICE}/Nowhere"


@pytest.mark.parametrize(
    ("method", "kind", "named"), [("Short", Internal, "ended before"), ("Cancelled", Cancelled, "server cancelled")]
)
def test_a_stream_that_does_not_end_well(client, method, kind, named):
    received = []
    error = refused(client.stream, SERVICE, method, b"", received=received)
    assert received == [b"a"]
    assert type(error) is kind
    assert named in error.message


def test_a_body_that_is_cut_amid_a_frame(answered):
    for body in (b"\x05", b"\x05\x01ab", b"\x80"):
        head = f"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n{PROTO[0]}\r\n\r\n".encode()
        error = refused(answered(head + body).stream, "a.B", "C", b"")
        assert error.code is Code.UNAVAILABLE


def test_what_is_no_reply_is_an_error(answered):
    page = answer(headers=["content-type: text/html"], body=b"<h1>Log in</h1>")
    for client in (answered(page).call, answered(page).stream):
        error = refused(client, "a.B", "C", b"")
        assert error.code is Code.INTERNAL
        assert "text/html" in error.message
        assert "Log in" not in error.message


def test_leaving_a_stream_ends_it(client, peer, host):
    assert client.stream(SERVICE, "Hang", b"", take=1) == [b"a"]
    host.until(lambda: peer.left)


def test_deadlines_end_calls_and_streams(client, peer, host):
    received = []
    error = refused(client.stream, SERVICE, "Hang", b"", timeout_ms=300, received=received)
    assert received == [b"a"]
    assert isinstance(error, DeadlineExceeded)
    host.until(lambda: peer.left)


def test_an_iterator_that_raises_ends_the_call_without_an_end(client, peer):
    def requests():
        yield b"a"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.stream(SERVICE, "Collect", requests())
    assert client.call(SERVICE, "Unary", b"after it") == b"after it"
    assert peer.frames in ([], [(DATA, b"a")])


def test_many_calls_at_once(carried, peer):
    with quill.QuillClient(carried[1], **carried[2]) as client:
        replies = {}

        def call(number):
            replies[number] = list(client.stream(SERVICE, "Count", str(number).encode()))

        threads = [threading.Thread(target=call, args=[number]) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert {number: len(got) for number, got in replies.items()} == {number: number for number in range(20)}


def test_a_quill_server_answers_unary_calls(host, drive):
    client = drive(host.url("connect"), protocol="quill")
    assert client.call("raw.v1.Raw", "Unary", ask(bytes=5)) == bytes(5)
    assert client.health_check() is True
    error = refused(client.call, "raw.v1.Raw", "Nope", b"")
    assert error.code is Code.UNIMPLEMENTED
    assert "Nope" in error.message
    assert refused(client.stream, "raw.v1.Raw", "Stream", ask(count=1)).code is Code.UNIMPLEMENTED


def test_json_is_transcoded(host, drive):
    client = drive(host.url("connect"), protocol="quill")
    assert client.call_json("test.v1.EchoService", "Echo", {"text": "a"})["text"] == "a"


def test_a_server_without_health_is_asked_for_its_page(client, answered):
    assert client.health_check() is False
    assert answered(answer("404 Not Found")).health_check() is False
    assert answered(answer(headers=["content-type: text/plain"])).health_check() is False


def test_grpc_schemes_of_balanced_addresses_take_no_other_protocol():
    with pytest.raises(InvalidUsage, match="gRPC's alone"):
        quill.QuillClient("grpc+dns://h:1", protocol="quill")
    with quill.QuillClient("grpc://h:1/", protocol="quill") as client:
        assert client.protocol == "quill"
