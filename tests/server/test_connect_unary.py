"""Unary calls in Connect: deadlines, bodies, errors and clients that leave, on bare sockets."""

import asyncio
import base64
import tracemalloc

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from quill.limits import Limits
from quill.server.server import Server
from support.http1 import Connection, post
from support.probe import UNARY, Answer, Ask, register, serving

PROTO, JSON = "application/proto", "application/json"


async def echo(request, context):
    return Answer(text=request.text, blob=request.blob)


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "1_000", " ", "12345678901", "\u0661"])
async def test_a_timeout_that_is_none_is_refused(value):
    async with serving(unary=echo) as server:
        reply = await post(
            server.http_url, UNARY, PROTO, b"", [("connect-timeout-ms", value.encode().decode("latin-1"))]
        )
    if value == " ":  # an empty header is none
        assert reply.status == 200
    else:
        assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")
        assert "connect-timeout-ms" in reply.json()["message"]


async def test_the_deadline_ends_the_handler_and_is_told():
    ended = asyncio.Event()

    async def wait(request, context):
        assert 0 < context.time_remaining() <= 0.2
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(unary=wait) as server:
        reply = await post(server.http_url, UNARY, PROTO, b"", [("connect-timeout-ms", "200")])
        assert (reply.status, reply.json()["code"]) == (504, "deadline_exceeded")
        assert ended.is_set()


async def test_a_deadline_passes_while_the_body_is_awaited():
    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        head = [("content-type", PROTO), ("content-length", "10"), ("connect-timeout-ms", "200")]
        await connection.ask("POST", UNARY, b"half", head)
        reply = await connection.reply()
        assert (reply.status, reply.json()["code"]) == (504, "deadline_exceeded")


async def test_a_connection_serves_on_after_a_deadline():
    async def wait(request, context):
        if request.text == "wait":
            await asyncio.Event().wait()
        return Answer(text="well")

    async with serving(unary=wait) as server, await Connection.open(server.http_url) as connection:
        for _ in range(2):
            late = [("content-type", PROTO), ("connect-timeout-ms", "100")]
            await connection.ask("POST", UNARY, Ask(text="wait").SerializeToString(), late)
            assert (await connection.reply()).status == 504
            await connection.ask("POST", UNARY, Ask(text="go").SerializeToString(), [("content-type", PROTO)])
            assert Answer.FromString((await connection.reply()).body).text == "well"


async def test_a_client_that_leaves_cancels_a_handler_that_waits():
    began, ended = asyncio.Event(), asyncio.Event()
    seen = []

    async def wait(request, context):
        context.add_done_callback(lambda over: seen.append(over.cancelled()))
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(unary=wait) as server:
        connection = await Connection.open(server.http_url)
        await connection.ask("POST", UNARY, b"", [("content-type", PROTO)])
        async with asyncio.timeout(20):
            await began.wait()
            await connection.__aexit__()
            await ended.wait()
            while not seen:
                await asyncio.sleep(0.01)
    assert seen == [True]


async def test_a_handler_that_answers_at_once_costs_one_task():
    made = []

    def count(loop, coroutine, **options):
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        await connection.ask("POST", UNARY, b"", [("content-type", PROTO)])
        await connection.reply()
        loop = asyncio.get_running_loop()
        loop.set_task_factory(count)
        try:
            for _ in range(5):
                await connection.ask("POST", UNARY, b"", [("content-type", PROTO), ("connect-timeout-ms", "9000")])
                await connection.reply()
        finally:
            loop.set_task_factory(None)
    assert len(made) == 5  # the host's, for each request


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 3_000_000])
async def test_replies_of_every_size_come_whole(size):
    blob = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        for _ in range(2):
            await connection.ask("POST", UNARY, Ask(blob=blob).SerializeToString(), [("content-type", PROTO)])
            reply = await connection.reply()
            assert reply["content-type"] == PROTO
            assert Answer.FromString(reply.body).blob == blob


async def test_a_body_in_chunks_is_bounded_while_it_comes():
    limits = Limits(max_message_bytes=1000)
    async with serving(unary=echo, limits=limits) as server, await Connection.open(server.http_url) as connection:
        await connection.ask("POST", UNARY, b"", [("content-type", PROTO), ("transfer-encoding", "chunked")])
        for _ in range(3):
            await connection.send(b"190\r\n" + bytes(400) + b"\r\n")
        reply = await connection.reply()
        assert (reply.status, reply.json()["code"]) == (429, "resource_exhausted")
        assert "1000" in reply.json()["message"]


async def test_another_codec_is_told_which_there_are():
    async with serving(unary=echo) as server:
        reply = await post(server.http_url, UNARY, "application/xml", b"")
    assert (reply.status, reply.body) == (415, b"")
    assert reply["accept-post"] == "application/json, application/proto"


async def test_an_error_carries_its_details_headers_and_trailers():
    info = error_details_pb2.ErrorInfo(reason="TOLD", domain="test")

    class Status(grpc.Status):
        def __init__(self):
            status = status_pb2.Status(code=9, message="told to fail")
            status.details.add().Pack(info)
            self.code, self.details = grpc.StatusCode.FAILED_PRECONDITION, "told to fail"
            self.trailing_metadata = (("grpc-status-details-bin", status.SerializeToString()), ("x-after", "2"))

    async def fail(request, context):
        await context.send_initial_metadata((("x-before", "1"),))
        await context.abort_with_status(Status())

    async with serving(unary=fail) as server:
        for kind in (PROTO, JSON):
            reply = await post(server.http_url, UNARY, kind, b"" if kind == PROTO else b"{}")
            assert (reply.status, reply["content-type"]) == (400, JSON)
            assert (reply["x-before"], reply["trailer-x-after"]) == ("1", "2")
            (detail,) = reply.json()["details"]
            value = detail["value"] + "=" * (-len(detail["value"]) % 4)
            assert detail["type"] == "google.rpc.ErrorInfo"
            assert error_details_pb2.ErrorInfo.FromString(base64.b64decode(value)) == info
            assert (reply.json()["code"], reply.json()["message"]) == ("failed_precondition", "told to fail")


async def test_a_body_in_tiny_parts_costs_what_is_in_it():
    """An ASGI host played by hand: only one that lets parts through as they come shows what they cost."""
    count = 200_000
    waiting = iter(range(count))
    sent = []

    async def receive():
        number = next(waiting, None)
        if number is None:
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": bytes((number % 251, 7)), "more_body": True}

    async def send(message):
        sent.append(message)

    server = Server(None, None)
    register(server, unary=echo)
    app = server.asgi_app
    headers = [(b"content-type", PROTO.encode())]
    scope = {"type": "http", "method": "POST", "path": UNARY, "query_string": b"", "headers": headers}
    async with server:
        tracemalloc.start()
        try:
            await app(scope, receive, send)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert sent[0]["status"] == 400  # it was read to its end, and is no message
    assert peak_bytes < 5 * 2 * count
