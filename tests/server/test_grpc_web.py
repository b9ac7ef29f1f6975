"""gRPC-Web on the HTTP port: binary and text, every kind that half-duplex permits, status and trailers in the body."""

import asyncio
import base64
import gzip
import time

import grpc
import grpc.aio
import httpcore
import pytest
import zstandard
from connectrpc.code import Code
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import ErrorDetail, InvalidArgument, NotFound
from quill.limits import Limits
from quill.server.connect.web_text import TextDecoder
from support.http1 import Connection, enveloped, post
from support.official import ending, official, several
from support.probe import CANARY, CHAT, COLLECT, STREAM, UNARY, Answer, Ask, Wrap, serving

PROTO, TEXT = "application/grpc-web+proto", "application/grpc-web-text"


async def echo(request, context):
    return Answer(text=request.text, count=request.count)


async def count(request, context):
    for number in range(request.count):
        yield Answer(count=number)


async def collect(requests, context):
    return Answer(text=",".join([request.text async for request in requests]))


async def chat(requests, context):
    async for request in requests:
        yield Answer(text=request.text.upper())


def read(body):
    """The messages and the trailers of a gRPC-Web body (doc/PROTOCOL-WEB.md), parsed by hand."""
    messages, trailers = [], None
    while body:
        flags, size = body[0], int.from_bytes(body[1:5], "big")
        data, body = body[5 : 5 + size], body[5 + size :]
        if flags & 0x80:
            assert not body, "something follows the trailers"
            lines = data.decode("ascii").split("\r\n")
            assert lines.pop() == ""
            trailers = [tuple(part.strip() for part in line.split(":", 1)) for line in lines]
        else:
            assert flags == 0
            messages.append(data)
    return messages, trailers


async def call(url, path, *messages, kind=PROTO, headers=()):
    reply = await post(url, path, kind, b"".join(map(enveloped, messages)), headers)
    return reply, *read(reply.body)


async def test_unary_calls_and_streams_arrive():
    async with serving(unary=echo, stream=count) as server:
        reply, messages, trailers = await call(server.http_url, UNARY, Ask(text="hé").SerializeToString())
        assert (reply.status, reply["content-type"]) == (200, PROTO)
        assert [Answer.FromString(data).text for data in messages] == ["hé"]
        assert trailers == [("grpc-status", "0")]
        _, messages, trailers = await call(server.http_url, STREAM, Ask(count=3).SerializeToString())
        assert [Answer.FromString(data).count for data in messages] == [0, 1, 2]
        assert trailers == [("grpc-status", "0")]


@pytest.mark.parametrize(
    "kind", ["application/grpc-web", "application/grpc-web+proto", "APPLICATION/grpc-web+proto; a=b"]
)
async def test_every_spelling_of_the_content_type_is_known(kind):
    async with serving(unary=echo) as server:
        _, messages, trailers = await call(server.http_url, UNARY, Ask(text="x").SerializeToString(), kind=kind)
        assert (len(messages), trailers) == (1, [("grpc-status", "0")])


async def test_json_is_a_codec_too():
    async with serving(unary=echo) as server:
        reply, messages, trailers = await call(
            server.http_url, UNARY, b'{"text":"x"}', kind="application/grpc-web+json"
        )
        assert reply["content-type"] == "application/grpc-web+json"
        assert (messages, trailers) == ([b'{"text":"x"}'], [("grpc-status", "0")])


async def test_the_official_client_makes_calls_of_all_kinds():
    async with (
        serving(unary=echo, stream=count, collect=collect, chat=chat) as server,
        official(server.http_url, "grpc-web") as client,
    ):
        assert (await client.unary(Ask(text="a"))).text == "a"
        assert [reply.count for reply in await ending(client.stream(Ask(count=2)))] == [0, 1]
        assert (await client.collect(several(Ask(text="a"), Ask(text="b")))).text == "a,b"
        assert [reply.text for reply in await ending(client.chat(several(Ask(text="a"), Ask(text="b"))))] == ["A", "B"]


async def test_metadata_and_trailers_travel_both_ways():
    seen = {}

    async def tell(request, context):
        seen.update(context.invocation_metadata())
        await context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-last-bin", b"\x00\xff")))
        return Answer()

    async with serving(unary=tell) as server:
        headers = [("x-text", "a"), ("x-raw-bin", "AP8"), ("x-grpc-web", "1"), ("x-user-agent", "grpc-web-javascript")]
        reply, _, trailers = await call(server.http_url, UNARY, b"", headers=headers)
        assert reply["x-first"] == "1"
        assert sorted(trailers) == [("grpc-status", "0"), ("x-last", "2"), ("x-last-bin", "AP8")]
        assert {key: value for key, value in seen.items() if key.startswith("x-")} == {
            "x-text": "a",
            "x-raw-bin": b"\x00\xff",
        }


async def test_an_error_has_its_status_message_and_details():
    detail = error_details_pb2.ErrorInfo(reason="gone", domain="test")

    async def fail(request, context):
        raise NotFound("no such ü: 100%", details=[ErrorDetail("google.rpc.ErrorInfo", detail.SerializeToString())])

    async with serving(unary=fail) as server:
        reply, messages, trailers = await call(server.http_url, UNARY, b"")
        assert (reply.status, messages) == (200, [])
        told = dict(trailers)
        assert told["grpc-status"] == "5"
        assert told["grpc-message"] == "no%20such%20%C3%BC%3A%20100%25"
        packed = told["grpc-status-details-bin"]
        status = status_pb2.Status.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4)))
        found = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(found)
        assert (status.code, found) == (5, detail)
        async with official(server.http_url, "grpc-web") as client:
            error = await ending(client.unary(Ask()))
            assert (error.code, error.message) == (Code.NOT_FOUND, "no such ü: 100%")


async def test_an_error_after_messages_keeps_the_messages_and_leaks_nothing():
    async def crash(request, context):
        yield Answer(count=1)
        raise RuntimeError(CANARY)

    async with serving(stream=crash) as server:
        reply, messages, trailers = await call(server.http_url, STREAM, b"")
        assert (len(messages), dict(trailers)["grpc-status"]) == (1, "13")
        assert CANARY.encode() not in reply.body


async def test_the_guard_denies_and_unknown_methods_are_unimplemented():
    async def deny(continuation, details):
        if dict(details.invocation_metadata).get("x-deny"):

            async def refuse(request, context):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")

            return grpc.unary_unary_rpc_method_handler(refuse)
        return await continuation(details)

    async with serving(interceptors=[Wrap(deny)], unary=echo, stream=count, collect=collect) as server:
        for path in (UNARY, STREAM, COLLECT, "/no.such/Method"):
            _, messages, trailers = await call(server.http_url, path, b"", headers=[("x-deny", "1")])
            assert (messages, dict(trailers)["grpc-status"]) == ([], "7"), path
        _, _, trailers = await call(server.http_url, "/no.such.Service/Method", b"")
        assert dict(trailers)["grpc-status"] == "12"


async def test_the_deadline_of_the_grpc_header_ends_a_call():
    ended = asyncio.Event()

    async def hang(request, context):
        assert 0 < context.time_remaining() <= 0.3
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(unary=hang) as server:
        began = time.monotonic()
        _, _, trailers = await call(server.http_url, UNARY, b"", headers=[("grpc-timeout", "300m")])
        assert dict(trailers)["grpc-status"] == "4"
        assert ended.is_set()
        assert time.monotonic() - began < 10
        for bad in ("soon", "300", "-1S", "123456789m"):
            reply = await post(server.http_url, UNARY, PROTO, enveloped(b""), [("grpc-timeout", bad)])
            assert (reply.status, reply["grpc-status"]) == (200, "3"), bad


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.ZstdCompressor().compress)]
)
async def test_compressed_requests_are_read_bounded_and_strictly(encoding, compress):
    headers = [("grpc-encoding", encoding)]
    data = Ask(text="hello " * 100).SerializeToString()
    async with serving(unary=echo, limits=Limits(max_message_bytes=10_000)) as server:

        async def sent(body):
            return read((await post(server.http_url, UNARY, PROTO, body, headers)).body)

        messages, _ = await sent(enveloped(compress(data), 1))
        assert Answer.FromString(messages[0]).text == "hello " * 100
        messages, _ = await sent(enveloped(data))
        assert Answer.FromString(messages[0]).text == "hello " * 100
        for damaged in (compress(data)[:-3], compress(data) + b"\0", b"junk"):
            _, trailers = await sent(enveloped(damaged, 1))
            assert dict(trailers)["grpc-status"] == "3"
        _, trailers = await sent(enveloped(compress(bytes(1_000_000)), 1))
        assert dict(trailers)["grpc-status"] == "8"


async def test_an_unknown_encoding_is_refused_with_those_that_are_known():
    async with serving(unary=echo) as server:
        reply, _, trailers = await call(server.http_url, UNARY, b"", headers=[("grpc-encoding", "br")])
        assert (dict(trailers)["grpc-status"], reply["grpc-accept-encoding"]) == ("12", "zstd, gzip")


async def test_methods_that_take_turns_are_refused_by_name():
    class TurnTaker:
        full_duplex = frozenset({"Chat"})

        async def Chat(self, requests, context):  # noqa: N802 - a method of the contract
            yield Answer()

    async with serving(chat=TurnTaker().Chat) as server:
        _, messages, trailers = await call(server.http_url, CHAT, b"")
        assert (messages, dict(trailers)["grpc-status"]) == ([], "12")
        assert server.grpc_address.replace(":", "%3A") in dict(trailers)["grpc-message"]


def pieces(text):
    """What each flush of base64 stands for: it ends where its padding does."""
    decoded, rest = b"", text
    while rest:
        end = rest.find(b"=")
        end = len(rest) if end < 0 else end + (2 if rest[end : end + 2] == b"==" else 1)
        decoded += base64.b64decode(rest[:end], validate=True)
        rest = rest[end:]
    return decoded


async def test_text_is_base64_both_ways():
    async with serving(unary=echo, stream=count) as server:
        for kind in (TEXT, TEXT + "+proto"):
            body = base64.b64encode(enveloped(Ask(count=3).SerializeToString()))
            reply = await post(server.http_url, STREAM, kind, body)
            assert (reply.status, reply["content-type"]) == (200, kind)
            messages, trailers = read(pieces(reply.body))
            assert [Answer.FromString(data).count for data in messages] == [0, 1, 2]
            assert trailers == [("grpc-status", "0")]


async def test_text_that_is_no_base64_is_refused():
    async with serving(unary=echo) as server:
        whole = base64.b64encode(enveloped(Ask(text="x").SerializeToString()))
        for body in (b"!!!!", whole[:-1], whole + b"A", b"=" * 4):
            reply = await post(server.http_url, UNARY, TEXT, body)
            assert dict(read(pieces(reply.body))[1])["grpc-status"] == "3", body


async def test_text_messages_arrive_one_by_one():
    go = asyncio.Event()

    async def stream(request, context):
        yield Answer(text="first")
        await go.wait()

    async with serving(stream=stream) as server, await Connection.open(server.http_url) as connection:
        await connection.ask("POST", STREAM, base64.b64encode(enveloped(b"")), [("content-type", TEXT)])
        await connection.head()
        assert read(pieces(await connection.chunk())) == ([Answer(text="first").SerializeToString()], None)
        go.set()
        assert read(pieces(await connection.chunk())) == ([], [("grpc-status", "0")])


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=20), max_size=6), st.lists(st.integers(1, 9), max_size=60))
def test_text_is_decoded_however_it_is_padded_and_cut(parts, cuts):
    text = b"".join(map(base64.b64encode, parts))
    decoder, found, position = TextDecoder(), b"", 0
    for size in [*cuts, len(text)]:
        found += decoder.feed(text[position : position + size])
        position += size
    decoder.end()
    assert found == b"".join(parts)


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_text_of_any_bytes_is_decoded_or_refused(text):
    decoder = TextDecoder()
    try:
        found = decoder.feed(text)
        decoder.end()
    except InvalidArgument:
        return
    assert found == pieces(text)


async def test_another_method_than_post_gets_405():
    def ask(url):
        with httpcore.ConnectionPool() as pool:
            return pool.request("GET", url + UNARY, headers={"content-type": PROTO})

    async with serving(unary=echo) as server:
        reply = await asyncio.to_thread(ask, server.http_url)
        assert reply.status == 405
