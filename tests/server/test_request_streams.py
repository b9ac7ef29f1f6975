"""Client streams and bidirectional streams over HTTP/1.1: half-duplex, bounded, and ended with their client."""

import asyncio
import threading

import grpc
import grpc.aio
import pytest

from quill.limits import Limits
from support.http1 import Connection, enveloped, post
from support.official import ending, official, several
from support.probe import CANARY, CHAT, COLLECT, UNARY, Answer, Ask, Stub, Wrap, outcome, serving

PROTO, JSON = "application/connect+proto", "application/connect+json"


async def collect(requests, context):
    return Answer(text=",".join([request.text async for request in requests]))


async def collect_by_reading(requests, context):
    texts = []
    while (request := await context.read()) is not grpc.aio.EOF:
        texts.append(request.text)
    return Answer(text=",".join(texts))


def collect_blocking(requests, context):
    return Answer(text=",".join(request.text for request in requests))


async def chat(requests, context):
    async for request in requests:
        yield Answer(text=request.text.upper())


async def chat_by_reading(requests, context):
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(Answer(text=request.text.upper()))


def chat_blocking(requests, context):
    for request in requests:
        yield Answer(text=request.text.upper())


def asks(*texts):
    return b"".join(enveloped(Ask(text=text).SerializeToString()) for text in texts)


@pytest.mark.parametrize("style", [collect, collect_by_reading, collect_blocking])
async def test_a_client_stream_is_collected_on_both_ports(style):
    async with serving(collect=style) as server, Stub(server.grpc_address) as stub:
        assert (await stub.collect(iter([Ask(text="a"), Ask(text="b")]))).text == "a,b"
        async with official(server.http_url) as client:
            assert (await client.collect(several(Ask(text="a"), Ask(text="b")))).text == "a,b"
            assert (await client.collect(several())).text == ""
        reply = await post(server.http_url, COLLECT, JSON, enveloped(b'{"text":"a"}') + enveloped(b'{"text":"b"}'))
        assert (reply.status, reply["content-type"], reply.messages()) == (200, JSON, [b'{"text":"a,b"}'])
        assert reply.end() == {}


@pytest.mark.parametrize("style", [chat, chat_by_reading, chat_blocking])
async def test_a_chat_whose_client_speaks_first_runs_over_http1(style):
    async with serving(chat=style) as server, official(server.http_url) as client:
        replies = await ending(client.chat(several(Ask(text="a"), Ask(text="b"))))
        assert [reply.text for reply in replies] == ["A", "B"]
        assert await ending(client.chat(several())) == []


async def test_replies_are_sent_while_requests_still_come():
    async with serving(chat=chat) as server, await Connection.open(server.http_url) as connection:
        await connection.ask("POST", CHAT, b"", [("content-type", PROTO), ("transfer-encoding", "chunked")])
        for text in ("one", "two"):
            body = asks(text)
            await connection.send(f"{len(body):x}\r\n".encode() + body + b"\r\n")
            if text == "one":
                assert (await connection.head())[0] == 200
            assert await connection.chunk() == enveloped(Answer(text=text.upper()).SerializeToString())
        await connection.send(b"0\r\n\r\n")
        assert await connection.chunk() == enveloped(b"{}", 2)


class TurnTaker:
    """A servicer that says that its Chat cannot be held half-duplex."""

    full_duplex = frozenset({"Chat"})

    async def Chat(self, requests, context):  # noqa: N802 - a method of the contract
        async for request in requests:
            yield Answer(text=request.text.upper())


async def test_a_method_that_takes_turns_points_http1_callers_to_grpc():
    async with serving(chat=TurnTaker().Chat) as server, Stub(server.grpc_address) as stub:
        assert [reply.text async for reply in stub.chat(iter([Ask(text="a")]))] == ["A"]
        reply = await post(server.http_url, CHAT, PROTO, asks("a"))
        assert (reply.messages(), reply.end()["error"]["code"]) == ([], "unimplemented")
        assert server.grpc_address in reply.end()["error"]["message"]


async def test_session_takes_turns():
    from quill.llm import LLMServicer
    from quill.server.registry import takes_turns

    bound = LLMServicer.__new__(LLMServicer)
    assert takes_turns(grpc.stream_stream_rpc_method_handler(bound.Session))


async def test_metadata_trailers_and_errors_come_from_client_streams():
    async def fail(requests, context):
        await context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"),))
        await anext(requests)
        await context.abort(grpc.StatusCode.DATA_LOSS, "lost")

    async with serving(collect=fail) as server:
        reply = await post(server.http_url, COLLECT, PROTO, asks("a", "b"))
        assert (reply.status, reply["x-first"], reply.messages()) == (200, "1", [])
        assert reply.end() == {"error": {"code": "data_loss", "message": "lost"}, "metadata": {"x-last": ["2"]}}


async def test_an_exception_in_a_client_stream_leaks_nothing():
    async def crash(requests, context):
        async for _ in requests:
            raise RuntimeError(CANARY)

    async with serving(collect=crash) as server:
        reply = await post(server.http_url, COLLECT, PROTO, asks("a"))
        assert reply.end()["error"]["code"] == "internal"
        assert CANARY.encode() not in reply.body


@pytest.mark.parametrize("style", [collect, collect_blocking])
@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        (PROTO, enveloped(b"") + enveloped(b"\x0a\xff"), "invalid_argument"),
        (JSON, enveloped(b"{}") + enveloped(b'{"text": 1}'), "invalid_argument"),
        (PROTO, enveloped(b"") + b"\x00\x00\x00", "invalid_argument"),
        (PROTO, enveloped(b"abc", 0x80), "invalid_argument"),
        (PROTO, b"\x00\xff\xff\xff\xff", "resource_exhausted"),
    ],
)
async def test_a_bad_message_within_a_stream_is_refused(style, kind, body, code):
    async with serving(collect=style) as server:
        assert (await post(server.http_url, COLLECT, kind, body)).end()["error"]["code"] == code


async def test_the_message_limit_is_for_each_message_and_not_for_the_stream():
    async with serving(limits=Limits(max_message_bytes=1000), collect=collect) as server:
        reply = await post(server.http_url, COLLECT, PROTO, asks(*["x" * 900] * 5))
        assert len(Answer.FromString(reply.messages()[0]).text) == 4504, "replies have a limit of their own"

    async def count(requests, context):
        return Answer(count=len([request async for request in requests]))

    async with serving(limits=Limits(max_message_bytes=1000), collect=count) as server:
        reply = await post(server.http_url, COLLECT, PROTO, asks(*["x" * 900] * 5))
        assert Answer.FromString(reply.messages()[0]).count == 5
        reply = await post(server.http_url, COLLECT, PROTO, asks("x" * 900, "x" * 1001))
        assert reply.end()["error"]["code"] == "resource_exhausted"


async def test_a_denied_stream_is_answered_before_its_messages_are_sent():
    async def deny(continuation, details):
        async def refuse(requests, context):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")

        return grpc.stream_stream_rpc_method_handler(refuse)

    async with serving(interceptors=[Wrap(deny)], collect=collect, chat=chat) as server:
        for path in (COLLECT, CHAT):
            async with await Connection.open(server.http_url) as connection:
                await connection.ask("POST", path, b"", [("content-type", PROTO), ("transfer-encoding", "chunked")])
                assert (await connection.reply()).end()["error"]["code"] == "permission_denied"


async def test_an_interceptor_may_answer_a_stream_with_a_unary_handler():
    async def first(request, context):
        return Answer(text=request.text)

    async def replace(continuation, details):
        return grpc.unary_unary_rpc_method_handler(first, Ask.FromString, Answer.SerializeToString)

    async with serving(interceptors=[Wrap(replace)], collect=collect) as server:
        reply = await post(server.http_url, COLLECT, PROTO, asks("a", "b"))
        assert [Answer.FromString(data).text for data in reply.messages()] == ["a"]


class Left:
    """Handlers whose client leaves in the middle of its requests; they say how they ended."""

    def __init__(self):
        self.started, self.ended = asyncio.Event(), asyncio.Event()
        self.cancelled = None

    def begin(self, context):
        context.add_done_callback(lambda done: setattr(self, "cancelled", done.cancelled()))
        self.started.set()

    async def waits(self, requests, context):
        self.begin(context)
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def reads(self, requests, context):
        self.begin(context)
        try:
            async for _ in requests:
                pass
        finally:
            self.ended.set()

    async def writes(self, requests, context):
        self.begin(context)
        try:
            while True:
                await context.write(Answer(blob=bytes(10_000)))
        finally:
            self.ended.set()


@pytest.mark.parametrize("extra_bytes", [0, 3_000_000])
@pytest.mark.parametrize("behaviour", ["waits", "reads", "writes"])
async def test_a_client_that_leaves_in_the_middle_of_its_stream_ends_the_handler(behaviour, extra_bytes):
    if (behaviour, extra_bytes) == ("waits", 3_000_000):
        # Nothing reads and nothing is written: behind a full buffer TCP itself does not tell. A deadline must.
        return
    left = Left()
    async with serving(chat=getattr(left, behaviour)) as server, asyncio.timeout(20):
        async with await Connection.open(server.http_url) as connection:
            await connection.ask("POST", CHAT, b"", [("content-type", PROTO), ("transfer-encoding", "chunked")])
            body = asks("a")
            await connection.send(f"{len(body):x}\r\n".encode() + body + b"\r\n")
            await left.started.wait()
            connection.writer.write(b"2dc6c0\r\n" + bytes(extra_bytes))
            await asyncio.sleep(0.1)
        await left.ended.wait()
        while left.cancelled is None:
            await asyncio.sleep(0.01)
        assert left.cancelled is True


async def test_a_client_that_leaves_lets_the_thread_of_a_blocking_handler_go():
    ended = threading.Event()

    def blocking(requests, context):
        try:
            for _ in requests:
                pass
            return Answer()
        finally:
            ended.set()

    async with serving(collect=blocking) as server, asyncio.timeout(20):
        async with await Connection.open(server.http_url) as connection:
            await connection.ask("POST", COLLECT, b"", [("content-type", PROTO), ("transfer-encoding", "chunked")])
            await connection.send(b"7\r\n" + enveloped(b"")[:5] + b"\0\0\r\n")
            await asyncio.sleep(0.2)
        while not ended.is_set():
            await asyncio.sleep(0.01)
    async with asyncio.timeout(20):
        while any(thread.name.startswith("quill-handler") for thread in threading.enumerate()):
            await asyncio.sleep(0.01)


async def test_the_deadline_ends_a_stream_whose_client_falls_silent():
    left = Left()
    async with serving(chat=left.reads) as server, await Connection.open(server.http_url) as connection:
        headers = [("content-type", PROTO), ("transfer-encoding", "chunked"), ("connect-timeout-ms", "300")]
        await connection.ask("POST", CHAT, b"", headers)
        reply = await connection.reply()
        assert reply.end()["error"]["code"] == "deadline_exceeded"
        assert left.ended.is_set()


async def test_a_writer_that_does_not_read_holds_back_its_client():
    go = asyncio.Event()

    async def late(requests, context):
        await go.wait()
        return Answer(count=len([request async for request in requests]))

    async with serving(collect=late) as server, await Connection.open(server.http_url) as connection:
        await connection.ask("POST", COLLECT, b"", [("content-type", PROTO), ("transfer-encoding", "chunked")])
        body = asks("x" * 60_000)
        chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n"
        sent = 0
        try:
            async with asyncio.timeout(1):
                while sent < 1000:
                    await connection.send(chunk)
                    sent += 1
        except TimeoutError:
            pass
        assert sent < 300, "the server buffers without bound"
        go.set()
        await connection.send(b"0\r\n\r\n")
        assert Answer.FromString((await connection.reply()).messages()[0]).count in (sent, sent + 1)


async def test_one_connection_carries_calls_of_all_kinds():
    async def unary(request, context):
        return Answer(text=request.text)

    async with (
        serving(unary=unary, collect=collect, chat=chat) as server,
        await Connection.open(server.http_url) as connection,
    ):
        for _ in range(3):
            await connection.ask("POST", COLLECT, asks("a", "b"), [("content-type", PROTO)])
            assert Answer.FromString((await connection.reply()).messages()[0]).text == "a,b"
            await connection.ask("POST", CHAT, asks("a", "b"), [("content-type", PROTO)])
            assert len((await connection.reply()).messages()) == 2
            await connection.ask("POST", UNARY, b"", [("content-type", "application/proto")])
            assert (await connection.reply()).status == 200


async def test_reading_a_unary_request_again_is_an_error_on_both_ports():
    async def unary(request, context):
        await context.read()

    async with serving(unary=unary) as server, Stub(server.grpc_address) as stub:
        assert (await outcome(stub.unary(Ask()))).code() is grpc.StatusCode.INTERNAL
        assert (await post(server.http_url, UNARY, "application/proto")).json()["code"] == "internal"
