"""How large messages may be: the same bound in every direction, checked before anything is buffered."""

import asyncio
import gzip
import zlib
from pathlib import Path

import pytest
import zstandard

from client.harness import RAW, answer, answering, ask, read_request
from quill import Internal, InvalidType, InvalidUsage, QuillClient, ResourceExhausted

LIMIT = 100_000
BOMB_BYTES = 512 * 1024 * 1024
ENVELOPED = "application/connect+proto"


@pytest.fixture
def small(host, protocol, drive):
    """A client that takes little."""
    return drive(host.url(protocol), max_message_bytes=LIMIT)


def test_a_reply_of_exactly_the_limit_is_taken(small):
    assert small.call(RAW, "Unary", ask(bytes=LIMIT)) == bytes(LIMIT)
    assert small.stream(RAW, "Stream", ask(bytes=LIMIT)) == [bytes(LIMIT)]


def test_a_reply_above_the_limit_is_refused_with_both_numbers(small):
    for action in (
        lambda: small.call(RAW, "Unary", ask(bytes=LIMIT + 1)),
        lambda: small.stream(RAW, "Stream", ask(bytes=LIMIT + 1)),
    ):
        with pytest.raises(ResourceExhausted, match=rf"(more than {LIMIT}|{LIMIT + 1}|larger).*{LIMIT}"):
            action()
    assert small.call(RAW, "Unary", ask(bytes=1)) == b"\0"


def test_a_request_above_the_limit_is_not_sent(small, host):
    calls = host.raw.calls
    with pytest.raises(ResourceExhausted, match=rf"{LIMIT + 1} bytes.*{LIMIT}.*nothing was sent"):
        small.call(RAW, "Unary", bytes(LIMIT + 1))
    with pytest.raises(ResourceExhausted, match=f"{LIMIT}"):
        small.stream(RAW, "Stream", bytes(LIMIT + 1))
    assert host.raw.calls == calls


def test_messages_above_four_mebibytes_pass_by_default(host, protocol, drive):
    size = 5 * 1024 * 1024
    assert len(drive(host.url(protocol)).call(RAW, "Unary", ask(bytes=size))) == size


@pytest.mark.parametrize(
    ("value", "kind"), [(0, InvalidUsage), (2**31, InvalidUsage), ("1", InvalidType), (True, InvalidType)]
)
def test_the_limit_must_be_a_size(value, kind):
    with pytest.raises(kind, match="max_message_bytes"):
        QuillClient("http://localhost", max_message_bytes=value)


def test_a_body_without_end_is_cut_off_at_the_limit(host, drive):
    sent = []

    async def endless(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ntransfer-encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"8000\r\n" + bytes(0x8000) + b"\r\n")
            sent.append(0x8000)
            await writer.drain()

    with host.tcp(endless) as port, pytest.raises(ResourceExhausted, match=f"more than {LIMIT}"):
        drive(f"http://127.0.0.1:{port}", max_message_bytes=LIMIT).call("a.B", "C", b"", timeout_ms=10_000)
    assert sum(sent) < 100 * LIMIT


def test_a_declared_length_above_the_limit_is_refused_unread(host, drive):
    async def boast(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 99999999999\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(5)

    with host.tcp(boast) as port, pytest.raises(ResourceExhausted, match="99999999999"):
        drive(f"http://127.0.0.1:{port}").call("a.B", "C", b"", timeout_ms=4000)


@pytest.mark.parametrize("flags", [0, 2])
def test_a_declared_envelope_above_the_limit_is_refused_unread(host, drive, flags):
    async def boast(reader, writer):
        await read_request(reader)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {ENVELOPED}\r\ncontent-length: 4294967300\r\n\r\n"
        writer.write(head.encode() + bytes([flags]) + b"\xff\xff\xff\xff")
        await writer.drain()
        await asyncio.sleep(5)

    with host.tcp(boast) as port, pytest.raises(ResourceExhausted, match="4294967295"):
        drive(f"http://127.0.0.1:{port}").stream("a.B", "C", b"", timeout_ms=4000)


def test_an_error_without_end_is_cut_off(host, drive):
    async def endless(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 500 X\r\ncontent-type: application/json\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" " * 0x8000)
            await writer.drain()

    with host.tcp(endless) as port:
        client = drive(f"http://127.0.0.1:{port}")
        for call in (client.call, client.stream):
            with pytest.raises(ResourceExhausted, match="more than"):
                call("a.B", "C", b"", timeout_ms=10_000)


def zstd(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


def zstd_without_size(data):
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    return compressor.compress(data) + compressor.flush()


def wide_zstd(data):
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush()


def unary_page(encoding, body, status="200 OK", content_type="application/proto"):
    return answer(status, [f"content-type: {content_type}", f"content-encoding: {encoding}"], body)


def stream_page(encoding, body):
    envelope = b"\x01" + len(body).to_bytes(4, "big") + body + b"\x02\0\0\0\x02{}"
    return answer(headers=[f"content-type: {ENVELOPED}", f"connect-content-encoding: {encoding}"], body=envelope)


@pytest.fixture(params=["unary", "stream"])
def reply(request, host, drive):
    """Gives the client a compressed reply; returns the message."""

    def give(encoding, body, **options):
        page = (unary_page if request.param == "unary" else stream_page)(encoding, body)
        with host.tcp(answering(page)) as port:
            client = drive(f"http://127.0.0.1:{port}", **options)
            if request.param == "unary":
                return client.call("a.B", "C", b"")
            return client.stream("a.B", "C", b"")[0]

    return give


@pytest.mark.parametrize(
    ("encoding", "compress"), [("zstd", zstd), ("zstd", zstd_without_size), ("gzip", gzip.compress)]
)
def test_compressed_replies_are_always_understood(reply, encoding, compress):
    data = bytes(range(256)) * 100
    assert reply(encoding, compress(data)) == data


@pytest.fixture(scope="module", params=["zstd", "zstd without a size", "gzip"])
def bomb(request):
    """Half a gibibyte of zeros, compressed by pieces, so that making it takes no memory that the test would miss."""
    if request.param == "gzip":
        compressor = zlib.compressobj(9, wbits=31)
    else:
        size = BOMB_BYTES if request.param == "zstd" else -1
        compressor = zstandard.ZstdCompressor(write_content_size=size > 0).compressobj(size=size)
    piece = bytes(1024 * 1024)
    pieces = [compressor.compress(piece) for _ in range(BOMB_BYTES // len(piece))]
    return request.param.split()[0], b"".join(pieces) + compressor.flush()


def peak_bytes():
    """The most memory that this process has had in RAM."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def test_a_bomb_is_refused_within_little_memory(reply, bomb):
    encoding, data = bomb
    assert len(data) < BOMB_BYTES // 500
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc(5))
    before = peak_bytes()
    with pytest.raises(ResourceExhausted, match="1048576"):
        reply(encoding, data, max_message_bytes=1024 * 1024)
    assert peak_bytes() - before < 64 * 1024 * 1024


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("zstd", zstd(b"a" * 1000)[:-3]),
        ("zstd", zstd(b"a") + b"x"),
        ("zstd", b"nonsense"),
        ("gzip", gzip.compress(b"a" * 1000, mtime=0)[:-3]),
        ("gzip", gzip.compress(b"a", mtime=0) + b"x"),
        ("br", b"x"),
        ("zstd, gzip", b"x"),
    ],
)
def test_a_damaged_reply_is_an_error(reply, encoding, body):
    with pytest.raises(Internal):
        reply(encoding, body)


def test_a_frame_that_asks_for_a_wide_window_is_refused(reply):
    with pytest.raises(ResourceExhausted, match="window"):
        reply("zstd", wide_zstd(b"a" * 1000))


def test_a_compressed_error_is_read_within_bounds(host, drive):
    body = b'{"code": "not_found", "message": "no"}'
    page = unary_page("gzip", gzip.compress(body), "404 Not Found", "application/json")
    bomb = unary_page("gzip", gzip.compress(bytes(50_000_000)), "404 Not Found", "application/json")
    with host.tcp(answering(page)) as port, pytest.raises(RuntimeError, match=r"^NOT_FOUND: no$"):
        drive(f"http://127.0.0.1:{port}").call("a.B", "C", b"")
    with host.tcp(answering(bomb)) as port, pytest.raises(ResourceExhausted):
        drive(f"http://127.0.0.1:{port}").call("a.B", "C", b"")
