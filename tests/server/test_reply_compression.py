"""Compressed replies: only where the server was told to, only what the client accepts, only what is worth it."""

import asyncio
import functools
import gzip
import os

import grpc
import grpc.aio
import pytest
import zstandard

from support import http2
from support.http1 import Connection, ask, enveloped, post
from support.official import ending, official
from support.probe import LOOK, STREAM, UNARY, Answer, Ask, Stub, serving

ON = {"compression": True}
DECODERS = {"gzip": gzip.decompress, "zstd": lambda data: zstandard.ZstdDecompressor().decompress(data)}
LARGE = Answer(text="x" * 5000).SerializeToString()
SMALL = Answer(text="x" * 100).SerializeToString()


async def unary(request, context):
    return Answer(text="x" * request.count)


async def stream(request, context):
    yield Answer(text="x" * 100)
    yield Answer(text="x" * request.count)
    yield Answer(text="x" * request.count)


def asked(count):
    return Ask(count=count).SerializeToString()


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_large_unary_reply_is_compressed_for_who_accepts_it(encoding):
    async with serving(unary=unary, options=ON) as server:
        reply = await post(server.http_url, UNARY, "application/proto", asked(5000), [("accept-encoding", encoding)])
        assert (reply["content-encoding"], reply["vary"]) == (encoding, "Accept-Encoding")
        assert len(reply.body) < 1000
        assert DECODERS[encoding](reply.body) == LARGE
        document = b'{"count": 5000}'
        reply = await post(server.http_url, UNARY, "application/json", document, [("accept-encoding", encoding)])
        assert DECODERS[encoding](reply.body) == b'{"text":"%s"}' % (b"x" * 5000)


@pytest.mark.parametrize(
    ("accept", "count", "encoding"),
    [
        (None, 5000, None),
        ("br", 5000, None),
        ("gzip;q=0", 5000, None),
        ("gzip, zstd;q=0.5", 5000, "gzip"),
        ("identity;q=0", 5000, None),
        ("gzip", 100, None),
        ("gzip", 1020, None),
        ("gzip", 1021, "gzip"),
        ("gzip, identity;q=0", 100, "gzip"),
        ("gzip, *;q=0", 0, None),
    ],
)
async def test_unary_replies_follow_the_weights_and_the_size(accept, count, encoding):
    headers = [] if accept is None else [("accept-encoding", accept)]
    async with serving(unary=unary, options=ON) as server:
        reply = await post(server.http_url, UNARY, "application/proto", asked(count), headers)
        assert (reply.status, reply["content-encoding"]) == (200, encoding)
        body = DECODERS[encoding](reply.body) if encoding else reply.body
        assert body == Answer(text="x" * count).SerializeToString()


async def test_several_accept_headers_are_one_list():
    async with serving(unary=unary, options=ON) as server:
        headers = [("accept-encoding", "br"), ("accept-encoding", "gzip")]
        reply = await post(server.http_url, UNARY, "application/proto", asked(2000), headers)
        assert reply["content-encoding"] == "gzip"


async def test_errors_are_not_compressed():
    async def fail(request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "x" * 2000)

    async with serving(unary=fail, options=ON) as server:
        reply = await post(
            server.http_url, UNARY, "application/proto", b"", [("accept-encoding", "gzip, identity;q=0")]
        )
        assert (reply.status, reply["content-encoding"], reply.json()["message"]) == (404, None, "x" * 2000)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize(
    ("kind", "header"), [("application/connect+proto", "connect-"), ("application/grpc-web+proto", "grpc-")]
)
async def test_each_message_of_a_stream_is_compressed_for_itself(kind, header, encoding):
    content = "connect-content-encoding" if header == "connect-" else "grpc-encoding"
    async with serving(stream=stream, options=ON) as server:
        reply = await post(
            server.http_url, STREAM, kind, enveloped(asked(5000)), [(header + "accept-encoding", encoding)]
        )
        assert (reply[content], reply["content-encoding"]) == (encoding, None)
        *messages, end = reply.envelopes()
        assert [flags for flags, _ in messages] == [0, 1, 1]
        assert messages[0][1] == SMALL
        assert [DECODERS[encoding](data) for _, data in messages[1:]] == [LARGE, LARGE]
        assert end[0] in (2, 0x80)
        reply = await post(server.http_url, STREAM, kind, enveloped(asked(5000)))
        assert {flags for flags, _ in reply.envelopes()[:-1]} == {0}
        assert reply[content] in (None, "identity")


@pytest.mark.parametrize("protocol", ["connect", "grpc-web"])
async def test_the_official_client_reads_compressed_replies(protocol):
    async with serving(unary=unary, stream=stream, options=ON) as server, official(server.http_url, protocol) as client:
        assert (await client.unary(Ask(count=5000))).text == "x" * 5000
        assert [len(reply.text) for reply in await ending(client.stream(Ask(count=5000)))] == [100, 5000, 5000]


async def test_a_get_is_compressed_and_says_what_it_varies_with():
    async with serving(look=unary, options=ON) as server:
        path = f'{LOOK}?encoding=json&message=%7B"count":5000%7D'.replace('"', "%22")
        reply = await ask(server.http_url, "GET", path, b"", [("accept-encoding", "zstd")])
        assert (reply["content-encoding"], reply["vary"]) == ("zstd", "Accept-Encoding")
        assert len(DECODERS["zstd"](reply.body)) > 5000


async def test_a_servicer_can_leave_replies_as_they_are():
    async def none(request, context):
        context.set_compression(grpc.Compression.NoCompression)
        return await unary(request, context)

    async def not_the_first(request, context):
        context.disable_next_message_compression()
        yield Answer(text="x" * 5000)
        yield Answer(text="x" * 5000)

    async with serving(unary=none, stream=not_the_first, options=ON) as server:
        reply = await post(server.http_url, UNARY, "application/proto", asked(5000), [("accept-encoding", "gzip")])
        assert reply["content-encoding"] is None
        headers = [("connect-accept-encoding", "gzip")]
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(b""), headers)
        assert [flags for flags, _ in reply.envelopes()] == [0, 1, 2]


async def test_a_very_large_reply_does_not_hold_the_loop():
    noise = os.urandom(20_000_000)

    async def large(request, context):
        return Answer(blob=noise)

    async with serving(unary=large, options=ON) as server, await Connection.open(server.http_url) as connection:
        steps = 0

        async def count():
            nonlocal steps
            while True:
                await asyncio.sleep(0.001)
                steps += 1

        counting = asyncio.create_task(count())
        headers = [("content-type", "application/proto"), ("accept-encoding", "gzip")]
        await connection.ask("POST", UNARY, b"", headers)
        await connection.head()
        counting.cancel()
        assert steps > 20


@pytest.mark.parametrize(("options", "shrinks"), [(ON, True), ({}, False)])
async def test_replies_over_grpc_are_compressed_with_gzip(options, shrinks):
    """Bytes on the wire are counted by a relay: grpcio does not tell how a message came."""
    async with serving(unary=unary, options=options) as server:
        counted = 0

        async def relay(reader, writer):
            host, _, port = server.grpc_address.rpartition(":")
            there, back = await asyncio.open_connection(host, int(port))

            async def pump(source, sink, counts):
                nonlocal counted
                while data := await source.read(65536):
                    counted += len(data) if counts else 0
                    sink.write(data)
                sink.close()

            await asyncio.gather(pump(reader, back, False), pump(there, writer, True), return_exceptions=True)

        listener = await asyncio.start_server(relay, "127.0.0.1", 0)
        async with listener:
            async with Stub(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}") as stub:
                assert (await stub.unary(Ask(count=500_000))).text == "x" * 500_000
            assert (counted < 100_000) is shrinks


@pytest.mark.parametrize(
    ("accepted", "encoding"), [("identity", None), (None, None), ("deflate", "deflate"), ("gzip", "gzip")]
)
async def test_over_grpc_a_reply_is_compressed_for_who_accepts_it(accepted, encoding):
    """By bare HTTP/2: grpcio's own clients accept everything; tonic's nothing, unless they are told to."""
    headers = [("content-type", "application/grpc"), ("te", "trailers")]
    if accepted is not None:
        headers.append(("grpc-accept-encoding", accepted))
    async with serving(unary=unary, options=ON) as server:
        ask_http2 = functools.partial(http2.ask, server.grpc_address, UNARY, headers, enveloped(asked(5000)))
        told, body = await asyncio.to_thread(ask_http2)
    assert told["grpc-status"] == "0"
    assert told.get("grpc-encoding", "identity") == (encoding or "identity")
    assert body[0] == (encoding is not None)
    assert (body == enveloped(LARGE)) is (encoding is None)
