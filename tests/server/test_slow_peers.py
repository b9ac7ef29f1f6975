"""Peers that are slow, silent or never done: each is bounded in time, and told why where it asked something."""

import asyncio
import socket
import time

import pytest

from quill.limits import Limits
from quill.server.tls import Tls
from support.authority import Authority
from support.http1 import Connection, ask, post
from support.probe import STREAM, UNARY, Answer, Ask, Stub, serving

JSON = "application/json"
SHORT_S = 0.4
LONG_S = 60.0
BOUND_S = 10
"""How long after its time a connection may be closed on a busy machine."""


async def echo(request, context):
    return Answer(text=request.text[:10], count=len(request.blob))


async def closed_after_s(connection):
    """How long the other side kept the connection, and what it said."""
    began = time.monotonic()
    async with asyncio.timeout(BOUND_S + SHORT_S):
        try:
            said = await connection.reader.read()
        except ConnectionError:
            said = b""
    return time.monotonic() - began, said


async def trickle(connection, data, gap_s):
    """Send byte by byte until the other side has had enough."""
    try:
        for byte in data:
            await connection.send(bytes([byte]))
            await asyncio.sleep(gap_s)
    except ConnectionError:
        pass


async def test_a_connection_that_asks_nothing_is_closed_without_a_word():
    async with (
        serving(limits=Limits(header_timeout_s=SHORT_S), unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        waited_s, said = await closed_after_s(connection)
        assert waited_s > SHORT_S / 2
        assert said == b""


@pytest.mark.parametrize("keeps_alive", [False, True])
async def test_headers_that_come_byte_by_byte_are_cut_off(keeps_alive):
    async with (
        serving(limits=Limits(header_timeout_s=SHORT_S), unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        if keeps_alive:
            await connection.ask("GET", "/healthz")
            assert (await connection.reply()).status == 200
            await asyncio.sleep(SHORT_S * 2)  # idle between requests is another matter
        sending = asyncio.create_task(trickle(connection, b"GET / HTTP/1.1\r\nx-long: " + b"v" * 1000, 0.05))
        reply = await connection.reply()
        assert (reply.status, reply["connection"]) == (408, "close")
        assert b"header_timeout_s = 0.4 s" in reply.body
        await closed_after_s(connection)
        sending.cancel()


async def test_empty_lines_do_not_keep_a_connection():
    async with (
        serving(limits=Limits(header_timeout_s=SHORT_S), unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        await connection.ask("GET", "/healthz")
        assert (await connection.reply()).status == 200
        sending = asyncio.create_task(trickle(connection, b"\r\n" * 1000, 0.05))
        await closed_after_s(connection)
        sending.cancel()


async def test_a_body_that_stops_coming_is_cut_off():
    async with (
        serving(limits=Limits(body_idle_timeout_s=SHORT_S), unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        await connection.ask("POST", UNARY, b"{", [("content-type", JSON), ("content-length", "100")])
        reply = await connection.reply()
        assert (reply.status, reply["connection"]) == (408, "close")
        assert b"body_idle_timeout_s = 0.4 s" in reply.body
        await closed_after_s(connection)


async def test_a_body_that_comes_slowly_is_read():
    async with (
        serving(limits=Limits(body_idle_timeout_s=1.0), unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        await connection.ask("POST", UNARY, b"", [("content-type", JSON), ("content-length", "14")])
        await trickle(connection, b'{"text":"abc"}', 0.1)  # 1.4 s in all
        assert (await connection.reply()).json() == {"text": "abc"}


async def test_a_slow_handler_is_no_slow_peer():
    limits = Limits(header_timeout_s=SHORT_S, body_idle_timeout_s=SHORT_S, connection_idle_timeout_s=SHORT_S)

    async def slow(request, context):
        await asyncio.sleep(SHORT_S * 3)
        return Answer(text="done")

    async with serving(limits=limits, unary=slow) as server:
        assert (await post(server.http_url, UNARY, JSON, b"{}")).json() == {"text": "done"}


async def test_a_connection_without_calls_is_closed_on_both_ports():
    async with (
        serving(limits=Limits(connection_idle_timeout_s=1.0), unary=echo) as server,
        await Connection.open(server.http_url) as connection,
        await Connection.open("http://" + server.grpc_address) as raw,
    ):
        await connection.ask("GET", "/healthz")
        await connection.reply()
        assert (await closed_after_s(connection))[1] == b""
        await raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        await closed_after_s(raw)


async def test_a_grpc_connection_that_says_nothing_is_closed():
    async with (
        serving(limits=Limits(handshake_timeout_s=SHORT_S), unary=echo) as server,
        await Connection.open("http://" + server.grpc_address) as connection,
    ):
        await closed_after_s(connection)


async def test_tls_handshakes_that_never_end_are_closed_on_both_ports(tmp_path):
    cert, key = Authority().issue().write(tmp_path)
    limits = Limits(handshake_timeout_s=SHORT_S, header_timeout_s=LONG_S)
    async with serving(limits=limits, tls=Tls(cert=cert, key=key), unary=echo) as server:
        for address in (server.http_url, "http://" + server.grpc_address):
            async with await Connection.open(address.replace("https", "http")) as connection:
                await connection.send(b"\x16\x03\x01")
                assert (await closed_after_s(connection))[0] > SHORT_S / 2


async def test_connections_over_the_limit_are_refused_on_both_ports():
    async with serving(limits=Limits(max_connections=2), unary=echo) as server:
        silent = [await Connection.open(server.http_url) for _ in range(2)]
        for asks in (False, True):
            async with await Connection.open(server.http_url) as connection:
                if asks:
                    await connection.ask("GET", "/healthz")
                reply = await connection.reply()
            assert (reply.status, reply["connection"]) == (503, "close")
            assert (reply["retry-after"], reply["grpc-retry-pushback-ms"]) == ("1", "1000")
            assert reply.body == b"there are 3 connections and max_connections is 2"
            async with asyncio.timeout(BOUND_S):
                while len(server._http_host._server.server_state.connections) > 2:
                    await asyncio.sleep(0.01)
        for one in silent:
            await one.__aexit__()
        async with asyncio.timeout(BOUND_S):
            while (await ask(server.http_url, "GET", "/healthz")).status != 200:
                await asyncio.sleep(0.01)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
        open_ones = [await Connection.open("http://" + server.grpc_address) for _ in range(3)]
        heard = []
        for one in open_ones:
            await one.send(preface)
            heard.append(bool(await one.reader.read(1)))
        assert heard == [True, True, False]
        for one in open_ones:
            await one.__aexit__()


@pytest.mark.parametrize("announced", [True, False])
async def test_an_upload_over_the_limit_is_told_so_and_does_not_go_on(announced):
    """A peer that does not stop sending gets its answer, and then a closed connection after little more."""
    limits = Limits(max_message_bytes=100_000)
    async with serving(limits=limits, unary=echo) as server:
        answer, sent = await asyncio.to_thread(_upload, server.http_url, announced)
    assert b" 429 " in answer
    assert b"connection: close" in answer
    assert b"resource_exhausted" in answer
    # What one side's socket buffers hold, and what the server throws away before it hangs up.
    assert sent < 20_000_000


def _upload(url, announced):
    """Send up to 200 MB, blocking, and only then look for an answer, as many clients do."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    length = "content-length: 200000000" if announced else "transfer-encoding: chunked"
    sent, piece = 0, bytes(100_000)
    with socket.create_connection((host, int(port)), timeout=20) as peer:
        head = f"POST {UNARY} HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\n{length}\r\n\r\n"
        peer.sendall(head.encode())
        answer = b""
        peer.setblocking(False)
        deadline = time.monotonic() + 20
        while sent < 200_000_000 and time.monotonic() < deadline:
            try:
                sent += peer.send(piece if announced else b"%x\r\n%s\r\n" % (len(piece), piece))
            except BlockingIOError:
                time.sleep(0.01)
            except ConnectionError:
                break
            try:
                answer += peer.recv(65536)
            except BlockingIOError:
                pass
            except ConnectionError:
                break
    return answer, sent


async def test_a_small_rest_of_a_refused_request_keeps_the_connection():
    async with (
        serving(unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        await connection.ask("POST", "/no.Such/Thing", b"", [("content-type", JSON), ("content-length", "1000")])
        reply = await connection.reply()
        assert (reply.status, reply["connection"]) == (404, None)
        await connection.send(bytes(1000))
        await connection.ask("GET", "/healthz")
        assert (await connection.reply()).status == 200


async def test_a_rest_that_never_comes_is_not_answered_a_second_time():
    async with (
        serving(limits=Limits(body_idle_timeout_s=SHORT_S), unary=echo) as server,
        await Connection.open(server.http_url) as connection,
    ):
        await connection.ask("POST", "/no.Such/Thing", b"", [("content-type", JSON), ("content-length", "1000")])
        assert (await connection.reply()).status == 404
        assert (await closed_after_s(connection))[1] == b""


async def test_a_stream_that_the_peer_does_not_read_is_not_cut_off_by_these_limits():
    limits = Limits(header_timeout_s=SHORT_S, body_idle_timeout_s=SHORT_S, connection_idle_timeout_s=SHORT_S)

    async def stream(request, context):
        for _ in range(3):
            await asyncio.sleep(SHORT_S)
            yield Answer(text="x")

    async with serving(limits=limits, stream=stream) as server, Stub(server.grpc_address) as stub:
        assert len([reply async for reply in stub.stream(Ask())]) == 3
        async with await Connection.open(server.http_url) as connection:
            headers = [("content-type", "application/connect+proto")]
            await connection.ask("POST", STREAM, b"\0\0\0\0\0", headers)
            assert len((await connection.reply()).messages()) == 3
