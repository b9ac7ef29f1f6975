"""HTTP/2 in clear text between the asyncio client and a real server (granian): what HTTP/1.1 does, and full duplex."""

import asyncio
import gc
import os

import grpc
import pytest

from quill import AsyncQuillClient, DeadlineExceeded, InvalidType, NotFound, ResponseMetadata, Unimplemented
from quill.errors import QuillError
from support.probe import SERVICE, Answer, Ask, serving

H2C = {"http2": True}
LIMIT_S = 20


class Probe:
    """A servicer of all kinds of methods, which says who is with it."""

    full_duplex = frozenset({"Chat"})

    def __init__(self):
        self.live = 0

    async def unary(self, request, context):
        if request.text == "missing":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        if request.text == "hang":
            await self.hang()
        return Answer(text=request.text, blob=bytes(request.count))

    async def stream(self, request, context):
        for number in range(request.count):
            yield Answer(count=number, blob=b"x" * len(request.text))
        if request.text == "hang":
            await self.hang()

    async def collect(self, requests, context):
        return Answer(count=sum([len(request.text) async for request in requests]))

    async def Chat(self, requests, context):  # noqa: N802 - a method of the contract
        async for request in requests:
            yield Answer(text=request.text.upper())

    async def hang(self):
        self.live += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.live -= 1


@pytest.fixture
async def probe():
    return Probe()


@pytest.fixture
async def server(probe):
    methods = {"unary": probe.unary, "stream": probe.stream, "collect": probe.collect, "chat": probe.Chat}
    async with serving(**methods, options=H2C) as server:
        yield server


@pytest.fixture(params=["connect", "grpc-web"])
async def client(request, server):
    async with AsyncQuillClient(server.http_url, protocol=request.param, http2=True) as client:
        yield client


def shared(client):
    """The connections of a client."""
    return client._home.wire._http._shared


async def until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_calls_of_all_kinds(client):
    response = ResponseMetadata()
    assert (await client.call(SERVICE, "Unary", Ask(text="a"), response=response)).text == "a"
    assert (await client.call_json(SERVICE, "Unary", {"text": "b"})) == {"text": "b"}
    assert [reply.count async for reply in client.stream(SERVICE, "Stream", Ask(count=3))] == [0, 1, 2]
    requests = (Ask(text="x" * size) for size in (1, 100_000, 3_000_000))
    assert [reply.count async for reply in client.stream(SERVICE, "Collect", requests)] == [3_100_001]
    assert await client.health_check()
    assert len(shared(client)) == 1


async def test_errors_are_those_of_the_server(client):
    with pytest.raises(NotFound, match="no such thing"):
        await client.call(SERVICE, "Unary", Ask(text="missing"))
    with pytest.raises(Unimplemented):
        await client.call(SERVICE, "Nothing", b"")


async def test_both_sides_take_turns(server):
    said = asyncio.Queue()
    said.put_nowait("a")

    async def requests():
        while (word := await said.get()) is not None:
            yield Ask(text=word)

    heard = []
    async with AsyncQuillClient(server.http_url, http2=True) as client, asyncio.timeout(LIMIT_S):
        async for reply in client.stream(SERVICE, "Chat", requests()):
            heard.append(reply.text)
            said.put_nowait({"A": "b", "B": "c", "C": None}[reply.text])
    assert heard == ["A", "B", "C"]


async def test_large_messages_pass_the_windows_both_ways(client):
    text = "x" * 3_500_000
    reply = await client.call(SERVICE, "Unary", Ask(text=text, count=20_000_000))
    assert (reply.text, len(reply.blob)) == (text, 20_000_000)
    blobs = [len(reply.blob) async for reply in client.stream(SERVICE, "Stream", Ask(text="x" * 300_000, count=30))]
    assert blobs == [300_000] * 30


async def test_many_calls_at_a_time(client):
    replies = await asyncio.gather(*(client.call(SERVICE, "Unary", Ask(text=str(n))) for n in range(250)))
    assert [reply.text for reply in replies] == [str(n) for n in range(250)]
    assert 1 <= len(shared(client)) <= 3


@pytest.mark.parametrize("how", ["deadline", "close", "task"])
async def test_a_call_that_is_given_up_ends_its_handler_and_not_its_connection(client, probe, how):
    if how == "deadline":
        with pytest.raises(DeadlineExceeded):
            await client.call(SERVICE, "Unary", Ask(text="hang"), timeout_ms=300)
    elif how == "close":
        stream = client.stream(SERVICE, "Stream", Ask(text="hang", count=1))
        await anext(stream)
        await until(lambda: probe.live == 1)
        await stream.aclose()
    else:
        task = asyncio.create_task(client.call(SERVICE, "Unary", Ask(text="hang")))
        await until(lambda: probe.live == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: probe.live == 0)
    (connection,) = shared(client)
    assert (await client.call(SERVICE, "Unary", Ask(text="a"))).text == "a"
    assert shared(client) == [connection]


async def test_a_server_that_stops_ends_the_calls_and_the_next_one_begins_anew(probe):
    methods = {"unary": probe.unary, "stream": probe.stream}
    async with serving(**methods, options=H2C) as server:
        client = AsyncQuillClient(server.http_url, http2=True)
        stream = client.stream(SERVICE, "Stream", Ask(text="hang", count=1))
        await anext(stream)
        await server.stop(0)
        with pytest.raises(QuillError):
            await asyncio.wait_for(anext(stream), LIMIT_S)
        with pytest.raises(QuillError):
            await asyncio.wait_for(client.call(SERVICE, "Unary", Ask(text="a")), LIMIT_S)
    await client.close()


async def test_nothing_is_left_behind(server, probe):
    def left():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    async def work():
        async with AsyncQuillClient(server.http_url, http2=True) as client:
            await asyncio.gather(*(client.call(SERVICE, "Unary", Ask(text="a")) for _ in range(20)))
            await anext(client.stream(SERVICE, "Stream", Ask(text="hang", count=1)))
            stream = client.stream(SERVICE, "Chat", [Ask(text="a")] * 3)
            await anext(stream)
            hanging = asyncio.create_task(client.call(SERVICE, "Unary", Ask(text="hang")))
            await until(lambda: probe.live >= 1)
        with pytest.raises(QuillError):
            await hanging
        await until(lambda: probe.live == 0)

    await work()
    await until(lambda: True)
    before = left()
    for _ in range(4):
        await work()
    await until(lambda: left() <= before)


def test_http2_is_a_bool():
    with pytest.raises(InvalidType, match="http2 must be a bool, got int"):
        AsyncQuillClient("http://127.0.0.1", http2=1)
