"""Server streams on both ports: messages one by one, metadata first, the end told, cancellation heard."""

import asyncio
import time

import grpc
import grpc.aio
import pytest

from support.http1 import Connection, enveloped, post
from support.probe import COLLECT, STREAM, Answer, Ask, Stub, outcome, serving

PROTO, JSON = "application/connect+proto", "application/connect+json"


async def count(request, context):
    for number in range(request.count):
        yield Answer(count=number)


async def write_count(request, context):
    for number in range(request.count):
        await context.write(Answer(count=number))


@pytest.mark.parametrize("style", [count, write_count])
async def test_a_stream_arrives_on_grpc_proto_and_json(style):
    async with serving(stream=style) as server, Stub(server.grpc_address) as stub:
        assert [reply.count async for reply in stub.stream(Ask(count=3))] == [0, 1, 2]
        reply = await post(server.http_url, STREAM, PROTO, enveloped(Ask(count=3).SerializeToString()))
        assert (reply.status, reply["content-type"]) == (200, PROTO)
        assert [Answer.FromString(data).count for data in reply.messages()] == [0, 1, 2]
        assert reply.end() == {}
        reply = await post(server.http_url, STREAM, JSON, enveloped(b'{"count": 3}'))
        assert reply["content-type"] == JSON
        assert reply.messages() == [b"{}", b'{"count":1}', b'{"count":2}']


async def test_an_empty_stream_has_headers_and_an_end():
    async with serving(stream=count) as server, Stub(server.grpc_address) as stub:
        assert await outcome(stub.stream(Ask())) == []
        reply = await post(server.http_url, STREAM, PROTO, enveloped(b""))
        assert (reply.status, reply["content-type"], reply.end()) == (200, PROTO, {})


@pytest.mark.parametrize("style", ["generator", "writer"])
async def test_initial_metadata_arrives_before_the_first_message_is_made(style):
    go = asyncio.Event()

    async def generate(request, context):
        await context.send_initial_metadata((("x-first", "here"),))
        await go.wait()
        context.set_trailing_metadata((("x-last", "there"),))
        yield Answer(text="late")

    async def write(request, context):
        async for answer in generate(request, context):
            await context.write(answer)

    async with (
        serving(stream=generate if style == "generator" else write) as server,
        Stub(server.grpc_address) as stub,
        await Connection.open(server.http_url) as connection,
    ):
        call = stub.stream(Ask())
        async with asyncio.timeout(20):
            assert tuple(await call.initial_metadata()) == (("x-first", "here"),)
        await connection.ask("POST", STREAM, enveloped(b""), [("content-type", PROTO)])
        status, headers = await connection.head()
        assert (status, dict(headers)["x-first"]) == (200, "here")
        go.set()
        assert await connection.chunk() == enveloped(Answer(text="late").SerializeToString())
        assert await connection.chunk() == enveloped(b'{"metadata": {"x-last": ["there"]}}', 2)
        assert [reply.text async for reply in call] == ["late"]


async def test_each_message_is_sent_when_it_is_made():
    go = asyncio.Queue()

    async def stream(request, context):
        while (number := await go.get()) is not None:
            yield Answer(count=number)

    async with serving(stream=stream) as server, await Connection.open(server.http_url) as connection:
        await connection.ask("POST", STREAM, enveloped(b""), [("content-type", PROTO)])
        for number in (5, 6):
            go.put_nowait(number)
            if number == 5:
                await connection.head()
            assert await connection.chunk() == enveloped(Answer(count=number).SerializeToString())
        go.put_nowait(None)
        assert await connection.chunk() == enveloped(b"{}", 2)


async def test_an_error_after_messages_keeps_the_messages():
    async def fail(request, context):
        yield Answer(count=1)
        await context.abort(grpc.StatusCode.DATA_LOSS, "lost", (("x-why", "disk"),))

    async with serving(stream=fail) as server, Stub(server.grpc_address) as stub:
        call = stub.stream(Ask())
        assert (await call.read()).count == 1
        with pytest.raises(grpc.aio.AioRpcError, match="lost") as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        reply = await post(server.http_url, STREAM, JSON, enveloped(b"{}"))
        assert (reply.status, reply.messages()) == (200, [b'{"count":1}'])
        assert reply.end() == {
            "metadata": {"x-why": ["disk"]},
            "error": {"code": "data_loss", "message": "lost"},
        }


async def test_a_status_that_is_set_ends_a_stream():
    async def fail(request, context):
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("past the end")
        yield Answer(count=1)

    async with serving(stream=fail) as server, Stub(server.grpc_address) as stub:
        assert (await outcome(stub.stream(Ask()))).code() is grpc.StatusCode.OUT_OF_RANGE
        reply = await post(server.http_url, STREAM, JSON, enveloped(b"{}"))
        assert reply.end()["error"] == {"code": "out_of_range", "message": "past the end"}


async def test_writes_from_several_tasks_all_arrive():
    async def stream(request, context):
        async with asyncio.TaskGroup() as group:
            for number in range(1, 21):
                group.create_task(context.write(Answer(count=number)))

    async with serving(stream=stream) as server:
        reply = await post(server.http_url, STREAM, PROTO, enveloped(b""))
        assert sorted(Answer.FromString(data).count for data in reply.messages()) == list(range(1, 21))


async def test_a_reader_that_stalls_stalls_the_writer():
    made = 0

    async def stream(request, context):
        nonlocal made
        while True:
            made += 1
            yield Answer(blob=bytes(100_000))

    async with serving(stream=stream) as server, await Connection.open(server.http_url) as connection:
        await connection.ask("POST", STREAM, enveloped(b""), [("content-type", PROTO)])
        await connection.head()
        before = -1
        while before != made:
            before = made
            await asyncio.sleep(0.2)
        # Socket buffers take some megabytes; without flow control this would be the memory of the machine.
        assert made < 300


class Ending:
    """A handler that says when its ``finally`` block ran, and on what."""

    def __init__(self):
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.cancelled = None

    async def unary(self, request, context):
        context.add_done_callback(lambda done: setattr(self, "cancelled", done.cancelled()))
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def stream(self, request, context):
        yield Answer(count=1)
        await self.unary(request, context)


@pytest.mark.parametrize("port", ["grpc", "http"])
async def test_a_client_that_leaves_a_stream_cancels_its_handler(port):
    handler = Ending()
    async with serving(stream=handler.stream) as server, asyncio.timeout(20):
        if port == "grpc":
            async with Stub(server.grpc_address) as stub:
                call = stub.stream(Ask())
                await call.read()
                await handler.started.wait()
                call.cancel()
                await handler.ended.wait()
        else:
            async with await Connection.open(server.http_url) as connection:
                await connection.ask("POST", STREAM, enveloped(b""), [("content-type", PROTO)])
                await handler.started.wait()
            await handler.ended.wait()


async def test_a_generator_that_is_left_in_a_send_is_closed_within_its_call():
    ended = asyncio.Event()

    async def stream(request, context):
        try:
            while True:
                yield Answer(blob=bytes(1_000_000))
        finally:
            ended.set()

    async with serving(stream=stream) as server, asyncio.timeout(20):
        async with Stub(server.grpc_address, [("grpc.max_receive_message_length", -1)]) as stub:
            call = stub.stream(Ask())
            await call.read()
            call.cancel()
            await ended.wait()
        ended.clear()
        async with await Connection.open(server.http_url) as connection:
            await connection.ask("POST", STREAM, enveloped(b""), [("content-type", PROTO)])
            await connection.head()
        await ended.wait()


async def test_a_client_that_leaves_a_unary_call_cancels_its_handler():
    handler = Ending()
    async with serving(unary=handler.unary) as server, asyncio.timeout(20):
        async with await Connection.open(server.http_url) as connection:
            await connection.ask("POST", "/probe.v1.Probe/Unary", b"", [("content-type", "application/proto")])
            await handler.started.wait()
        await handler.ended.wait()
        while handler.cancelled is None:
            await asyncio.sleep(0.01)
        assert handler.cancelled is True


async def test_the_deadline_ends_unary_calls_and_streams():
    handler = Ending()
    async with serving(unary=handler.unary, stream=handler.stream) as server, asyncio.timeout(20):
        began = time.monotonic()
        headers = [("connect-timeout-ms", "200")]
        reply = await post(server.http_url, "/probe.v1.Probe/Unary", "application/proto", b"", headers)
        assert (reply.status, reply.json()["code"]) == (504, "deadline_exceeded")
        await handler.ended.wait()
        handler.ended.clear()
        reply = await post(server.http_url, STREAM, PROTO, enveloped(b""), headers)
        assert len(reply.messages()) == 1
        assert reply.end()["error"]["code"] == "deadline_exceeded"
        await handler.ended.wait()
        assert 0.3 < time.monotonic() - began < 10


async def test_a_bad_deadline_is_refused():
    async with serving(unary=count, stream=count) as server:
        for value in ("soon", "-1", "12345678901"):
            headers = [("connect-timeout-ms", value)]
            reply = await post(server.http_url, STREAM, PROTO, enveloped(b""), headers)
            error = reply.json() if reply["content-type"] == "application/json" else reply.end()["error"]
            assert error["code"] == "invalid_argument"


async def test_a_handler_that_cancels_itself_ends_its_call_at_once():
    async def unary(request, context):
        raise asyncio.CancelledError

    async def stream(request, context):
        yield Answer()
        raise asyncio.CancelledError

    async with serving(unary=unary, stream=stream) as server, Stub(server.grpc_address) as stub, asyncio.timeout(20):
        assert (await outcome(stub.unary(Ask()))).code() is grpc.StatusCode.CANCELLED
        assert (await outcome(stub.stream(Ask()))).code() is grpc.StatusCode.CANCELLED
        reply = await post(server.http_url, "/probe.v1.Probe/Unary", "application/proto")
        assert (reply.status, reply.json()["code"]) == (499, "canceled")
        reply = await post(server.http_url, STREAM, PROTO, enveloped(b""))
        assert reply.end()["error"]["code"] == "canceled"


async def test_client_streams_and_bidi_run_over_grpc():
    async def collect(requests, context):
        return Answer(text=",".join([request.text async for request in requests]))

    async def chat(requests, context):
        async for request in requests:
            yield Answer(text=request.text.upper())

    async def chat_by_reading(requests, context):
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(Answer(text=request.text.upper()))

    asks = [Ask(text="a"), Ask(text="b")]
    for talk in (chat, chat_by_reading):
        async with serving(collect=collect, chat=talk) as server, Stub(server.grpc_address) as stub:
            assert (await stub.collect(iter(asks))).text == "a,b"
            assert [reply.text async for reply in stub.chat(iter(asks))] == ["A", "B"]


async def test_a_bad_message_within_a_client_stream_is_refused_by_name():
    async def collect(requests, context):
        return Answer(count=len([request async for request in requests]))

    async with serving(collect=collect) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        error = await outcome(channel.stream_unary(COLLECT)(iter([b"", b"\x0a\xff"])))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "the request is not a valid probe.v1.Ask message"


async def test_a_stream_wants_exactly_one_whole_request():
    async with serving(stream=count) as server:
        for body, code in (
            (b"", "unimplemented"),
            (enveloped(b"") * 2, "unimplemented"),
            (enveloped(b"abc")[:-1], "invalid_argument"),
            (b"\x00\x00", "invalid_argument"),
            (enveloped(b"", flags=0x80), "invalid_argument"),
        ):
            reply = await post(server.http_url, STREAM, PROTO, body)
            assert (reply.status, reply.end()["error"]["code"]) == (200, code), body
