"""Compressed requests: what goes over the wire, and what happens when the server does not know the encoding."""

import gzip
import json

import pytest
import zstandard
from connectrpc.code import Code as ConnectCode

from client.harness import RAW, answer, ask, read_request
from quill import InvalidType, InvalidUsage, QuillClient, Unimplemented
from quill.wire.compression import MIN_COMPRESS_BYTES
from support.http2 import GrpcPeer

BIG = bytes(MIN_COMPRESS_BYTES)
SMALL = bytes(MIN_COMPRESS_BYTES - 1)


class Recorder:
    """A Connect server, to the extent of one answer: it notes requests and may not know zstd."""

    def __init__(self, *, refuses=None, streaming=False, accepts="gzip"):
        self.requests = []
        self._refuses = refuses
        self._streaming = streaming
        self._accepts = accepts

    async def __call__(self, reader, writer):
        head, body = await read_request(reader)
        text = head.decode().lower()
        self.requests.append((text, body))
        writer.write(self._refusal() if self._refuses and "content-encoding: zstd" in text else self._answer())
        await writer.drain()

    def _refusal(self):
        described = {"code": ConnectCode.UNIMPLEMENTED.value, "message": self._refuses}
        if self._streaming:
            ending = json.dumps({"error": described}).encode()
            headers = [f"connect-accept-encoding: {self._accepts}"] if self._accepts else []
            return self._answer(b"\x02" + len(ending).to_bytes(4, "big") + ending, headers)
        headers = ["content-type: application/json"] + ([f"accept-encoding: {self._accepts}"] if self._accepts else [])
        return answer("501 Not Implemented", headers, json.dumps(described).encode())

    def _answer(self, body=None, headers=()):
        if self._streaming:
            body = b"\x02\0\0\0\x02{}" if body is None else body
            return answer(headers=["content-type: application/connect+proto", *headers], body=body)
        return answer(headers=["content-type: application/proto", *headers])


@pytest.fixture(params=["call", "stream"])
def kind(request):
    return request.param


def test_requests_are_compressed_from_one_kibibyte_up(host, drive, kind):
    recorder = Recorder(streaming=kind == "stream")
    with host.tcp(recorder) as port:
        client = drive(f"http://127.0.0.1:{port}", enable_compression=True)
        for request in (BIG, SMALL):
            getattr(client, kind)("a.B", "C", request)
    (big_head, big), (small_head, small) = recorder.requests
    assert "content-encoding: zstd\r\n" in big_head
    assert "content-encoding" not in small_head
    if kind == "stream":
        assert (big[0], small[0]) == (1, 0)
        big, small = big[5:], small[5:]
    assert zstandard.ZstdDecompressor().decompress(big) == BIG
    assert small == SMALL


def test_nothing_is_compressed_unless_asked_for(host, drive, kind):
    recorder = Recorder(streaming=kind == "stream")
    with host.tcp(recorder) as port:
        getattr(drive(f"http://127.0.0.1:{port}"), kind)("a.B", "C", BIG)
    ((head, body),) = recorder.requests
    assert "content-encoding" not in head
    assert "accept-encoding: zstd, gzip\r\n" in head
    assert body.endswith(BIG)


@pytest.mark.parametrize(
    ("message", "accepts"),
    [("no", "gzip"), ("no", "gzip, br"), ('unknown compression "zstd": supported is gzip', None)],
)
def test_a_server_that_does_not_know_zstd_gets_the_call_once_more_and_is_remembered(
    host, drive, kind, message, accepts
):
    recorder = Recorder(refuses=message, streaming=kind == "stream", accepts=accepts)
    with host.tcp(recorder) as port:
        client = drive(f"http://127.0.0.1:{port}", enable_compression=True)
        for _ in range(2):
            getattr(client, kind)("a.B", "C", BIG)
    assert ["content-encoding: zstd" in head for head, _ in recorder.requests] == [True, False, False]


@pytest.mark.parametrize("accepts", ["zstd, gzip", None])
def test_a_method_that_is_not_implemented_is_not_called_twice(host, drive, kind, accepts):
    recorder = Recorder(refuses="no such method", streaming=kind == "stream", accepts=accepts)
    with host.tcp(recorder) as port, pytest.raises(Unimplemented, match="no such method"):
        getattr(drive(f"http://127.0.0.1:{port}", enable_compression=True), kind)("a.B", "C", BIG)
    assert len(recorder.requests) == 1


def test_compressed_calls_arrive(host, protocol, drive):
    client = drive(host.url(protocol), enable_compression=True)
    request = ask(bytes=3, note="x" * 5000)
    assert client.call(RAW, "Unary", request) == bytes(3)
    assert client.stream(RAW, "Stream", request) == [bytes(3)]
    assert client.client.compression_enabled


def test_grpc_requests_are_compressed_where_asked_for(host, drive):
    request = ask(bytes=1, note="x" * 100_000)
    for enabled in (True, False):
        with host.relay(host.url("grpc")) as (port, connections):
            client = drive(f"grpc://127.0.0.1:{port}", enable_compression=enabled)
            assert client.call(RAW, "Unary", request) == bytes(1)
            assert client.stream(RAW, "Stream", request) == [bytes(1)]
        assert (connections[0].sent_bytes < 20_000) is enabled


def test_the_switch_must_be_a_bool():
    with pytest.raises(InvalidType, match="enable_compression"):
        QuillClient("http://localhost", enable_compression="zstd")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("protocol", ["connect", "grpc-web"])
def test_an_encoding_that_the_server_knows_is_for_iterators_too(host, drive, protocol, encoding):
    bodies = []

    async def record(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        while (size := int(await reader.readline(), 16)) > 0:
            bodies.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
        bodies.append(head)
        ending = b"\x80\0\0\0\x0fgrpc-status: 0\r" if protocol == "grpc-web" else b"\x02\0\0\0\x02{}"
        kind = "grpc-web+proto" if protocol == "grpc-web" else "connect+proto"
        writer.write(answer(headers=[f"content-type: application/{kind}"], body=ending))
        await writer.drain()

    with host.tcp(record) as port:
        client = drive(f"http://127.0.0.1:{port}", protocol=protocol, compression=encoding)
        assert client.client.compression_enabled
        assert client.stream("a.B", "C", iter([BIG, SMALL])) == []
    big, small, head = bodies
    assert f"{'grpc' if protocol == 'grpc-web' else 'connect-content'}-encoding: {encoding}\r\n" in head
    assert (big[0], small) == (1, b"\0" + len(SMALL).to_bytes(4, "big") + SMALL)
    decode = gzip.decompress if encoding == "gzip" else zstandard.ZstdDecompressor().decompress
    assert decode(big[5:]) == BIG


def test_a_server_that_does_not_know_what_it_should_is_not_asked_again(host, drive, kind):
    recorder = Recorder(refuses="no", streaming=kind == "stream")
    with host.tcp(recorder) as port:
        client = drive(f"http://127.0.0.1:{port}", compression="zstd")
        for _ in range(2):
            with pytest.raises(Unimplemented, match="no"):
                getattr(client, kind)("a.B", "C", BIG)
    assert ["content-encoding: zstd" in head for head, _ in recorder.requests] == [True, True]


@pytest.mark.parametrize(("from_bytes", "compressed"), [(0, [True, True]), (1, [False, True]), (11, [False, False])])
def test_the_caller_says_how_large_a_request_is_compressed(host, drive, kind, from_bytes, compressed):
    recorder = Recorder(streaming=kind == "stream")
    with host.tcp(recorder) as port:
        client = drive(f"http://127.0.0.1:{port}", compression="gzip", compress_from_bytes=from_bytes)
        for request in (b"", b"\0" * 10):
            getattr(client, kind)("a.B", "C", request)
    assert ["content-encoding: gzip" in head for head, _ in recorder.requests] == compressed


def test_grpc_requests_are_compressed_from_the_size_that_the_caller_says(host, drive):
    with GrpcPeer() as peer:
        peer.replies["/a.B/C"] = ("identity", b"\0\0\0\0\0")
        for options in ({"compression": "gzip"}, {"compression": "gzip", "compress_from_bytes": 3}):
            drive(peer.url, **options).call("a.B", "C", b"\0\0\0")
    assert [asked.get("grpc-encoding") for asked in peer.requests] == [None, "gzip"]


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"compression": "br"}, InvalidUsage, "compression must be 'gzip', 'zstd' or None, got 'br'"),
        ({"compression": "zstd", "protocol": "grpc"}, InvalidUsage, "grpc knows gzip only, got compression='zstd'"),
        ({"compression": "gzip", "protocol": "quill"}, InvalidUsage, "quill knows zstd only, got compression='gzip'"),
        ({"compress_from_bytes": -1}, InvalidUsage, "compress_from_bytes must be from 0 to 2147483647, got -1"),
        ({"compress_from_bytes": True}, InvalidType, "compress_from_bytes must be an int, got bool"),
    ],
)
def test_a_wrong_setting_is_named(options, kind, said):
    with pytest.raises(kind, match=said):
        QuillClient("http://127.0.0.1:1", **options)
