"""The blocking client's connections, over real sockets; bare TCP servers do what no real server does."""

import asyncio
import contextlib
import hashlib
import socket
import ssl
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from client.harness import LIMIT_S, answer
from client.peer2 import ENDING, ENVELOPE, Peer2
from quill import (
    Cancelled,
    ClientTls,
    DeadlineExceeded,
    InvalidUsage,
    QuillClient,
    ResourceExhausted,
    RpcError,
    Unavailable,
)
from quill.client import faults
from support.authority import Authority

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: application/connect+proto\r\ntransfer-encoding: chunked\r\n\r\n"
LARGE = 20_000_000


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


async def requests_of(reader):
    """The messages of a chunked Connect stream."""
    await reader.readuntil(b"\r\n\r\n")
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size))[5:]
        await reader.readexactly(2)


@contextlib.contextmanager
def client(port, http2=False, **options):
    with QuillClient(f"http://127.0.0.1:{port}", http2=http2, **{"timeout_ms": LIMIT_S * 1000, **options}) as client:
        yield client


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """A server's context, and what a client is given."""
    folder, authority = tmp_path_factory.mktemp("tls"), Authority()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue().write(folder))
    return context, ClientTls(ca=authority.pem)


@pytest.fixture(params=["clear", "TLS 1.2", "TLS 1.3"])
def carried(request, host, secure):
    """Serves a handler, and makes a client of it; in clear text or not."""

    @contextlib.contextmanager
    def carry(handle):
        if request.param == "clear":
            with host.tcp(handle) as port, client(port, max_message_bytes=2 * LARGE) as calls:
                yield calls
            return
        context, tls = secure
        context.maximum_version = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}[request.param]
        with (
            host.tcp(handle, ssl=context) as port,
            QuillClient(f"https://127.0.0.1:{port}", tls=tls, max_message_bytes=2 * LARGE) as calls,
        ):
            yield calls

    return carry


def test_large_bodies_are_the_same_at_the_other_end_and_leave_a_connection_that_serves_again(carried):
    """The server takes the request in small pieces, long after the client could not send any more."""
    connections = []

    async def digest(reader, writer):
        connections.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.partition(b"content-length: ")[2].split()[0])
                await asyncio.sleep(0.05)
                seen = hashlib.sha256()
                while size:
                    data = await reader.read(min(size, 50_000))
                    seen.update(data)
                    size -= len(data)
                body = seen.digest() * (LARGE // 32)
                head = f"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()

    sent = bytes(range(256)) * (LARGE // 256)
    with carried(digest) as calls:
        for _ in range(2):
            assert calls.call("a.B", "C", sent, codec="proto") == hashlib.sha256(sent).digest() * (LARGE // 32)
    assert len(connections) == 1


def test_a_server_may_answer_before_it_has_read_a_large_request(carried):
    done = asyncio.Event()

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer("413 Too Large", ["content-type: application/json"], b'{"code":"resource_exhausted"}'))
        await done.wait()

    with carried(refuse) as calls:
        with pytest.raises(ResourceExhausted):
            calls.call("a.B", "C", bytes(LARGE))
        done.set()


def test_an_answer_counts_though_the_server_has_hung_up(host):
    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer("413 Too Large", ["content-type: application/json"], b'{"code":"resource_exhausted"}'))
        await writer.drain()
        writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.05)
        while await reader.read(100_000):
            pass

    with host.tcp(refuse) as port, client(port) as calls, pytest.raises(ResourceExhausted):
        calls.call("a.B", "C", bytes(LARGE))


def test_replies_come_while_requests_are_sent(carried):
    """Both directions are full, and stay in order."""

    async def echo(reader, writer):
        writer.write(STREAM)
        async for message in requests_of(reader):
            writer.write(chunk(b"\0" + struct.pack(">I", len(message)) + message))
            await writer.drain()
        writer.write(chunk(ENDING) + b"0\r\n\r\n")
        await writer.drain()

    messages = [bytes([number]) * 300_000 for number in range(60)]
    with carried(echo) as calls:
        assert list(calls.stream("a.B", "C", iter(messages))) == messages


@pytest.mark.parametrize("http2", [False, True])
def test_a_reply_is_handed_out_when_the_request_that_is_pulled_meanwhile_is_sent(host, http2):
    pulled = []

    async def echo1(reader, writer):
        writer.write(STREAM)
        async for message in requests_of(reader):
            writer.write(chunk(ENVELOPE + message))
        writer.write(chunk(ENDING) + b"0\r\n\r\n")

    async def echo2(reader, writer):
        peer = await Peer2(reader, writer).start()
        for number in range(1, 6):
            await peer.read_until(lambda number=number: len(peer.bodies.get(1, b"")) >= 6 * number)
            if number == 1:
                peer.h2.send_headers(1, [(":status", "200"), ("content-type", "application/connect+proto")])
            peer.h2.send_data(1, ENVELOPE + peer.bodies[1][-1:])
        peer.h2.send_data(1, ENDING, end_stream=True)
        await peer.read_until(lambda: 1 in peer.ended)

    def requests():
        for letter in (b"A", b"B", b"C", b"D", b"E"):
            pulled.append(letter)
            yield letter
            time.sleep(0.3)  # meanwhile the reply comes

    with host.tcp(echo2 if http2 else echo1) as port, client(port, http2=http2) as calls:
        heard = [(message, len(pulled)) for message in calls.stream("a.B", "C", requests())]
    assert [message for message, _ in heard] == pulled == [b"A", b"B", b"C", b"D", b"E"]
    assert all(count <= number + 2 for number, (_, count) in enumerate(heard))


@pytest.mark.parametrize("http2", [False, True])
def test_a_server_may_end_a_call_before_all_requests_came(host, http2):
    closed = []

    async def enough1(reader, writer):
        await anext(requests_of(reader))
        writer.write(STREAM + chunk(ENVELOPE + b"A" + ENDING) + b"0\r\n\r\n")
        await reader.read()

    async def enough2(reader, writer):
        peer = await Peer2(reader, writer).start()
        await peer.read_until(lambda: peer.bodies.get(1))
        await peer.answer(1, ENVELOPE + b"A", ENDING)
        await reader.read()

    def requests():
        try:
            while True:
                yield b"x"
                time.sleep(0.01)
        finally:
            closed.append(1)

    with host.tcp(enough2 if http2 else enough1) as port, client(port, http2=http2) as calls:
        assert list(calls.stream("a.B", "C", requests())) == [b"A"]
        assert closed == [1]


def test_what_the_end_of_an_iterator_raises_hides_no_error(host):
    async def refuse(reader, writer):
        await anext(requests_of(reader))
        ending = b'{"error":{"code":"resource_exhausted"}}'
        writer.write(STREAM + chunk(b"\x02" + struct.pack(">I", len(ending)) + ending) + b"0\r\n\r\n")
        await reader.read()

    def requests():
        try:
            while True:
                yield b"x"
                time.sleep(0.01)
        finally:
            raise RuntimeError

    with host.tcp(refuse) as port, client(port) as calls, pytest.raises(ResourceExhausted):
        next(calls.stream("a.B", "C", requests()))


def test_the_time_that_the_iterator_takes_is_no_gap(host):
    async def echo(reader, writer):
        writer.write(STREAM)
        async for message in requests_of(reader):
            writer.write(chunk(ENVELOPE + message))
        writer.write(chunk(ENDING) + b"0\r\n\r\n")

    def requests():
        yield b"A"
        time.sleep(0.1)  # the first reply is here before the second request
        for letter in (b"B", b"C"):
            time.sleep(1.5)
            yield letter

    with host.tcp(echo) as port, client(port, idle_timeout_ms=1000) as calls:
        assert list(calls.stream("a.B", "C", requests())) == [b"A", b"B", b"C"]


@pytest.mark.parametrize("how", ["close", "deadline"])
def test_a_call_whose_server_takes_nothing_more_can_be_ended(host, how):
    """It waits to send, not for an answer."""
    full = threading.Event()

    async def stall(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        full.set()
        await asyncio.Event().wait()

    raised = []

    def send(calls):
        try:
            next(calls.stream("a.B", "C", bytes(LARGE), timeout_ms=300 if how == "deadline" else None))
        except RpcError as error:
            raised.append(error)

    with host.tcp(stall) as port, client(port, max_attempts=1) as calls:
        thread = threading.Thread(target=send, args=[calls])
        thread.start()
        assert full.wait(LIMIT_S)
        if how == "close":
            time.sleep(0.1)
            calls.close()
        thread.join(LIMIT_S)
    assert [type(error) for error in raised] == [Cancelled if how == "close" else DeadlineExceeded]


def test_what_follows_a_response_is_no_answer_to_the_next_request(carried):
    connections = []

    async def talkative(reader, writer):
        connections.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        good = b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 1\r\n\r\nA"
        writer.write(good)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(good.replace(b"A", b"B"))
        await reader.read()

    with carried(talkative) as calls:
        for _ in range(3):
            assert calls.call("a.B", "C", b"") == b"A"
            time.sleep(0.2)
    assert len(connections) == 3


def test_a_lost_connection_proves_something_only_where_nothing_was_sent(host):
    async def hang_up(reader, writer):
        await reader.readuntil(b"\r\n\r\n")

    with host.tcp(hang_up) as port, client(port) as calls, pytest.raises(Unavailable) as caught:
        calls.call("a.B", "C", b"")
    assert not faults.did_not_run(caught.value)


def test_a_server_that_talks_about_the_connection_between_calls_keeps_it_and_one_that_leaves_is_left(host):
    connections, told = [], threading.Event()

    async def behave(reader, writer):
        peer = await Peer2(reader, writer).start()
        connections.append(peer)
        for stream in (1, 3):
            await peer.read_until(lambda stream=stream: stream in peer.ended)
            peer.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/proto")])
            peer.h2.send_data(stream, b"x", end_stream=True)
            await peer.flush()
            if stream == 1:
                peer.h2.ping(b"are you?")
                await peer.flush()
            else:
                goaway = struct.pack(">II", 3, 0)
                await peer.raw(len(goaway).to_bytes(3) + b"\x07\x00" + bytes(4) + goaway)
            told.set()
        await reader.read()

    with host.tcp(behave) as port, client(port, http2=True, max_attempts=1) as calls:
        for number in range(4):
            assert calls.call("a.B", "C", b"") == b"x"
            assert told.wait(LIMIT_S)
            told.clear()
            time.sleep(0.05)
            assert len(connections) == 1 + number // 2
    assert "PingAckReceived" in [type(event).__name__ for event in connections[0].events]


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_a_client_that_is_closed_ends_every_call_whenever_it_began(host, kind):
    """Without a timeout, a call that was missed would wait for ever. Closing races with each of its steps."""

    async def silent(reader, writer):
        await reader.read()

    def call(calls):
        with pytest.raises((Cancelled, InvalidUsage)):
            calls.call("a.B", "C", b"" if kind == "unary" else iter([b"", b""]))

    with host.tcp(silent, backlog=1000) as port, ThreadPoolExecutor(8) as threads:
        for number in range(50):
            clients = [QuillClient(f"http://127.0.0.1:{port}", timeout_ms=None) for _ in range(8)]
            running = [threads.submit(call, calls) for calls in clients]
            time.sleep(number % 10 / 5000)  # to be somewhere else each time
            for calls in clients:
                calls.close()
            for future in running:
                future.result(LIMIT_S)
