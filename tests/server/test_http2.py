"""HTTP/2 in clear text beside HTTP/1.1 on one port: full duplex, the same calls, a stop that waits for no client."""

import asyncio
import contextlib
import gc
import os
import time

import h2.config
import h2.connection
import h2.events
import httpcore
import pytest

from quill.errors import InvalidUsage
from quill.limits import Limits
from quill.server.server import Server
from support.http1 import Connection, ask, enveloped, post
from support.official import ending, official, several
from support.probe import CHAT, COLLECT, STREAM, UNARY, Answer, Ask, Stub, Wrap, serving

H2C = {"http2": True}
PROTO = "application/connect+proto"


async def unary(request, context):
    return Answer(text=request.text)


async def stream(request, context):
    for number in range(request.count):
        yield Answer(count=number)


async def collect(requests, context):
    return Answer(text=",".join([request.text async for request in requests]))


class TurnTaker:
    """Answers each request before it reads the next."""

    full_duplex = frozenset({"Chat"})

    async def Chat(self, requests, context):  # noqa: N802 - a method of the contract
        async for request in requests:
            yield Answer(text=request.text.upper())


class H2:
    """One HTTP/2 connection with prior knowledge, by the h2 library: it can stall, reset and go away."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.body, self.headers, self.is_over = b"", None, False

    @classmethod
    async def open(cls, url):
        host, _, port = url.removeprefix("http://").rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.writer.transport.abort()
        await asyncio.sleep(0)

    async def flush(self):
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def ask(self, path, content_type, headers=(), stream_id=1):
        pseudo = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "test")]
        self.h2.send_headers(stream_id, [*pseudo, ("content-type", content_type), *headers])
        await self.flush()

    async def send(self, data, *, end=False, stream_id=1):
        self.h2.send_data(stream_id, data, end_stream=end)
        await self.flush()

    async def reset(self):
        self.h2.reset_stream(1)
        await self.flush()

    async def read_until(self, condition):
        async with asyncio.timeout(20):
            while not condition(self):
                data = await self.reader.read(65536)
                assert data, "the connection was closed"
                for event in self.h2.receive_data(data):
                    match event:
                        case h2.events.ResponseReceived():
                            self.headers = dict(event.headers)
                        case h2.events.DataReceived():
                            self.body += event.data
                            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        case h2.events.StreamEnded() | h2.events.StreamReset():
                            self.is_over = True
                await self.flush()


async def test_calls_of_all_kinds_run_over_h2c_and_over_http1_on_one_port():
    async with serving(unary=unary, stream=stream, collect=collect, chat=TurnTaker().Chat, options=H2C) as server:
        for protocol in ("connect", "grpc-web"):
            async with official(server.http_url, protocol, http2=True) as client:
                assert (await client.unary(Ask(text="a"))).text == "a"
                assert [reply.count for reply in await ending(client.stream(Ask(count=3)))] == [0, 1, 2]
                assert (await client.collect(several(Ask(text="a"), Ask(text="b")))).text == "a,b"
        async with official(server.http_url) as client:
            assert (await client.unary(Ask(text="a"))).text == "a"
            assert (await client.collect(several(Ask(text="a"), Ask(text="b")))).text == "a,b"
        reply = await post(server.http_url, UNARY, "application/json", b'{"text":"x"}')
        assert reply.json() == {"text": "x"}
        async with Stub(server.grpc_address) as stub:
            assert (await stub.unary(Ask(text="x"))).text == "x"


async def test_both_sides_of_a_chat_take_turns_over_h2c():
    turns = asyncio.Queue()

    async def asks():
        yield Ask(text="first")
        while (text := await turns.get()) is not None:
            yield Ask(text=text)

    async with (
        serving(chat=TurnTaker().Chat, options=H2C) as server,
        official(server.http_url, http2=True) as client,
        asyncio.timeout(20),
    ):
        heard = []
        async for reply in client.chat(asks()):
            heard.append(reply.text)
            turns.put_nowait({1: "second", 2: "third"}.get(len(heard)))
        assert heard == ["FIRST", "SECOND", "THIRD"]


async def test_a_chat_that_takes_turns_is_refused_over_http1_on_the_same_port():
    async with serving(chat=TurnTaker().Chat, options=H2C) as server:
        reply = await post(server.http_url, CHAT, PROTO, enveloped(b""))
        assert reply.end()["error"]["code"] == "unimplemented"
        assert server.grpc_address in reply.end()["error"]["message"]


async def test_grpc_itself_is_refused_where_there_are_no_trailers():
    async with serving(unary=unary, options=H2C) as server, await H2.open(server.http_url) as client:
        await client.ask(UNARY, "application/grpc")
        await client.send(enveloped(b""), end=True)
        await client.read_until(lambda client: client.is_over)
        assert client.headers[":status"] == "415"


async def test_httpcore_calls_over_h2c():
    def call(url):
        with httpcore.ConnectionPool(http1=False, http2=True) as pool:
            headers = {"content-type": "application/json"}
            return pool.request("POST", url + UNARY, headers=headers, content=b'{"text":"x"}')

    async with serving(unary=unary, options=H2C) as server:
        reply = await asyncio.to_thread(call, server.http_url)
        assert (reply.status, reply.content) == (200, b'{"text":"x"}')
        assert reply.extensions["http_version"] == b"HTTP/2"


async def test_the_guard_and_the_peer_are_those_of_every_port():
    seen = []

    async def look(continuation, details):
        seen.append((details.method, dict(details.invocation_metadata)["x-token"]))
        return await continuation(details)

    async def peer(request, context):
        return Answer(text=context.peer())

    async with (
        serving(interceptors=[Wrap(look)], unary=peer, options=H2C) as server,
        official(server.http_url, http2=True) as client,
    ):
        assert (await client.unary(Ask(), headers={"x-token": "t"})).text.startswith("ipv4:127.0.0.1:")
    assert seen == [(UNARY, "t")]


class Ending:
    """Handlers that wait, and say how they ended."""

    def __init__(self):
        self.started, self.ended = asyncio.Event(), asyncio.Event()
        self.completed = False

    async def chat(self, requests, context):
        self.started.set()
        try:
            async for _ in requests:
                yield Answer()
            self.completed = True
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def collect(self, requests, context):
        self.started.set()
        try:
            async for _ in requests:
                pass
            self.completed = True
            return Answer()
        finally:
            self.ended.set()

    async def stream(self, request, context):
        self.started.set()
        try:
            yield Answer()
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def flood(self, request, context):
        self.sent = 0
        try:
            while True:
                yield Answer(blob=bytes(100_000))
                self.sent += 1
        finally:
            self.ended.set()


@pytest.mark.parametrize("leave", ["reset", "abort"])
@pytest.mark.parametrize("path", [CHAT, COLLECT, STREAM])
async def test_a_client_that_leaves_ends_the_handler_and_a_reset_is_no_end_of_the_requests(path, leave):
    handlers = Ending()
    async with (
        serving(chat=handlers.chat, collect=handlers.collect, stream=handlers.stream, options=H2C) as server,
        asyncio.timeout(20),
    ):
        async with await H2.open(server.http_url) as client:
            await client.ask(path, PROTO)
            await client.send(enveloped(b""), end=path == STREAM)
            await handlers.started.wait()
            if leave == "reset":
                await client.reset()
                await handlers.ended.wait()
        await handlers.ended.wait()
        assert not handlers.completed


async def test_a_timer_in_the_context_of_a_stream_that_was_left_keeps_no_thread_of_granian():
    """asyncio keeps a timer that was cancelled until it would have fired, and a timer keeps its context."""
    timers, ended = [], asyncio.Event()

    async def wait(request, context):
        timers.append(asyncio.get_running_loop().call_later(600, print))
        timers[0].cancel()
        try:
            yield Answer(text="a")
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(stream=wait, options=H2C) as server, asyncio.timeout(20):
        async with await H2.open(server.http_url) as client:
            await client.ask(STREAM, PROTO)
            await client.send(enveloped(b""), end=True)
            await client.read_until(lambda client: client.body)
            await client.reset()
            await ended.wait()
        await server.stop(0)
        assert server._http_host._threads.alive() == 0


async def test_a_unary_request_that_is_reset_halfway_is_not_run():
    ran = []

    async def run(request, context):
        ran.append(request)
        return Answer()

    async with serving(unary=run, options=H2C) as server:
        for headers in ([("content-length", "8")], []):
            async with await H2.open(server.http_url) as client:
                await client.ask(UNARY, "application/proto", headers)
                await client.send(b"\x0a\x01a")
                await client.reset()
                # What would run is begun before the next request of the same connection is answered.
                await client.ask(UNARY, "application/proto", stream_id=3)
                await client.send(b"\x0a\x01b", end=True, stream_id=3)
                await client.read_until(lambda client: client.headers and client.is_over)
    assert ran == [Ask(text="b")] * 2


async def test_a_reader_that_stalls_stalls_the_writer():
    handlers = Ending()
    async with serving(stream=handlers.flood, options=H2C) as server, await H2.open(server.http_url) as client:
        await client.ask(STREAM, PROTO)
        await client.send(enveloped(b""), end=True)
        before = -1
        await client.read_until(lambda client: client.headers)
        while before != handlers.sent:
            before = handlers.sent
            await asyncio.sleep(0.3)
        assert handlers.sent < 300


async def test_limits_hold_over_h2c():
    limits = Limits(max_message_bytes=10_000, max_metadata_bytes=4096)
    async with serving(unary=unary, collect=collect, limits=limits, options=H2C) as server:
        async with official(server.http_url, http2=True) as client:
            assert (await client.unary(Ask(text="x" * 9_000))).text == "x" * 9_000
            assert (await ending(client.unary(Ask(text="x" * 10_000)))).code.value == "resource_exhausted"
            asks = several(Ask(text="x" * 9_000), Ask(text="x" * 10_000))
            assert (await ending(client.collect(asks))).code.value == "resource_exhausted"
        async with await H2.open(server.http_url) as client:
            await client.ask(UNARY, "application/proto", [("x-long", "v" * 4000)])
            await client.send(b"", end=True)
            await client.read_until(lambda client: client.is_over)
            assert client.headers[":status"] in ("429", "431")


async def timed_stop(server, grace):
    began = time.monotonic()
    await server.stop(grace)
    return time.monotonic() - began


async def test_streams_that_end_within_the_grace_are_waited_for():
    go = asyncio.Event()

    async def slow(request, context):
        yield Answer(text="first")
        await go.wait()
        yield Answer(text="last")

    async with serving(stream=slow, options=H2C) as server, official(server.http_url, http2=True) as client:
        replies = aiter(client.stream(Ask()))
        assert (await anext(replies)).text == "first"
        stopping = asyncio.create_task(server.stop(60))
        async with asyncio.timeout(20):
            with contextlib.suppress(OSError):  # refused, once the listener is closed
                while True:
                    async with await Connection.open(server.http_url):
                        await asyncio.sleep(0.01)
        assert not stopping.done()
        go.set()
        assert (await anext(replies)).text == "last"
        async with asyncio.timeout(10):
            await stopping


async def test_streams_that_outlast_the_grace_are_told_so():
    handlers = Ending()
    async with (
        serving(stream=handlers.stream, options=H2C) as server,
        official(server.http_url, http2=True) as client,
    ):
        replies = aiter(client.stream(Ask()))
        await anext(replies)
        assert await timed_stop(server, 0.2) < 5
        assert handlers.ended.is_set()
        error = await ending(replies)
        assert (error.code.value, error.message) == ("unavailable", "the server is shutting down")


@pytest.mark.parametrize("client_kind", ["silent", "idle", "stalled", "uploading"])
async def test_no_client_holds_the_stop(client_kind):
    handlers = Ending()
    async with (
        serving(stream=handlers.flood, collect=handlers.collect, options=H2C) as server,
        await H2.open(server.http_url) as client,
    ):
        match client_kind:
            case "idle":
                await client.flush()
            case "stalled":
                await client.ask(STREAM, PROTO)
                await client.send(enveloped(b""), end=True)
                await client.read_until(lambda client: client.headers)
            case "uploading":
                await client.ask(COLLECT, PROTO)
                await client.send(enveloped(b""))
        await asyncio.sleep(0.2)
        assert await timed_stop(server, 0.1) < 5


async def test_no_client_holds_the_stop_of_a_server_on_every_address():
    server = Server(None, "[::]:0", http2=True)
    async with server, await H2.open("http://127.0.0.1:" + server.http_url.rpartition(":")[2]) as client:
        await client.flush()
        await asyncio.sleep(0.1)
        assert await timed_stop(server, 0) < 5


async def test_nothing_is_left_after_a_stop():
    async def round_trip():
        handlers = Ending()
        async with serving(unary=unary, stream=handlers.stream, options=H2C) as server:
            async with official(server.http_url, http2=True) as client:
                await client.unary(Ask())
            async with await H2.open(server.http_url) as client:
                await client.ask(STREAM, PROTO)
                await client.send(enveloped(b""), end=True)
                await client.read_until(lambda client: client.body)
                await server.stop(0.05)

    def counts():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())

    await round_trip()
    async with asyncio.timeout(60):
        await asyncio.sleep(0.2)
        before = counts()
        for _ in range(4):
            await round_trip()
        while any(now > then for now, then in zip(counts(), before, strict=True)):
            await asyncio.sleep(0.1)


async def test_health_is_open_over_h2c():
    async with serving(unary=unary, options=H2C) as server:
        reply = await ask(server.http_url, "GET", "/healthz")
        assert (reply.status, reply["server"]) == (200, "")


def test_without_granian_http2_is_refused_by_what_to_install(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "granian" else find(name, *rest)
    )
    with pytest.raises(InvalidUsage, match=r"quill-rpc\[http2\]"):
        Server(http2=True)
