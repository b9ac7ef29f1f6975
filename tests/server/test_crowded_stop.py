"""A stop with a crowd of clients, on every host: it ends within its grace, and all of them are told."""

import asyncio
import os
import time
from contextlib import AsyncExitStack

import grpc
import pytest

from quill.server.server import Server
from quill.server.tls import Tls
from support.authority import Authority
from support.http1 import Connection, enveloped
from support.official import ending, official
from support.probe import CHAT, COLLECT, STREAM, UNARY, Answer, Ask, Stub, outcome, register

PROTO = "application/connect+proto"
OF_EACH_KIND = 25
GRACE_S = 0.3
BOUND_S = 15
"""For a stop that takes some two seconds on a slow machine: the grace, and a second for handlers and sockets each."""


class Crowd:
    """Handlers of all kinds that wait until they are ended."""

    def __init__(self):
        self.running = 0
        self.ended = 0

    async def wait(self):
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.running -= 1
            self.ended += 1

    async def unary(self, request, context):
        if request.text != "wait":
            return Answer()
        return await self.wait()

    async def stream(self, request, context):
        yield Answer(text="first")
        await self.wait()

    async def collect(self, requests, context):
        await anext(aiter(requests))
        return await self.wait()

    async def chat(self, requests, context):
        async for _ in requests:
            yield Answer(text="first")
            await self.wait()

    async def arrived(self, count):
        async with asyncio.timeout(60):
            while self.running < count:
                await asyncio.sleep(0.01)


class Place:
    """Where a server listens, and how its clients come there."""

    def __init__(self, kind, folder):
        self.is_unix = kind.endswith("unix")
        self.http2 = kind.startswith("granian")
        self.tls = None
        self.authority = None
        if kind == "tls":
            self.authority = Authority()
            cert, key = self.authority.issue().write(folder)
            self.tls = Tls(cert=cert, key=key)
        self.addresses = (
            (f"unix:{folder}/grpc", f"unix:{folder}/http") if self.is_unix else ("127.0.0.1:0", "127.0.0.1:0")
        )

    def server(self, crowd):
        server = Server(*self.addresses, http2=self.http2, tls=self.tls)
        register(server, unary=crowd.unary, stream=crowd.stream, collect=crowd.collect, chat=crowd.chat)
        return server

    def stub(self, server):
        if self.authority is None:
            return Stub(server.grpc_address)
        return Stub(server.grpc_address.replace("127.0.0.1", "localhost"), credentials=self.authority.grpc())

    async def connection(self, server):
        if self.is_unix:
            return Connection(*await asyncio.open_unix_connection(server.http_url.removeprefix("http+unix://")))
        return await Connection.open(server.http_url, self.authority and self.authority.ssl())


@pytest.fixture(params=["uvicorn", "granian", "uvicorn unix", "granian unix", "tls"])
def place(request, tmp_path):
    return Place(request.param, tmp_path)


async def open_grpc_calls(stub):
    """Calls of all kinds that run: what each of them ends with."""
    calls = []
    for _ in range(OF_EACH_KIND):
        collect, chat = stub.collect(), stub.chat()
        await collect.write(Ask())
        await chat.write(Ask())
        calls += [stub.unary(Ask(text="wait")), stub.stream(Ask()), collect, chat]
    return calls


async def open_http_calls(place, server, stack):
    """The same over HTTP/1.1, a connection each; the requests of half of the streams are not complete."""
    connections = []
    for _ in range(OF_EACH_KIND):
        for path, content_type, body in (
            (UNARY, "application/proto", Ask(text="wait").SerializeToString()),
            (STREAM, PROTO, enveloped(b"")),
            (COLLECT, PROTO, enveloped(b"")),
            (CHAT, PROTO, enveloped(b"")),
        ):
            connection = await stack.enter_async_context(await place.connection(server))
            headers = [("content-type", content_type)]
            if path in (COLLECT, CHAT):
                headers.append(("content-length", str(len(body) + 100)))
            await connection.ask("POST", path, body, headers)
            connections.append(connection)
    return connections


async def open_bystanders(place, server, stack):
    """Those who call nothing: silent, idle between requests, and in the middle of a request's head or body."""
    connections = []
    for sent in (b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", b"POST / HT", b"POST /x HTTP/1.1\r\nx-half: "):
        for _ in range(5):
            connection = await stack.enter_async_context(await place.connection(server))
            await connection.send(sent)
            if sent.startswith(b"GET"):
                assert (await connection.reply()).status == 200
            connections.append(connection)
    for _ in range(5):
        connection = await stack.enter_async_context(await place.connection(server))
        headers = [("content-type", "application/proto"), ("content-length", "1000")]
        await connection.ask("POST", UNARY, b"half", headers)
        connections.append(connection)
    return connections


async def read_to_end(connection):
    """What still comes. A reset is an end, too."""
    try:
        async with asyncio.timeout(BOUND_S):
            return await connection.reader.read()
    except ConnectionError:
        return b""


async def test_two_hundred_calls_and_their_bystanders_do_not_hold_a_stop(place):
    crowd = Crowd()
    server = place.server(crowd)
    count = OF_EACH_KIND * 8
    async with server, place.stub(server) as stub, AsyncExitStack() as stack:
        grpc_calls = await open_grpc_calls(stub)
        http_calls = await open_http_calls(place, server, stack)
        bystanders = await open_bystanders(place, server, stack)
        await crowd.arrived(count)
        endings = [asyncio.ensure_future(outcome(call)) for call in grpc_calls]
        await asyncio.sleep(0)
        began = time.monotonic()
        await server.stop(GRACE_S)
        assert GRACE_S * 0.9 < time.monotonic() - began < BOUND_S
        assert (crowd.running, crowd.ended) == (0, count)
        async with asyncio.timeout(BOUND_S):
            errors = await asyncio.gather(*endings)
        assert {error.code() for error in errors} == {grpc.StatusCode.UNAVAILABLE}
        said = [await read_to_end(connection) for connection in http_calls]
        assert [data for data in said if b"unavailable" not in data or b"shutting down" not in data] == []
        for connection in bystanders:
            await read_to_end(connection)


async def test_a_hundred_streams_of_one_http2_connection_are_told(tmp_path):
    crowd = Crowd()
    place = Place("granian", tmp_path)
    server = place.server(crowd)
    async with server, official(server.http_url, http2=True) as client:
        streams = [aiter(client.stream(Ask())) for _ in range(4 * OF_EACH_KIND)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        await crowd.arrived(len(streams))
        began = time.monotonic()
        await server.stop(GRACE_S)
        assert time.monotonic() - began < BOUND_S
        assert crowd.running == 0
        async with asyncio.timeout(BOUND_S):
            errors = await asyncio.gather(*map(ending, streams))
    assert {error.code.value for error in errors} == {"unavailable"}


async def test_a_crowd_that_leaves_within_the_grace_ends_the_stop_early(place):
    crowd = Crowd()
    server = place.server(crowd)
    async with server, place.stub(server) as stub, AsyncExitStack() as stack:
        grpc_calls = await open_grpc_calls(stub)
        http_calls = await open_http_calls(place, server, stack)
        await crowd.arrived(OF_EACH_KIND * 8)
        began = time.monotonic()
        stopping = asyncio.create_task(server.stop(600))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        for call in grpc_calls:
            call.cancel()
        for connection in http_calls:
            connection.writer.transport.abort()
        async with asyncio.timeout(60):
            await stopping
        assert time.monotonic() - began < 60
        assert crowd.running == 0


async def test_no_descriptor_is_left_of_a_crowd(place):
    async def round_trip():
        crowd = Crowd()
        server = place.server(crowd)
        async with server, place.stub(server) as stub, AsyncExitStack() as stack:
            await open_grpc_calls(stub)
            await open_http_calls(place, server, stack)
            await crowd.arrived(OF_EACH_KIND * 8)
            await server.stop(0)

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    await round_trip()
    before = descriptors()
    await round_trip()
    async with asyncio.timeout(20):
        while descriptors() > before + 5:  # C-core closes in threads of its own, and keeps a few for itself
            await asyncio.sleep(0.05)
