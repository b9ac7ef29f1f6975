"""One HTTP/1.1 connection and what its peers do to it: upgrades, pipelines, garbage, going away."""

import asyncio
import contextlib
import json

import pytest

from quill.limits import Limits
from support.http1 import Connection, ask, enveloped, post
from support.probe import STREAM, UNARY, Answer, serving

JSON = ("content-type", "application/json")
H2C = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABkAAQAAP__")]
WEBSOCKET = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]


async def echo(request, context):
    return Answer(text=request.text)


class Endless:
    """A stream that sends one message and waits for ever; it tells when it runs and when it has ended."""

    def __init__(self):
        self.runs, self.ended = asyncio.Event(), asyncio.Event()

    async def stream(self, request, context):
        try:
            yield Answer(text="first")
            self.runs.set()
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def open_stream(connection):
    await connection.ask("POST", STREAM, enveloped(b"{}"), [("content-type", "application/connect+json")])


@pytest.mark.parametrize("wanted", [H2C, WEBSOCKET])
@pytest.mark.parametrize("together", [True, False])
async def test_an_upgrade_is_declined_and_the_request_answered(wanted, together, caplog):
    body = json.dumps({"text": "as Java's HttpClient and curl --http2 ask"}).encode()
    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        for _ in range(2):  # the connection goes on as HTTP/1.1
            headers = [JSON, *wanted, ("content-length", str(len(body)))]
            await connection.ask("POST", UNARY, body if together else b"", headers)
            if not together:
                await asyncio.sleep(0.05)  # lets the head be parsed alone
                await connection.send(body)
            reply = await connection.reply()
            assert (reply.status, reply.json()) == (200, json.loads(body))
    assert caplog.text == ""


async def test_the_body_of_a_request_that_asks_for_an_upgrade_is_no_request():
    hidden = b"POST /x.Y/Z HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n"
    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        await connection.ask("POST", UNARY, b"", [JSON, *H2C, ("content-length", str(len(hidden)))])
        await asyncio.sleep(0.05)  # lets the head be parsed alone
        await connection.send(hidden)
        assert (await connection.reply()).json()["code"] == "invalid_argument"
        await connection.ask("POST", UNARY, b'{"text":"next"}', [JSON])
        assert (await connection.reply()).json() == {"text": "next"}


async def test_a_chunked_body_and_a_pipeline_survive_an_upgrade_that_is_declined():
    head = f"POST {UNARY} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    asks = "".join(f"{name}: {value}\r\n" for name, value in H2C)
    chunked = head + asks + 'transfer-encoding: chunked\r\n\r\nf\r\n{"text": "one"}\r\n0\r\n\r\n'
    plain = head + asks + 'content-length: 15\r\n\r\n{"text": "two"}'
    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        await connection.send((chunked + plain + chunked).encode())
        assert [(await connection.reply()).json()["text"] for _ in range(3)] == ["one", "two", "one"]


async def test_a_request_to_be_a_proxy_is_refused():
    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        await connection.send(
            b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n"
        )
        assert (await connection.reply()).status in {400, 405}
        async with asyncio.timeout(20):
            assert await connection.reader.read() == b""


@pytest.mark.parametrize("behind", [b"", b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n"])
async def test_a_client_that_goes_away_ends_its_stream_whatever_stands_behind_it(behind):
    endless = Endless()
    async with serving(stream=endless.stream) as server:
        connection = await Connection.open(server.http_url)
        await open_stream(connection)
        async with asyncio.timeout(20):
            await endless.runs.wait()
            await connection.send(behind)
            await asyncio.sleep(0.05)  # lets what stands behind arrive first
            connection.writer.transport.abort()
            await endless.ended.wait()


async def test_a_pipeline_without_end_is_cut_off_and_ends_the_stream_before_it():
    endless = Endless()
    async with serving(stream=endless.stream) as server, await Connection.open(server.http_url) as connection:
        await open_stream(connection)
        async with asyncio.timeout(20):
            await endless.runs.wait()
            with contextlib.suppress(ConnectionError):
                while not endless.ended.is_set():
                    await connection.ask("POST", UNARY, bytes(50_000), [JSON])
                    await asyncio.sleep(0)
            await endless.ended.wait()


async def test_garbage_behind_a_request_that_runs_is_not_answered_into_its_reply():
    endless = Endless()
    async with serving(stream=endless.stream) as server, await Connection.open(server.http_url) as connection:
        await open_stream(connection)
        async with asyncio.timeout(20):
            await endless.runs.wait()
            await connection.send(b"\x00garbage\r\n\r\n")
            received = await connection.reader.read()
            await endless.ended.wait()
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1") == 1


async def test_garbage_alone_gets_400():
    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        await connection.send(b"\x00garbage\r\n\r\n")
        assert (await connection.reply()).status == 400


async def test_idle_connections_over_the_limit_are_refused_at_once():
    async with (
        serving(limits=Limits(max_connections=2), unary=echo) as server,
        await Connection.open(server.http_url),
        await Connection.open(server.http_url) as second,
    ):
        async with await Connection.open(server.http_url) as third:
            assert (await third.reply()).status == 503
        second.writer.transport.abort()
        async with asyncio.timeout(20):
            while (await ask(server.http_url, "GET", "/healthz")).status == 503:
                await asyncio.sleep(0.01)
        assert (await post(server.http_url, UNARY, "application/json", b"{}")).status == 200


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("hosts", [[], [b"host:"], [b"host: a", b"host: a"], [b"host: a b"], [b"host: a/b"]])
async def test_a_request_that_does_not_name_one_host_is_refused_and_its_connection_closed(http2, hosts):
    async with (
        serving(options={"http2": http2}, unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        head = [f"POST {UNARY} HTTP/1.1".encode(), *hosts, b"content-type: application/json", b"content-length: 2"]
        await connection.send(b"\r\n".join([*head, b"", b"{}"]))
        reply = await connection.reply()
        assert (reply.status, reply["connection"]) == (400, "close")


@pytest.mark.parametrize("host", ["127.0.0.1:80", "[::1]:80", "a-b.example", "%2Ftmp%2Fx"])
async def test_any_one_host_will_do(host):
    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        head = f"POST {UNARY} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
        await connection.send(head.encode() + b"{}")
        assert (await connection.reply()).status == 200
        await connection.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (await connection.reply()).status == 200
