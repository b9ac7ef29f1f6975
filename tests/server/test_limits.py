"""Bounds hold on both ports, before anything is buffered or made."""

import asyncio
import base64
import contextlib
import gzip
import json
import tracemalloc
from collections import Counter
from math import inf

import grpc
import grpc.aio
import pytest
import zstandard
from google.protobuf import struct_pb2

import quill
from quill.errors import InvalidUsage
from quill.limits import MAX_MESSAGE_DEPTH, Limits
from support.http1 import Connection, enveloped, post
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
        serving(limits=Limits(max_reply_bytes=LIMIT, max_message_bytes=10), unary=echo, stream=stream) as server,
        Stub(server.grpc_address) as stub,
    ):
        for call in (stub.unary(Ask(count=LIMIT)), stub.stream(Ask(count=LIMIT))):
            error = await outcome(call)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details() == f"the reply has {LIMIT + 4} bytes, max_reply_bytes is {LIMIT}"
        ask = Ask(count=LIMIT).SerializeToString()
        assert (await post(server.http_url, UNARY, "application/proto", ask)).json()["code"] == "resource_exhausted"
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(ask))
        assert len(reply.messages()) == 1
        assert reply.end()["error"]["code"] == "resource_exhausted"


async def test_a_reply_that_is_over_the_limit_as_json_alone_is_refused():
    blob = bytes(3 * LIMIT // 4)
    size = len(json.dumps({"blob": base64.b64encode(blob).decode()}, separators=(",", ":")))

    async def answer(request, context):
        return Answer(blob=blob)

    async def answers(request, context):
        yield Answer(blob=blob)

    assert size > LIMIT > len(Answer(blob=blob).SerializeToString())
    said = f"as JSON the reply has {size - 1} bytes or more, max_reply_bytes is {LIMIT}"
    # All but the last brace had been written.
    limits = Limits(max_reply_bytes=LIMIT, max_message_bytes=10)
    async with serving(limits=limits, unary=answer, stream=answers) as server:
        reply = await post(server.http_url, UNARY, "application/json", b"{}")
        assert (reply.json()["code"], reply.json()["message"]) == ("resource_exhausted", said)
        reply = await post(server.http_url, STREAM, "application/connect+json", enveloped(b"{}"))
        assert reply.end()["error"] == {"code": "resource_exhausted", "message": said}
        assert (await post(server.http_url, UNARY, "application/proto", b"")).status == 200


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


async def test_calls_and_streams_over_the_limit_are_refused_over_both_ports_together():
    release = asyncio.Event()

    async def hang(request, context):
        await release.wait()
        return Answer()

    async def hang_stream(request, context):
        yield Answer()
        await release.wait()

    limits = Limits(max_concurrent_calls=2, max_live_streams=1)
    async with (
        serving(limits=limits, unary=hang, stream=hang_stream) as server,
        Stub(server.grpc_address) as stub,
    ):
        streaming = stub.stream(Ask())
        await streaming.read()
        error = await outcome(stub.stream(Ask()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "1 streams live and max_live_streams is 1" in error.details()
        async with await Connection.open(server.http_url) as connection:
            await connection.ask("POST", UNARY, b"{}", [("content-type", "application/json")])
            while len(server._calls) < 2:
                await asyncio.sleep(0.01)
            for reached in (
                (await outcome(stub.unary(Ask()))).details(),
                (await post(server.http_url, UNARY, "application/json", b"{}")).json()["message"],
            ):
                assert "2 calls run and max_concurrent_calls is 2" in reached
            release.set()
            assert (await connection.reply()).status == 200
        assert await streaming.read() is grpc.aio.EOF
        assert (await stub.unary(Ask())) == Answer()


def nested(depth):
    """A serialized google.protobuf.Value of lists within lists, so many messages deep (an odd number)."""
    data = b"\x08\x00"  # null_value
    for _ in range(depth // 2):
        listed = b"\x0a" + encode_varint(len(data)) + data  # ListValue.values
        data = b"\x32" + encode_varint(len(listed)) + listed  # Value.list_value
    return data


def encode_varint(number):
    pieces = []
    while number > 0x7F:
        pieces.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*pieces, number])


async def test_messages_nested_over_the_limit_are_refused_in_every_form():
    async def count(request, context):
        return request

    serializers = {"decode": struct_pb2.Value.FromString, "encode": struct_pb2.Value.SerializeToString}
    async with (
        serving(service="deep.v1.Deep", unary=count, **serializers) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        path = "/deep.v1.Deep/Unary"
        fits, over = nested(MAX_MESSAGE_DEPTH - 1), nested(MAX_MESSAGE_DEPTH + 3)
        assert await channel.unary_unary(path)(fits) == fits
        assert (await post(server.http_url, path, "application/proto", fits)).body == fits
        assert (await outcome(channel.unary_unary(path)(over))).code() is grpc.StatusCode.INVALID_ARGUMENT
        reply = await post(server.http_url, path, "application/proto", over)
        assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")


@pytest.mark.parametrize("text", ['{"a":' * 50_000, "[" * 200_000, '{"extra":' + '{"a":' * 150 + "1" + "}" * 151])
async def test_json_nested_over_the_limit_is_refused(text):
    from quill.proto import LLMServiceServicer, add_LLMServiceServicer_to_server
    from quill.server.server import Server

    server = Server(None, "127.0.0.1:0")
    add_LLMServiceServicer_to_server(LLMServiceServicer(), server)
    async with server:
        path = "/inference.v1.LLMService/Generate"
        reply = await post(server.http_url, path, "application/json", text.encode())
    assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")
    assert "nested" in reply.json()["message"]


@pytest.mark.parametrize(("name", "value"), [("max_runs", 0), ("header_timeout_s", 0.0), ("header_timeout_s", inf)])
def test_a_limit_that_bounds_nothing_is_refused(name, value):
    with pytest.raises(InvalidUsage, match=name):
        Limits(**{name: value})


async def test_the_nesting_of_json_can_be_bounded_lower():
    from quill.proto import EmbedResponse, LLMServiceServicer, add_LLMServiceServicer_to_server
    from quill.server.server import Server

    class Model(LLMServiceServicer):
        async def Generate(self, request, context):  # noqa: N802 - the name in the contract
            return EmbedResponse()

    server = Server(None, "127.0.0.1:0", limits=Limits(max_message_depth=3))
    add_LLMServiceServicer_to_server(Model(), server)
    async with server:
        path = "/inference.v1.LLMService/Generate"
        three = b'{"messages": [{"parts": [{"text": "x"}]}]}'
        four = b'{"messages": [{"parts": [{"tensor": {}}]}]}'
        assert (await post(server.http_url, path, "application/json", three)).status == 200
        reply = await post(server.http_url, path, "application/json", four)
    assert reply.status == 400
    assert reply.json()["message"] == "messages are nested more than 3 deep"


async def open_at_once(count, limits):
    """How many calls that are begun together end how, by the words of a client of Quill's that tries once."""

    async def unary(request, context):
        await asyncio.sleep(0.1)
        return Answer()

    async with serving(limits=limits, unary=unary) as server, contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(quill.AsyncQuillClient(f"grpc://{server.grpc_address}", max_attempts=1))
            for _ in range(4)
        ]
        calls = (clients[n % 4].call("probe.v1.Probe", "Unary", b"") for n in range(count))
        ends = await asyncio.gather(*calls, return_exceptions=True)
    return Counter(end.code if isinstance(end, quill.RpcError) else end for end in ends)


async def test_many_calls_that_are_opened_at_once_all_run():
    assert await open_at_once(1000, Limits()) == {b"": 1000}


async def test_calls_beyond_those_that_may_wait_are_dropped_and_told_so():
    ends = await open_at_once(1000, Limits(max_pending_requests=20))
    assert set(ends) == {b"", quill.Code.UNAVAILABLE}
