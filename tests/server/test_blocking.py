"""Blocking handlers run in threads, on both ports, and do not hold the loop or the server's end."""

import asyncio
import threading

import grpc
import grpc.aio

from quill.principal import Principal, current_principal
from support.http1 import Connection, enveloped, post
from support.probe import STREAM, UNARY, Answer, Ask, Stub, outcome, serving


def unary(request, context):
    context.send_initial_metadata((("x-first", "1"),))
    context.set_trailing_metadata((("x-last", dict(context.invocation_metadata()).get("x-in", "none")),))
    if request.text == "abort":
        context.abort(grpc.StatusCode.NOT_FOUND, "gone")
    if request.text == "code":
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("far")
        return None
    assert context.is_active()
    return Answer(text=threading.current_thread().name.split("_")[0])


def stream(request, context):
    for number in range(request.count):
        yield Answer(count=number)
    if request.text == "abort":
        context.abort_with_status(_Gone())


class _Gone(grpc.Status):
    code, details, trailing_metadata = grpc.StatusCode.NOT_FOUND, "gone", ()


async def test_blocking_handlers_answer_on_both_ports():
    async with serving(unary=unary, stream=stream) as server, Stub(server.grpc_address) as stub:
        call = stub.unary(Ask(), metadata=(("x-in", "v"),))
        assert (await call).text == "quill-handler"
        assert dict(await call.initial_metadata()) == {"x-first": "1"}
        assert dict(await call.trailing_metadata()) == {"x-last": "v"}
        reply = await post(server.http_url, UNARY, "application/json", b"{}", [("x-in", "v")])
        assert (reply.json(), reply["x-first"], reply["trailer-x-last"]) == ({"text": "quill-handler"}, "1", "v")
        assert [reply.count async for reply in stub.stream(Ask(count=3))] == [0, 1, 2]
        reply = await post(server.http_url, STREAM, "application/connect+json", enveloped(b'{"count":2}'))
        assert (reply.messages(), reply.end()) == ([b"{}", b'{"count":1}'], {})


async def test_blocking_handlers_end_calls_with_a_status():
    async with serving(unary=unary, stream=stream) as server, Stub(server.grpc_address) as stub:
        for text, code in (("abort", "NOT_FOUND"), ("code", "OUT_OF_RANGE")):
            assert (await outcome(stub.unary(Ask(text=text)))).code() is grpc.StatusCode[code]
            reply = await post(server.http_url, UNARY, "application/json", b'{"text":"%s"}' % text.encode())
            assert reply.json()["code"] == code.lower()
        assert (await outcome(stub.stream(Ask(text="abort")))).code() is grpc.StatusCode.NOT_FOUND
        reply = await post(server.http_url, STREAM, "application/connect+json", enveloped(b'{"text":"abort"}'))
        assert reply.end()["error"] == {"code": "not_found", "message": "gone"}


async def test_blocking_client_streams_run_over_grpc():
    def collect(requests, context):
        return Answer(text="".join(request.text for request in requests))

    def chat(requests, context):
        for request in requests:
            yield Answer(text=request.text * 2)

    asks = [Ask(text="a"), Ask(text="b")]
    async with serving(collect=collect, chat=chat) as server, Stub(server.grpc_address) as stub:
        assert (await stub.collect(iter(asks))).text == "ab"
        assert [reply.text async for reply in stub.chat(iter(asks))] == ["aa", "bb"]


async def test_the_loop_is_free_while_a_handler_blocks():
    release = threading.Event()

    def wait(request, context):
        release.wait(20)
        return Answer(text="released")

    async def stream(request, context):
        release.set()
        yield Answer()

    async with serving(unary=wait, stream=stream) as server, Stub(server.grpc_address) as stub:
        blocked = asyncio.ensure_future(stub.unary(Ask()))
        await asyncio.sleep(0)
        await outcome(stub.stream(Ask()))
        assert (await blocked).text == "released"


async def test_a_blocking_generator_is_closed_when_its_client_leaves():
    closed = threading.Event()

    def forever(request, context):
        try:
            while True:
                yield Answer(blob=bytes(1000))
        finally:
            closed.set()

    async with serving(stream=forever) as server:
        async with Stub(server.grpc_address) as stub:
            call = stub.stream(Ask())
            await call.read()
            call.cancel()
            assert await asyncio.to_thread(closed.wait, 20)
        closed.clear()
        async with await Connection.open(server.http_url) as connection:
            await connection.ask("POST", STREAM, enveloped(b""), [("content-type", "application/connect+proto")])
            await connection.head()
        assert await asyncio.to_thread(closed.wait, 20)


async def test_callbacks_of_a_blocking_handler_run_when_its_call_is_over():
    over = threading.Event()

    def call_back(request, context):
        assert context.add_callback(over.set)
        assert not over.is_set()
        return Answer()

    async with serving(unary=call_back) as server:
        await post(server.http_url, UNARY, "application/proto")
        assert over.is_set()


async def test_a_blocking_handler_sees_the_principal_of_its_call():
    def who(request, context):
        return Answer(text=current_principal.get().name)

    from support.probe import Wrap

    async def name(continuation, details):
        current_principal.set(Principal("ada"))
        return await continuation(details)

    async with serving(interceptors=[Wrap(name)], unary=who) as server, Stub(server.grpc_address) as stub:
        assert (await stub.unary(Ask())).text == "ada"
        assert (await post(server.http_url, UNARY, "application/json", b"{}")).json() == {"text": "ada"}
