"""Connect over HTTP/2 in clear text: connections with one call each, servers that leave, refuse or reset."""

import asyncio
import contextlib
import ssl
import threading

import grpc
import h2.config
import h2.connection
import h2.events
import pytest

from client.harness import LIMIT_S, RAW, ask
from quill.client.async_client import AsyncQuillClient
from quill.client.sync_client import QuillClient
from quill.errors import Cancelled, DeadlineExceeded, Internal, InvalidType, InvalidUsage, RpcError, Unavailable
from quill.server.server import Server
from support import echo
from support.authority import Authority


@pytest.fixture(scope="module")
def server(host):
    """The services of the host over h2c."""

    async def start():
        server = Server("127.0.0.1:0", "127.0.0.1:0", http2=True)
        echo.add_to_server(host.echo, server)
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(host.raw.unary),
            "Stream": grpc.unary_stream_rpc_method_handler(host.raw.stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(RAW, handlers),))
        await server.start()
        return server

    server = host.run(start())
    yield server
    host.run(server.stop(0))


@pytest.fixture
def client(server):
    with QuillClient(server.http_url, http2=True) as client:
        yield client


@pytest.mark.parametrize("kind", [QuillClient, AsyncQuillClient])
def test_http2_is_refused_where_it_means_nothing(kind):
    with pytest.raises(InvalidUsage, match="gRPC always speaks HTTP/2"):
        kind("grpc://127.0.0.1:1", http2=True)
    with pytest.raises(InvalidUsage, match="gRPC always speaks HTTP/2"):
        kind("http://127.0.0.1:1", protocol="grpc", http2=True)
    with pytest.raises(InvalidType, match="http2 must be a bool"):
        kind("http://127.0.0.1:1", http2="yes")


def test_a_connection_is_used_again(host, server):
    with (
        host.relay(server.http_url) as (port, connections),
        QuillClient(f"http://127.0.0.1:{port}", http2=True) as client,
    ):
        for _ in range(20):
            assert client.call(RAW, "Unary", ask(bytes=3_000)) == bytes(3_000)
            assert len(list(client.stream(RAW, "Stream", ask(count=3)))) == 3
        assert len(connections) == 1


def test_large_bodies_pass_every_window(client):
    text = "a" * 5_000_000
    assert client.call_json(echo.SERVICE, "Echo", {"text": text}) == {"text": text}
    assert [len(part) for part in client.stream(RAW, "Stream", ask(count=5, bytes=2_000_000))] == [2_000_000] * 5


def test_the_deadline_of_one_call_is_nothing_to_another(client):
    slow = client.stream(RAW, "Stream", ask(count=3, gap_s=0.3))
    replies = []
    reader = threading.Thread(target=lambda: replies.extend(slow))
    reader.start()
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            client.call(RAW, "Unary", ask(sleep_s=10), timeout_ms=100)
    reader.join(LIMIT_S)
    assert len(replies) == 3


def test_closing_one_stream_is_nothing_to_another(client, host):
    streams = [client.stream(RAW, "Stream", ask(count=1, hang=True)) for _ in range(5)]
    finishing = client.stream(RAW, "Stream", ask(count=3))
    for stream in (*streams, finishing):
        next(stream)
    for stream in streams:
        stream.close()
    assert len(list(finishing)) == 2
    host.until(lambda: host.raw.live == 0)


def test_threads_share_a_client(client):
    failures = []

    def work(number):
        try:
            for size in range(1, 40):
                assert client.call(RAW, "Unary", ask(bytes=size * number)) == bytes(size * number)
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert failures == []


def test_a_thread_that_waits_is_woken_by_close(client, host):
    stream = client.stream(RAW, "Stream", ask(count=0, hang=True))
    raised = []

    def read():
        try:
            next(stream)
        except RpcError as error:
            raised.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    host.until(lambda: host.raw.live == 1)
    stream.close()
    reader.join(LIMIT_S)
    assert [type(error) for error in raised] == [Cancelled]
    host.until(lambda: host.raw.live == 0)


def test_a_server_that_speaks_http1_only_is_named(host):
    with QuillClient(host.server.http_url, http2=True) as client, pytest.raises((Internal, Unavailable)) as caught:
        client.call(RAW, "Unary", ask())
    assert host.server.http_url.removeprefix("http://") in caught.value.message


class Peer:
    """An h2 server of one connection, for what no real server does when it is told to."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()

    async def flush(self):
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def request(self):
        """Read one request to its end; its stream, or None where the connection ended."""
        await self.flush()
        while data := await self.reader.read(65536):
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.StreamEnded):
                    return event.stream_id
            await self.flush()
        return None

    async def answer(self, stream, body=b"x"):
        self.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/proto")])
        self.h2.send_data(stream, body, end_stream=True)
        await self.flush()

    async def goaway(self, last_stream):
        """As a server that leaves and lets its calls finish; h2 itself would end them."""
        payload = last_stream.to_bytes(4) + (0).to_bytes(4)
        self.writer.write(len(payload).to_bytes(3) + b"\x07\x00" + bytes(4) + payload)
        await self.writer.drain()


@contextlib.contextmanager
def peer(host, behave, max_attempts=1):
    """A client of a Peer that behaves so: ``behave(peer, number of the connection)``."""
    connections = []

    async def handle(reader, writer):
        connections.append(writer)
        await behave(Peer(reader, writer), len(connections))

    with (
        host.tcp(handle) as port,
        QuillClient(f"http://127.0.0.1:{port}", http2=True, timeout_ms=5000, max_attempts=max_attempts) as client,
    ):
        yield client, connections


def test_a_call_outlives_the_goaway_of_a_server_that_lets_it_finish(host):
    async def behave(peer, _):
        while (stream := await peer.request()) is not None:
            await peer.goaway(stream)
            await peer.answer(stream)

    with peer(host, behave) as (client, connections):
        assert [client.call("a.B", "C", b"") for _ in range(3)] == [b"x"] * 3
        assert len(connections) == 3


def test_a_request_that_a_leaving_server_has_not_looked_at_is_sent_again(host):
    async def behave(peer, number):
        await peer.answer(await peer.request())
        stream = await peer.request()
        if number == 1:
            await peer.goaway(1)
            await peer.reader.read()
        else:
            await peer.answer(stream, b"second")

    with peer(host, behave, max_attempts=2) as (client, connections):
        assert client.call("a.B", "C", b"") == b"x"
        assert client.call("a.B", "C", b"") == b"x"
        assert client.call("a.B", "C", b"") == b"second"
        assert len(connections) == 2


def test_a_connection_that_ended_between_calls_is_not_used(host):
    ended = asyncio.Event()

    async def behave(peer, _):
        await peer.answer(await peer.request())
        peer.writer.close()
        await peer.writer.wait_closed()
        ended.set()

    with peer(host, behave) as (client, connections):
        for _ in range(3):
            assert client.call("a.B", "C", b"") == b"x"
            host.until(ended.is_set)
            ended.clear()
        assert len(connections) == 3


@pytest.mark.parametrize(
    ("number", "code"),
    [(1, "INTERNAL"), (7, "UNAVAILABLE"), (8, "CANCELLED"), (11, "RESOURCE_EXHAUSTED"), (12, "PERMISSION_DENIED")],
)
def test_a_reset_is_the_status_that_grpc_gives_it(host, number, code):
    async def behave(peer, _):
        peer.h2.reset_stream(await peer.request(), number)
        await peer.flush()
        await peer.reader.read()

    with peer(host, behave) as (client, _), pytest.raises(RpcError, match=r"(ended|refused) the call") as caught:
        client.call("a.B", "C", b"")
    assert caught.value.code.name == code


def test_an_answer_before_the_end_of_the_request_ends_it(host):
    """More is asked to be sent than the peer's window takes, and the peer answers instead of taking it."""

    async def behave(peer, _):
        await peer.flush()
        while data := await peer.reader.read(65536):
            events = peer.h2.receive_data(data)
            for event in events:
                if isinstance(event, h2.events.RequestReceived):
                    await peer.answer(event.stream_id)
                    peer.h2.reset_stream(event.stream_id, 0)
            await peer.flush()

    with peer(host, behave) as (client, _):
        assert client.call("a.B", "C", bytes(3_000_000)) == b"x"
        assert client.call("a.B", "C", bytes(3_000_000)) == b"x"


def test_nonsense_amid_a_body_is_named(host):
    async def behave(peer, _):
        stream = await peer.request()
        peer.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/proto")])
        peer.h2.send_data(stream, b"x")
        await peer.flush()
        peer.writer.write(b"\xff" * 9)
        await peer.reader.read()

    with peer(host, behave) as (client, _), pytest.raises(Internal, match="did not answer with valid HTTP/2"):
        client.call("a.B", "C", b"")


@pytest.mark.parametrize("offered", ["h2", "http/1.1"])
def test_over_tls_http2_is_negotiated(host, tmp_path, monkeypatch, offered):
    authority = Authority()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path)))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue().write(tmp_path))
    context.set_alpn_protocols([offered])

    async def handle(reader, writer):
        peer = Peer(reader, writer)
        while (stream := await peer.request()) is not None:
            await peer.answer(stream, bytes(10_000))

    with (
        host.tcp(handle, ssl=context) as port,
        QuillClient(f"https://127.0.0.1:{port}", http2=True, timeout_ms=5000) as client,
    ):
        if offered == "h2":
            assert [client.call("a.B", "C", bytes(size)) for size in (0, 50_000)] == [bytes(10_000)] * 2
        else:
            with pytest.raises(Unavailable, match="it speaks no HTTP/2"):
                client.call("a.B", "C", b"")


@pytest.mark.parametrize(
    "nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\xff\xff\x00\x00" + bytes(4), bytes(9)], ids=repr
)
def test_nonsense_is_named(host, nonsense):
    async def behave(peer, _):
        peer.writer.write(nonsense)
        await peer.reader.read()

    with peer(host, behave) as (client, _), pytest.raises(Internal, match="did not answer with valid HTTP/2"):
        client.call("a.B", "C", b"")
