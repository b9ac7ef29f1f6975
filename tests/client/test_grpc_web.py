"""gRPC-Web against bytes written by hand from its document; connectrpc is the peer in test_request_streams."""

import base64
import gzip
import struct

import pytest
from google.rpc import status_pb2

from client.harness import answer, answering, read_request
from quill import DeadlineExceeded, ResponseMetadata, RpcError
from quill.errors import Code

OK_TRAILERS = b"grpc-status: 0\r\nX-Trailer: there\r\nx-data-bin: AP8\r\n"
WEB = ["content-type: application/grpc-web+proto"]


def frame(data, flags=0):
    return struct.pack(">BI", flags, len(data)) + data


def trailers(text=OK_TRAILERS):
    return frame(text, 0x80)


@pytest.fixture
def answered(host, drive):
    """Makes a client of a server that gives one answer."""
    servers = []

    def make(response, **options):
        server = host.tcp(answering(response))
        servers.append(server)
        return drive(f"http://127.0.0.1:{server.__enter__()}", protocol="grpc-web", **options)

    yield make
    for server in servers:
        server.__exit__(None, None, None)


def refused(action, *arguments, **options):
    with pytest.raises(RpcError) as caught:
        action("a.B", "C", *arguments, **options)
    return caught.value


def test_a_request_is_as_the_document_says(host, drive):
    heads = []

    async def handle(reader, writer):
        heads.append(await read_request(reader))
        writer.write(answer(headers=WEB, body=frame(b"reply") + trailers()))
        await writer.drain()

    with host.tcp(handle) as port:
        client = drive(f"http://127.0.0.1:{port}/api", protocol="grpc-web")
        assert client.call("a.B", "C", b"\x00ask", timeout_ms=5000, headers={"x-in-bin": b"\xff"}) == b"reply"
    head, body = heads[0]
    assert body == b"\x00\x00\x00\x00\x04\x00ask"
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post /api/a.b/c http/1.1"
    expected = {"content-type: application/grpc-web+proto", "x-grpc-web: 1", "grpc-timeout: 5000m", "x-in-bin: /w"}
    assert expected <= set(lines)


def test_messages_and_trailers_of_a_stream(answered):
    body = frame(b"one") + frame(b"") + frame(b"three") + trailers()
    client = answered(answer(headers=[*WEB, "x-initial: here"], body=body))
    response = ResponseMetadata()
    assert client.stream("a.B", "C", b"", response=response) == [b"one", b"", b"three"]
    assert ("x-initial", "here") in response.headers
    assert response.trailers == (("x-trailer", "there"), ("x-data-bin", b"\x00\xff"))


def test_an_error_in_the_trailers_has_its_message_and_details(answered):
    status = status_pb2.Status(code=9, message="ignored")
    status.details.add(type_url="type.googleapis.com/a.Detail", value=b"d")
    details = base64.b64encode(status.SerializeToString()).rstrip(b"=")
    text = b"grpc-status: 9\r\ngrpc-message: not h%C3%A9re\r\ngrpc-status-details-bin: " + details + b"\r\n"
    client = answered(answer(headers=WEB, body=frame(b"one") + trailers(text)))
    received = []
    error = refused(client.stream, b"", received=received)
    assert received == [b"one"]
    assert (error.code, error.message) == (Code.FAILED_PRECONDITION, "not hére")
    assert [(detail.type_name, detail.value) for detail in error.details] == [("a.Detail", b"d")]
    assert error.trailers == ()


def test_an_error_in_the_headers(answered):
    client = answered(answer(headers=[*WEB, "grpc-status: 5", "grpc-message: gone"]))
    for action in (client.call, client.stream):
        error = refused(action, b"")
        assert (error.code, error.message) == (Code.NOT_FOUND, "gone")


@pytest.mark.parametrize(
    ("response", "code", "named"),
    [
        (answer(headers=WEB, body=frame(b"one")), Code.INTERNAL, "without a status"),
        (answer(headers=WEB), Code.INTERNAL, "without a status"),
        (answer(headers=WEB, body=frame(b"one") + b"\0\0"), Code.INTERNAL, "without a status"),
        (answer(headers=WEB, body=trailers()), Code.UNIMPLEMENTED, "no message"),
        (answer(headers=WEB, body=frame(b"a") + frame(b"b") + trailers()), Code.UNIMPLEMENTED, "several messages"),
        (answer(headers=WEB, body=frame(b"one") + trailers(b"grpc-status")), Code.INTERNAL, "no header lines"),
        (answer(headers=WEB, body=frame(b"one") + trailers(b"grpc-status: x\r\n")), Code.UNKNOWN, ""),
        (answer(headers=WEB, body=frame(b"one", 0x40) + trailers()), Code.INTERNAL, "flags 0x40"),
        (answer(headers=WEB, body=frame(b"one", 1) + trailers()), Code.INTERNAL, "names no compression"),
        (answer(headers=WEB, body=frame(bytes(2000))[:100]), Code.RESOURCE_EXHAUSTED, "2000 bytes"),
        (answer(headers=["content-type: text/html"], body=b"hello"), Code.UNKNOWN, "text/html"),
        (answer("404 Not Found"), Code.UNIMPLEMENTED, "HTTP 404"),
        (answer("503 Service Unavailable", WEB), Code.UNAVAILABLE, "HTTP 503"),
        (answer("302 Found", ["location: http://elsewhere/"]), Code.UNKNOWN, "redirects"),
    ],
)
def test_what_is_no_reply_is_an_error(answered, response, code, named):
    error = refused(answered(response, max_message_bytes=1000).call, b"")
    assert error.code is code
    assert named in error.message


def test_compressed_messages_and_trailers_are_understood(answered):
    body = frame(gzip.compress(b"one"), 1) + frame(gzip.compress(OK_TRAILERS), 0x81)
    client = answered(answer(headers=[*WEB, "grpc-encoding: gzip"], body=body))
    assert client.call("a.B", "C", b"") == b"one"


def test_a_bomb_is_refused(answered):
    body = frame(gzip.compress(bytes(10_000_000)), 1) + trailers()
    client = answered(answer(headers=[*WEB, "grpc-encoding: gzip"], body=body), max_message_bytes=100_000)
    assert refused(client.call, b"").code is Code.RESOURCE_EXHAUSTED


def test_large_requests_are_gzipped_where_asked_for(host, drive):
    bodies = []

    async def handle(reader, writer):
        bodies.append(await read_request(reader))
        writer.write(answer(headers=WEB, body=frame(b"") + trailers()))
        await writer.drain()

    with host.tcp(handle) as port:
        drive(f"http://127.0.0.1:{port}", protocol="grpc-web", enable_compression=True).call("a.B", "C", bytes(5000))
    head, body = bodies[0]
    assert b"grpc-encoding: gzip" in head.lower()
    assert (body[0], gzip.decompress(body[5:])) == (1, bytes(5000))


def test_a_deadline_ends_the_call(host, drive):
    async def stall(reader, writer):
        await read_request(reader)
        await reader.read()

    with host.tcp(stall) as port:
        client = drive(f"http://127.0.0.1:{port}", protocol="grpc-web")
        with pytest.raises(DeadlineExceeded, match="300 ms"):
            client.call("a.B", "C", b"", timeout_ms=300)
