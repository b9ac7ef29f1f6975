"""Bounds hold on both ports, before anything is buffered or made."""

import gzip
import tracemalloc

import grpc
import grpc.aio
import pytest
import zstandard

from quill.limits import Limits
from support.http1 import Connection, ask, enveloped, post
from support.probe import STREAM, UNARY, Answer, Ask, Stub, outcome, serving

LIMIT = 100_000
LIMITS = Limits(max_message_bytes=LIMIT, max_metadata_bytes=4096)


async def echo(request, context):
    return Answer(blob=bytes(request.count), text=request.text)


async def stream(request, context):
    yield Answer(text="first")
    yield Answer(blob=bytes(request.count), text=request.text)


def zstd(data):
    return zstandard.ZstdCompressor().compress(data)


async def test_a_request_at_the_limit_passes_and_one_byte_more_does_not():
    fits = Ask(text="x" * (LIMIT - 4)).SerializeToString()
    assert len(fits) == LIMIT
    over = Ask(text="x" * (LIMIT - 3)).SerializeToString()
    async with (
        serving(limits=LIMITS, unary=echo, stream=stream) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        assert len(await channel.unary_unary(UNARY)(fits)) == LIMIT
        assert (await outcome(channel.unary_unary(UNARY)(over))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await post(server.http_url, UNARY, "application/proto", fits)).status == 200
        reply = await post(server.http_url, UNARY, "application/proto", over)
        assert (reply.status, reply.json()["code"]) == (429, "resource_exhausted")
        assert str(LIMIT) in reply.json()["message"]
        assert str(LIMIT + 1) in reply.json()["message"]
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(fits))
        assert len(reply.messages()) == 2
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(over))
        assert reply.end()["error"]["code"] == "resource_exhausted"


async def test_an_announced_body_over_the_limit_is_refused_before_it_is_sent():
    async with (
        serving(limits=LIMITS, unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        headers = [("content-type", "application/proto"), ("content-length", str(10**12))]
        await connection.ask("POST", UNARY, b"", headers)
        assert (await connection.reply()).json()["code"] == "resource_exhausted"


async def test_a_chunked_body_is_refused_as_soon_as_it_is_over_the_limit():
    async with (
        serving(limits=LIMITS, unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        headers = [("content-type", "application/proto"), ("transfer-encoding", "chunked")]
        await connection.ask("POST", UNARY, b"", headers)
        for _ in range(3):
            await connection.send(b"c000\r\n" + bytes(0xC000) + b"\r\n")
        assert (await connection.reply()).json()["code"] == "resource_exhausted"


async def test_an_envelope_that_announces_too_much_is_refused_before_it_is_sent():
    async with (
        serving(limits=LIMITS, stream=stream) as server,
        await Connection.open(server.http_url) as connection,
    ):
        headers = [("content-type", "application/connect+proto"), ("transfer-encoding", "chunked")]
        await connection.ask("POST", STREAM, b"", headers)
        await connection.send(b"5\r\n\x00\xff\xff\xff\xff\r\n")
        assert (await connection.reply()).end()["error"]["code"] == "resource_exhausted"


async def test_a_reply_over_the_limit_is_refused_on_both_ports():
    async with (
        serving(limits=LIMITS, unary=echo, stream=stream) as server,
        Stub(server.grpc_address) as stub,
    ):
        for call in (stub.unary(Ask(count=LIMIT)), stub.stream(Ask(count=LIMIT))):
            error = await outcome(call)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details() == f"the reply has {LIMIT + 4} bytes, max_message_bytes is {LIMIT}"
        ask = Ask(count=LIMIT).SerializeToString()
        assert (await post(server.http_url, UNARY, "application/proto", ask)).json()["code"] == "resource_exhausted"
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(ask))
        assert len(reply.messages()) == 1
        assert reply.end()["error"]["code"] == "resource_exhausted"


async def test_headers_over_the_limit_are_refused_on_both_ports():
    value = "v" * 5000
    async with (
        serving(limits=LIMITS, unary=echo, stream=stream) as server,
        Stub(server.grpc_address) as stub,
    ):
        error = await outcome(stub.unary(Ask(), metadata=(("x-much", value),)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        headers = [("x-much", value)]
        reply = await post(server.http_url, UNARY, "application/proto", b"", headers)
        if reply.status != 431:  # the whole request came in one piece, so that the application could answer
            assert (reply.status, reply.json()["code"]) == (429, "resource_exhausted")
        many = [(f"x-{number}", "v") for number in range(200)]
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(b""), many)
        if reply.status != 431:
            assert reply.end()["error"]["code"] == "resource_exhausted"


async def flood(connection, piece):
    """Send the same bytes up to 10 MB, or until the other side has had enough."""
    for _ in range(10_000_000 // len(piece)):
        await connection.send(piece)


@pytest.mark.parametrize("piece", [b"x: " + b"v" * 10_000 + b"\r\n", b"v" * 10_000])
async def test_headers_that_never_end_are_cut_off(piece):
    async with (
        serving(limits=LIMITS, unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        await connection.send(f"POST {UNARY} HTTP/1.1\r\nhost: test\r\nx-long: ".encode())
        with pytest.raises(ConnectionError):
            await flood(connection, piece)


async def test_headers_that_are_too_long_are_refused_with_431():
    async with (
        serving(limits=LIMITS, unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        await connection.send(f"POST {UNARY} HTTP/1.1\r\nx-long: ".encode() + b"v" * 5000)
        reply = await connection.reply()
        assert (reply.status, reply["connection"]) == (431, "close")
        assert b"4096" in reply.body


async def test_trailers_of_a_request_that_never_end_are_cut_off():
    async with (
        serving(limits=LIMITS, unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        headers = [("content-type", "application/proto"), ("transfer-encoding", "chunked")]
        await connection.ask("POST", UNARY, b"0\r\nx-long: ", headers)
        with pytest.raises(ConnectionError):
            await flood(connection, b"v" * 10_000)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd)])
async def test_compressed_requests_are_read(encoding, compress):
    ask = Ask(text="hello " * 100).SerializeToString()
    async with serving(unary=echo, stream=stream) as server:
        reply = await post(server.http_url, UNARY, "application/proto", compress(ask), [("content-encoding", encoding)])
        assert Answer.FromString(reply.body).text == "hello " * 100
        headers = [("connect-content-encoding", encoding)]
        for body in (enveloped(compress(ask), flags=1), enveloped(ask)):
            reply = await post(server.http_url, STREAM, "application/connect+proto", body, headers)
            assert Answer.FromString(reply.messages()[1]).text == "hello " * 100


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd)])
@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data + b"\0", lambda data: b"junk" + data])
async def test_damaged_compressed_requests_are_refused(encoding, compress, damage):
    data = damage(compress(Ask(text="hello " * 100).SerializeToString()))
    async with serving(unary=echo, stream=stream) as server:
        reply = await post(server.http_url, UNARY, "application/proto", data, [("content-encoding", encoding)])
        assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")
        headers = [("connect-content-encoding", encoding)]
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(data, flags=1), headers)
        assert reply.end()["error"]["code"] == "invalid_argument"


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd)])
async def test_a_bomb_is_refused_within_the_limit(encoding, compress):
    bomb = compress(bytes(200_000_000))
    assert len(bomb) < LIMIT * 2
    limits = Limits(max_message_bytes=1_000_000)
    async with serving(limits=limits, unary=echo) as server:
        await post(server.http_url, UNARY, "application/proto", compress(b"") or b"", [("content-encoding", encoding)])
        tracemalloc.start()
        reply = await post(server.http_url, UNARY, "application/proto", bomb, [("content-encoding", encoding)])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (reply.status, reply.json()["code"]) == (429, "resource_exhausted")
        assert peak < 30_000_000


async def test_an_unknown_encoding_is_refused_with_those_that_are_known():
    async with serving(unary=echo, stream=stream) as server:
        reply = await post(server.http_url, UNARY, "application/proto", b"x", [("content-encoding", "br")])
        assert (reply.status, reply.json()["code"], reply["accept-encoding"]) == (501, "unimplemented", "zstd, gzip")
        headers = [("connect-content-encoding", "br")]
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(b"x", 1), headers)
        assert reply.end()["error"]["code"] == "unimplemented"
        assert reply["connect-accept-encoding"] == "zstd, gzip"


async def test_replies_are_not_compressed_unasked():
    async with serving(unary=echo, stream=stream) as server:
        asked = Ask(text="hello " * 1000).SerializeToString()
        accept = [("accept-encoding", "gzip, zstd"), ("connect-accept-encoding", "gzip, zstd")]
        reply = await post(server.http_url, UNARY, "application/proto", asked, accept)
        assert Answer.FromString(reply.body).text == "hello " * 1000
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(asked), accept)
        assert Answer.FromString(reply.messages()[1]).text == "hello " * 1000


async def test_connections_over_the_limit_get_503():
    async with serving(limits=Limits(max_connections=2), unary=echo) as server:
        async with await Connection.open(server.http_url) as one, await Connection.open(server.http_url) as two:
            for connection in (one, two):
                await connection.ask("GET", "/healthz")
                assert (await connection.reply()).status == 200
            assert (await ask(server.http_url, "GET", "/healthz")).status == 503
        for _ in range(100):
            if (await ask(server.http_url, "GET", "/healthz")).status == 200:
                return
        raise AssertionError("connections that have closed still count")
