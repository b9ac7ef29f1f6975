"""The asyncio client's connections, over real sockets; bare TCP servers do what no real server does."""

import asyncio
import contextlib
import gc
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from hyperframe.frame import GoAwayFrame

from client.harness import LIMIT_S, answer, read_request
from client.peer2 import ENDING, ENVELOPE, Peer2
from quill import AsyncQuillClient, Cancelled, DeadlineExceeded, Internal, ResourceExhausted, RpcError, Unavailable
from quill.client import connecting, faults, http1_async, http2_async
from quill.client.address import Address
from quill.client.connect_async import ConnectAsyncTransport
from quill.client.http2 import STREAM_WINDOW_BYTES
from quill.client.options import ClientOptions
from quill.client.transport import Call
from quill.errors import Code

CERTIFICATE = Path(__file__).parent / "localhost.pem"


@contextlib.asynccontextmanager
async def tcp(handle, host="127.0.0.1", **options):
    """A bare server on this loop. Yields its port; what a handler raises fails the test."""
    tasks, failures = set(), []

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handle(reader, writer)
        except Exception as error:  # noqa: BLE001 - shown at the end
            failures.append(error)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, host, 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
        assert failures == []


def peers(handle, **settings):
    """A handler for HTTP/2: `handle(peer)`."""

    async def serve(reader, writer):
        await handle(await Peer2(reader, writer).start(**settings))

    return serve


def client(port, **options):
    return AsyncQuillClient(f"http://127.0.0.1:{port}", **options)


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    error = caught.value
    assert error.__suppress_context__ or error.__context__ is None
    return error


def ran(error):
    """Whether the call may have run."""
    return not faults.did_not_run(error)


async def no_tasks():
    """Wait until nothing runs but the test."""
    async with asyncio.timeout(LIMIT_S):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.005)


def reply(body=b"", headers=()):
    return (
        "\r\n".join(
            ["HTTP/1.1 200 OK", "content-type: application/proto", f"content-length: {len(body)}", *headers, "", ""]
        ).encode()
        + body
    )


@contextlib.contextmanager
def full_backlog():
    """A port on which the kernel neither takes nor refuses a connection."""
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()[1]


# HTTP/1.1


async def test_one_connection_serves_one_call_after_the_other():
    connections = []

    async def keep(reader, writer):
        connections.append(writer)
        while True:
            await read_request(reader)
            writer.write(reply(b"x"))

    async with tcp(keep) as port, client(port) as calls:
        for _ in range(5):
            assert await calls.call("a.B", "C", b"") == b"x"
        assert len(connections) == 1
        await asyncio.gather(*(calls.call("a.B", "C", b"") for _ in range(5)))
        assert 1 < len(connections) <= 6


async def test_an_idle_connection_is_dropped_when_it_is_old_or_has_ended(monkeypatch):
    connections = []

    async def once(reader, writer):
        connections.append(writer)
        while True:
            await read_request(reader)
            writer.write(reply(b"x"))

    async with tcp(once) as port, client(port) as calls:
        await calls.call("a.B", "C", b"")
        connections[0].close()  # the server says nothing of it in HTTP
        await asyncio.sleep(0.05)
        await calls.call("a.B", "C", b"")
        assert len(connections) == 2
        monkeypatch.setattr(http1_async, "IDLE_EXPIRY_S", 0.05)
        await asyncio.sleep(0.1)
        await calls.call("a.B", "C", b"")
        assert len(connections) == 3


async def test_idle_connections_are_closed_though_nobody_calls(monkeypatch):
    monkeypatch.setattr(http1_async, "IDLE_EXPIRY_S", 0.2)
    ended = []

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await read_request(reader)
                await asyncio.sleep(0.05)
                writer.write(reply(b"x"))
        ended.append(writer)

    async with tcp(serve) as port, client(port) as calls:
        await asyncio.gather(*(calls.call("a.B", "C", b"") for _ in range(5)))
        async with asyncio.timeout(LIMIT_S):
            while len(ended) < 5:
                await asyncio.sleep(0.01)
        await calls.call("a.B", "C", b"")


async def test_a_server_may_answer_before_it_has_read_a_large_request():
    """It neither reads on nor hangs up: a client that sends first would wait for its deadline."""
    done = asyncio.Event()

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer("413 Too Large", ["content-type: application/json"], b'{"code":"resource_exhausted"}'))
        await done.wait()

    async with tcp(refuse) as port, client(port, max_message_bytes=10**8) as calls:
        with pytest.raises(ResourceExhausted):
            await calls.call("a.B", "C", bytes(50_000_000), timeout_ms=LIMIT_S * 1000)
        done.set()


@pytest.mark.parametrize("http2", [False, True])
async def test_a_server_may_end_a_call_before_all_requests_came(http2):
    closed = asyncio.Event()
    asked = 0

    async def enough1(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = ENVELOPE + b"A" + ENDING
        writer.write(answer(headers=["content-type: application/connect+proto"], body=body))
        await asyncio.Event().wait()

    async def enough2(peer):
        await peer.read_until(lambda: peer.bodies.get(1))
        await peer.answer(1, ENVELOPE + b"A", ENDING)
        await peer.rest()
        assert peer.resets == {1: 8}

    async def requests():
        nonlocal asked
        try:
            while True:
                asked += 1
                yield b"x"
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    async with tcp(peers(enough2) if http2 else enough1) as port:
        async with client(port, http2=http2) as calls:
            assert [message async for message in calls.stream("a.B", "C", requests())] == [b"A"]
            await asyncio.wait_for(closed.wait(), LIMIT_S)
            before = asked
            await asyncio.sleep(0.05)
            assert asked == before
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("http2", [False, True])
async def test_a_slow_reader_holds_the_server_back(http2):
    message = b"\0" + (65_536).to_bytes(4, "big") + bytes(65_536)
    sent = 0

    async def pour1(reader, writer):
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/connect+proto\r\n\r\n")
        while True:
            writer.write(message)
            await writer.drain()
            sent += len(message)

    async def pour2(peer):
        nonlocal sent
        await peer.requests()
        await peer.answer(1, end=False)
        while True:
            await peer.read_until(lambda: peer.h2.local_flow_control_window(1) > 0)
            size = min(peer.h2.local_flow_control_window(1), peer.h2.max_outbound_frame_size, len(message))
            peer.h2.send_data(1, (message * 5)[sent % len(message) :][:size])
            sent += size
            await peer.flush()

    async with tcp(peers(pour2) if http2 else pour1) as port, client(port, http2=http2) as calls:
        stream = calls.stream("a.B", "C", b"")
        await anext(stream)
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < (2 * STREAM_WINDOW_BYTES + 10 * len(message) if http2 else 30_000_000)
        for _ in range(100 + sent // len(message)):
            assert len(await anext(stream)) == 65_536
        assert sent > before
        await stream.aclose()


@pytest.mark.parametrize("http2", [False, True])
async def test_closing_the_client_ends_what_waits_and_leaves_nothing(http2):
    async def silent(reader, writer):
        await reader.read(-1)

    async with tcp(silent) as port:
        tasks = asyncio.all_tasks()
        calls = client(port, http2=http2)
        waiting = [
            asyncio.create_task(calls.call("a.B", "C", b"")),
            asyncio.create_task(anext(calls.stream("a.B", "C", b""))),
            asyncio.create_task(anext(calls.stream("a.B", "C", [b"", b""]))),
        ]
        await asyncio.sleep(0.1)
        await calls.close()
        ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), LIMIT_S)
        assert [type(error) for error in ended] == [Cancelled] * 3
        await asyncio.sleep(0.05)
        assert {task for task in asyncio.all_tasks() - tasks if "serve" not in repr(task)} == set()


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("how", ["cancel", "close", "deadline"])
async def test_a_call_that_still_connects_ends_at_once(http2, how):
    with full_backlog() as port:
        calls = client(port, http2=http2)
        stream = calls.stream("a.B", "C", b"", timeout_ms=200 if how == "deadline" else 60_000)
        others = [asyncio.create_task(calls.call("a.B", "C", b"", timeout_ms=60_000)) for _ in range(2)]
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.1)
        start = time.monotonic()
        if how == "cancel":
            await stream.aclose()
        elif how == "close":
            await calls.close()
        error = await failure(reading)
        assert isinstance(error, DeadlineExceeded if how == "deadline" else Cancelled)
        assert time.monotonic() - start < 5
        if how != "close":
            assert not any(other.done() for other in others)
            for other in others:
                other.cancel()
            for other in others:
                with pytest.raises(asyncio.CancelledError):
                    await other
            await calls.close()
        await asyncio.gather(*others, return_exceptions=True)
        await no_tasks()


async def test_the_next_address_of_a_name_is_tried():
    async def keep(reader, writer):
        await read_request(reader)
        writer.write(reply(b"x"))

    found = {info[4][0] for info in socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)}
    async with tcp(keep, host="127.0.0.1") as port, AsyncQuillClient(f"http://localhost:{port}") as calls:
        assert await calls.call("a.B", "C", b"") == b"x"
    assert "127.0.0.1" in found


async def test_an_address_that_does_not_answer_is_left_for_the_next(monkeypatch):
    """The first address is a port whose backlog is full."""

    async def keep(reader, writer):
        await read_request(reader)
        writer.write(reply(b"x"))

    with full_backlog() as silent:
        async with tcp(keep) as port:

            async def look_up(*_):
                kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
                return [(*kind, ("127.0.0.1", silent)), (*kind, ("127.0.0.1", port))]

            monkeypatch.setattr(connecting, "_look_up", look_up)
            monkeypatch.setattr(connecting, "ADDRESS_PATIENCE_S", 0.1)
            async with AsyncQuillClient(f"http://localhost:{port}") as calls:
                assert await calls.call("a.B", "C", b"") == b"x"


async def test_ipv6():
    async def keep(reader, writer):
        head, _ = await read_request(reader)
        writer.write(reply(head.split(b"\r\n")[1]))

    async with tcp(keep, host="::1") as port, AsyncQuillClient(f"http://[::1]:{port}") as calls:
        assert await calls.call("a.B", "C", b"") == b"host: [::1]:%d" % port


@pytest.mark.parametrize("exists", [True, False])
async def test_a_unix_socket(tmp_path, exists):
    async def keep(reader, writer):
        await read_request(reader)
        writer.write(reply(b"x"))
        await writer.drain()
        writer.close()

    path = str(tmp_path / "s")
    transport = ConnectAsyncTransport(Address("connect", "localhost", 80, False, unix_path=path), ClientOptions())
    try:
        if exists:
            async with await asyncio.start_unix_server(keep, path):
                assert await transport.unary(Call(service="a.B", method="C", timeout_ms=5000), b"") == b"x"
        else:
            error = await failure(transport.unary(Call(service="a.B", method="C", timeout_ms=5000), b""))
            assert type(error) is Unavailable
            assert not ran(error)
    finally:
        await transport.aclose()


async def test_a_refused_connection_did_not_run_and_a_lost_one_may_have():
    async def hang_up(reader, writer):
        await read_request(reader)

    async with tcp(hang_up) as port, client(port) as calls:
        assert ran(await failure(calls.call("a.B", "C", b"")))
    for http2 in (False, True):
        async with client(port, http2=http2, max_attempts=1) as calls:
            error = await failure(calls.call("a.B", "C", b""))
            assert (type(error), ran(error)) == (Unavailable, False)


# TLS


@pytest.fixture
def server_tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_over_tls_the_server_chooses_the_version_of_http(server_tls, monkeypatch, version):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    server_tls.maximum_version = version
    connections = []
    large = bytes(range(256)) * 4096

    async def either(reader, writer):
        agreed = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        connections.append(agreed)
        if agreed != "h2":
            while True:
                _, body = await read_request(reader)
                writer.write(reply(body))
        peer = await Peer2(reader, writer).start()
        answered = set()
        while True:
            await peer.read_until(lambda: peer.ended - answered)
            for stream_id in peer.ended - answered:
                answered.add(stream_id)
                peer.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/proto")])
                body = peer.bodies[stream_id]
                while body:
                    await peer.read_until(lambda: peer.h2.local_flow_control_window(stream_id) > 0)  # noqa: B023 - called here
                    size = min(16_384, peer.h2.local_flow_control_window(stream_id))
                    peer.h2.send_data(stream_id, body[:size])
                    body = body[size:]
                peer.h2.end_stream(stream_id)
                await peer.flush()

    async with tcp(either, ssl=server_tls) as port:
        for protocols in (["h2", "http/1.1"], ["http/1.1"], []):
            if protocols:
                server_tls.set_alpn_protocols(protocols)
            connections.clear()
            async with AsyncQuillClient(f"https://localhost:{port}") as calls:
                replies = await asyncio.gather(*(calls.call("a.B", "C", large) for _ in range(3)))
                assert replies == [large] * 3
                assert await calls.call("a.B", "C", b"again") == b"again"
                assert connections == ["h2"] if protocols[:1] == ["h2"] else len(connections) == 3


async def test_a_certificate_that_is_not_trusted_is_told_apart(server_tls):
    async def never(reader, writer):
        raise AssertionError

    async with tcp(never, ssl=server_tls) as port, AsyncQuillClient(f"https://localhost:{port}") as calls:
        # The server's side of asyncio reports the refused handshake to the loop.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        error = await failure(calls.call("a.B", "C", b""))
        assert "its certificate is signed by nobody who is trusted here" in error.message


async def test_a_server_that_wants_a_certificate_refuses_before_the_call(server_tls, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    server_tls.verify_mode = ssl.CERT_REQUIRED
    server_tls.load_verify_locations(CERTIFICATE)

    def refuse(listener):
        """A blocking server says why it refuses; asyncio's only hangs up."""
        connection, _ = listener.accept()
        with connection, pytest.raises(ssl.SSLError):
            server_tls.wrap_socket(connection, server_side=True)

    for protocols in (["h2"], ["http/1.1"]):
        server_tls.set_alpn_protocols(protocols)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            refusing = asyncio.create_task(asyncio.to_thread(refuse, listener))
            url = f"https://localhost:{listener.getsockname()[1]}"
            async with AsyncQuillClient(url, max_attempts=1) as calls:
                error = await failure(calls.call("a.B", "C", b""))
            await refusing
        assert type(error) is Unavailable
        assert "it asks for a client certificate" in error.message


@pytest.mark.parametrize("secure", [True, False])
async def test_what_follows_a_response_is_no_answer_to_the_next_request(server_tls, monkeypatch, secure):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    connections = 0

    async def babble(reader, writer):
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(reply(b"mine"))
        writer.write(reply(b"nobody's"))
        await reader.read(-1)

    scheme = "https" if secure else "http"
    async with (
        tcp(babble, ssl=server_tls if secure else None) as port,
        AsyncQuillClient(f"{scheme}://localhost:{port}") as calls,
    ):
        for _ in range(3):
            assert await calls.call("a.B", "C", b"") == b"mine"
    assert connections == 3


# HTTP/2


async def test_many_calls_share_one_connection_and_answers_come_in_any_order():
    connections = 0

    async def backwards(peer):
        nonlocal connections
        connections += 1
        for stream_id in reversed(await peer.requests(20)):
            await peer.answer(stream_id, b"%d" % stream_id, content_type="application/proto")
        await peer.rest()

    async with tcp(peers(backwards)) as port, client(port, http2=True) as calls:
        replies = await asyncio.gather(*(calls.call("a.B", "C", b"x") for _ in range(20)))
    assert sorted(map(int, replies)) == list(range(1, 41, 2))
    assert connections == 1


async def test_another_connection_is_opened_when_a_server_takes_no_more():
    loads = []

    async def two_at_a_time(peer):
        mine = len(loads)
        loads.append(0)
        answered = set()
        while True:
            await peer.read_until(lambda: peer.ended - answered)
            assert len(peer.ended - answered) <= 2
            loads[mine] += 1
            await asyncio.sleep(0.02)
            stream_id = min(peer.ended - answered)
            answered.add(stream_id)
            await peer.answer(stream_id, b"x", content_type="application/proto")

    async with tcp(peers(two_at_a_time, MAX_CONCURRENT_STREAMS=2)) as port, client(port, http2=True) as calls:
        await calls.call("a.B", "C", b"")  # from now on the client knows
        assert await asyncio.gather(*(calls.call("a.B", "C", b"") for _ in range(2))) == [b"x"] * 2
        assert len(loads) == 1
        await asyncio.sleep(0.05)


async def test_a_goaway_moves_calls_to_another_connection_and_lets_those_under_way_end():
    connections = []

    async def leave(peer):
        connections.append(peer)
        if len(connections) > 1:
            await peer.requests()
            await peer.answer(1, b"new", content_type="application/proto")
            await peer.rest()
            return
        await peer.requests()
        await peer.answer(1, ENVELOPE + b"A", end=False)
        await peer.read_until(lambda: len(peer.ended) == 2)
        await peer.raw(GoAwayFrame(0, last_stream_id=1, error_code=0xB))
        await asyncio.sleep(0.1)
        peer.h2.send_data(1, ENVELOPE + b"B" + ENDING, end_stream=True)
        await peer.rest()

    async with tcp(peers(leave)) as port, client(port, http2=True, max_attempts=1) as calls:
        stream = calls.stream("a.B", "C", b"")
        assert await anext(stream) == b"A"
        error = await failure(calls.call("a.B", "C", b""))
        assert (type(error), ran(error)) == (Unavailable, False)
        assert "going away (ENHANCE_YOUR_CALM)" in error.message
        assert await calls.call("a.B", "C", b"") == b"new"
        assert [message async for message in stream] == [b"B"]


@pytest.mark.parametrize(("reset", "code", "did_run"), [(7, Code.UNAVAILABLE, False), (8, Code.CANCELLED, True)])
async def test_a_reset_ends_one_call_and_keeps_what_came(reset, code, did_run):
    async def one(peer):
        await peer.requests(2)
        await peer.answer(1, ENVELOPE + b"A", end=False)
        peer.h2.reset_stream(1, reset)
        await peer.answer(3, b"well", content_type="application/proto")
        await peer.rest()

    async with tcp(peers(one)) as port, client(port, http2=True) as calls:
        stream = calls.stream("a.B", "C", b"")
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.05)
        assert await calls.call("a.B", "C", b"") == b"well"
        assert await first == b"A"
        error = await failure(anext(stream))
        assert (error.code, ran(error)) == (code, did_run)


async def test_a_cancelled_call_is_reset_and_others_go_on():
    async def wait(peer):
        await peer.requests(2)
        await peer.answer(1, ENVELOPE + b"A", end=False)
        await peer.read_until(lambda: 1 in peer.resets)
        await peer.answer(3, b"well", content_type="application/proto")
        await peer.rest()

    async with tcp(peers(wait)) as port, client(port, http2=True) as calls:
        stream = calls.stream("a.B", "C", b"")
        opening = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.05)
        other = asyncio.create_task(calls.call("a.B", "C", b""))
        assert await opening == b"A"
        await stream.aclose()
        assert await asyncio.wait_for(other, LIMIT_S) == b"well"


async def test_requests_wait_for_the_windows_of_the_server_and_a_deadline_ends_that():
    pulled = 0

    async def stall(peer):
        peer.credits = False
        await peer.read_until(lambda: 1 in peer.resets)
        assert len(peer.bodies[1]) == 65_535
        peer.h2.increment_flow_control_window(65_535)  # the connection's, for the next
        await peer.read_until(lambda: 3 in peer.ended)
        await peer.answer(3, b"well", content_type="application/proto")
        await peer.rest()

    async def requests():
        nonlocal pulled
        while True:
            pulled += 1
            yield bytes(10_000)

    async with tcp(peers(stall)) as port, client(port, http2=True) as calls:
        with pytest.raises(DeadlineExceeded):
            await anext(calls.stream("a.B", "C", requests(), timeout_ms=300))
        assert pulled < 15
        assert await calls.call("a.B", "C", bytes(5000)) == b"well"


async def test_a_dialogue_takes_turns():
    async def echo(peer):
        await peer.read_until(lambda: peer.bodies.get(1))
        await peer.answer(1, peer.bodies[1], end=False)
        seen = len(peer.bodies[1])
        while 1 not in peer.ended:
            await peer.read_until(lambda: len(peer.bodies[1]) > seen or 1 in peer.ended)  # noqa: B023 - called here
            peer.h2.send_data(1, peer.bodies[1][seen:])
            seen = len(peer.bodies[1])
        peer.h2.send_data(1, ENDING, end_stream=True)
        await peer.rest()

    said = asyncio.Queue()
    said.put_nowait(b"a")

    async def requests():
        while (word := await said.get()) is not None:
            yield word

    heard = []
    async with tcp(peers(echo)) as port, client(port, http2=True) as calls:
        async for message in calls.stream("a.B", "C", requests()):
            heard.append(message)
            said.put_nowait({b"a": b"b", b"b": b"c", b"c": None}[message])
    assert heard == [b"a", b"b", b"c"]


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100, bytes(range(200, 256)) * 9])
async def test_a_peer_that_speaks_no_http2_is_an_error_at_once(nonsense):
    async def talk(reader, writer):
        await reader.read(10)
        writer.write(nonsense)
        await reader.read(-1)

    async with tcp(talk) as port, client(port, http2=True, timeout_ms=LIMIT_S * 1000) as calls:
        results = await asyncio.gather(
            calls.call("a.B", "C", b""), anext(calls.stream("a.B", "C", b"")), return_exceptions=True
        )
    assert [type(error) for error in results] == [Internal, Internal]
    assert results[0] is not results[1]
    assert "did not answer with valid HTTP" in results[0].message


@pytest.mark.parametrize("abort", [True, False])
async def test_a_connection_that_ends_in_the_middle_was_lost(abort):
    async def cut(peer):
        await peer.requests()
        await peer.answer(1, ENVELOPE + b"A" + ENVELOPE, end=False)
        await asyncio.sleep(0.05)
        if not abort:
            peer.writer.close()
            await peer.writer.wait_closed()

    async with tcp(peers(cut)) as port, client(port, http2=True, max_attempts=1) as calls:
        stream = calls.stream("a.B", "C", b"")
        assert await anext(stream) == b"A"
        error = await failure(anext(stream))
        assert error.message == f"the connection to 127.0.0.1:{port} was lost before the call ended"
        assert ran(error)


async def test_a_huge_head_is_refused():
    async def boast(peer):
        await peer.requests()
        peer.h2.remote_settings.max_header_list_size = 10**9
        peer.h2.send_headers(1, [(":status", "200"), *((f"x-{n}", "a" * 8000) for n in range(20))])
        await peer.flush()
        await peer.rest()

    async with tcp(peers(boast)) as port, client(port, http2=True) as calls:
        assert type(await failure(calls.call("a.B", "C", b""))) is Internal


async def test_a_silent_server_is_asked_and_then_given_up(monkeypatch):
    monkeypatch.setattr(http2_async, "_TICK_S", 0.02)
    monkeypatch.setattr(http2_async, "_PING_AFTER_S", 0.1)
    pings = 0

    async def mute(reader, writer):
        """Answers nothing, not even a ping, once it has begun."""
        nonlocal pings
        peer = await Peer2(reader, writer).start()
        await peer.requests()
        await peer.answer(1, ENVELOPE + b"A", end=False)
        while data := await reader.read(65536):
            pings += data.count(b"quillrpc")

    async with tcp(mute) as port, client(port, http2=True, max_attempts=1) as calls:
        stream = calls.stream("a.B", "C", b"")
        assert await anext(stream) == b"A"
        error = await asyncio.wait_for(failure(anext(stream)), LIMIT_S)
        assert "was lost" in error.message
    assert pings == 1


async def test_a_slow_server_that_answers_pings_is_waited_for(monkeypatch):
    monkeypatch.setattr(http2_async, "_TICK_S", 0.02)
    monkeypatch.setattr(http2_async, "_PING_AFTER_S", 0.1)

    async def slow(peer):
        await peer.requests()
        reading = asyncio.create_task(peer.rest())
        await asyncio.sleep(0.8)
        await peer.answer(1, b"late", content_type="application/proto")
        await reading

    async with tcp(peers(slow)) as port, client(port, http2=True) as calls:
        assert await calls.call("a.B", "C", b"") == b"late"


async def test_a_connection_without_calls_is_closed_after_a_while(monkeypatch):
    monkeypatch.setattr(http2_async, "_TICK_S", 0.02)
    monkeypatch.setattr(http2_async, "_IDLE_EXPIRY_S", 0.1)
    gone = asyncio.Event()

    async def serve(peer):
        await peer.requests()
        await peer.answer(1, b"x", content_type="application/proto")
        await peer.rest()
        gone.set()

    async with tcp(peers(serve)) as port, client(port, http2=True) as calls:
        assert await calls.call("a.B", "C", b"") == b"x"
        await asyncio.wait_for(gone.wait(), LIMIT_S)


async def test_a_server_that_asks_and_takes_no_answers_is_not_read_for_ever():
    ping = b"\0\0\x08\6\0\0\0\0\0" + bytes(8)
    poured = 0

    async def pour(reader, writer):
        nonlocal poured
        peer = await Peer2(reader, writer).start()
        await peer.requests()
        while True:  # reads no more
            writer.write(ping * 4000)
            await writer.drain()
            poured += 4000 * len(ping)

    async with tcp(pour) as port, client(port, http2=True) as calls:
        with pytest.raises(DeadlineExceeded):
            await calls.call("a.B", "C", b"", timeout_ms=3000)
    assert poured < 60_000_000


async def test_a_stream_that_nobody_closes_leaves_nothing():
    ended = threading.Event()

    async def wait(peer):
        await peer.requests()
        await peer.answer(1, ENVELOPE + b"A", end=False)
        await peer.read_until(lambda: 1 in peer.resets)
        ended.set()
        await peer.rest()

    async with tcp(peers(wait)) as port, client(port, http2=True) as calls:
        assert await anext(calls.stream("a.B", "C", b"")) == b"A"
        gc.collect()
        async with asyncio.timeout(LIMIT_S):
            while not ended.is_set():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("goodbye", [b"", GoAwayFrame(0, last_stream_id=0).serialize()])
async def test_a_server_that_hangs_up_at_once_is_not_called_again_and_again(goodbye):
    connections = 0

    async def leave(peer):
        nonlocal connections
        connections += 1
        await peer.raw(goodbye)
        peer.writer.close()
        await peer.writer.wait_closed()

    async with tcp(peers(leave)) as port, client(port, http2=True, max_attempts=1) as calls:
        for error in await asyncio.gather(*(calls.call("a.B", "C", b"") for _ in range(3)), return_exceptions=True):
            assert type(error) is Unavailable
    assert connections <= 3


async def turns_of_another_task(work):
    """How often another task had its turn while this ran, and what it raised."""
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    counting = asyncio.create_task(count())
    try:
        with pytest.raises(RpcError) as caught:
            await work
    finally:
        counting.cancel()
    return turns, caught.value


async def flood(reader, writer, first, again):
    """Say something, and then the same thing for ever, as fast as it goes."""
    await read_request(reader)
    writer.write(first)
    while True:
        writer.write(again)
        await writer.drain()


async def test_interim_responses_without_end_are_refused():
    async def handle(reader, writer):
        await flood(reader, writer, b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)

    async with tcp(handle) as port, AsyncQuillClient(f"http://127.0.0.1:{port}") as client:
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(Internal, match="valid HTTP"):
                await client.call_json("a.B", "C", {})


async def test_a_server_that_never_pauses_leaves_others_their_turn_and_the_call_its_deadline():
    """The server is in a thread: on this loop it would pause whenever the client does not."""
    listener = socket.create_server(("127.0.0.1", 0))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"

    def serve():
        with contextlib.suppress(OSError):
            peer = listener.accept()[0]
            with peer:
                peer.recv(65536)
                peer.sendall(head)
                while True:
                    peer.sendall(b"1\r\n \r\n" * 10_000)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener:
        async with AsyncQuillClient(url, max_message_bytes=1 << 30) as client, asyncio.timeout(LIMIT_S):
            turns, error = await turns_of_another_task(client.call_json("a.B", "C", {}, timeout_ms=1000))
    assert isinstance(error, DeadlineExceeded)
    assert turns > 2
    await asyncio.to_thread(thread.join, LIMIT_S)
