"""Calls that did not run are sent again, and no others: over real sockets, the same on every protocol."""

import asyncio
import contextlib
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time

import grpc
import pytest

from client.harness import LIMIT_S, answer, read_request
from quill import Cancelled, DeadlineExceeded, InvalidType, InvalidUsage, ResponseMetadata, RpcError, Unavailable
from quill.client import faults
from quill.client.address import Address
from quill.client.async_client import AsyncQuillClient
from quill.client.clock import CallClock
from quill.client.peer import Peer
from quill.client.retry import Throttle
from quill.client.sockets import Patience, PatientSocket
from quill.client.sync_client import QuillClient
from quill.client.transport import Call
from quill.errors import Code
from quill.proto import ListModelsResponse, LLMServiceServicer, add_LLMServiceServicer_to_server
from quill.server.server import Server
from support.processes import first_line

SERVICE = "shaky.v1.Shaky"
PUSHBACK = "grpc-retry-pushback-ms"


@pytest.fixture(params=["connect", "grpc", "grpc-web"])
def protocol(request):
    return request.param


class Shaky:
    """Fails as it is told, call by call, and then answers."""

    def __init__(self):
        self.failures = []
        self.calls = 0
        self.metadata = []

    async def unary(self, request, context):
        self._begin(context)
        return b"well " + request

    async def stream(self, request, context):
        self._begin(context)
        yield b"first"
        if request == b"break":
            raise refusal(1)
        yield b"second"

    async def join(self, requests, context):
        got = [request async for request in requests]
        self._begin(context)
        return b",".join(got)

    def _begin(self, context):
        self.calls += 1
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failures:
            raise self.failures.pop(0)


def refusal(pushback_ms):
    """What a servicer raises that has not begun."""
    return Unavailable("not now", trailers=[(PUSHBACK, str(pushback_ms))])


def add_to(server, shaky):
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(shaky.unary),
        "Stream": grpc.unary_stream_rpc_method_handler(shaky.stream),
        "Join": grpc.stream_unary_rpc_method_handler(shaky.join),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@contextlib.contextmanager
def serving(host, **addresses):
    """A server of the shaky service on the host's loop."""
    shaky = Shaky()

    async def start():
        server = Server(**({"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"} | addresses))
        add_to(server, shaky)
        await server.start()
        return server

    shaky.server = host.run(start())
    try:
        yield shaky
    finally:
        host.run(shaky.server.stop(0))


@pytest.fixture
def shaky(host):
    with serving(host) as shaky:
        yield shaky


@pytest.fixture
def connect(drive, protocol):
    """Makes a client of the protocol to a port."""

    def make(port, **options):
        scheme = "grpc" if protocol == "grpc" else "http"
        return drive(f"{scheme}://127.0.0.1:{port}", protocol=protocol, **options)

    return make


def port_of(server, protocol):
    return int((server.grpc_address if protocol == "grpc" else server.http_url).rpartition(":")[2])


@pytest.fixture
def client(connect, shaky, protocol):
    return connect(port_of(shaky.server, protocol))


@pytest.fixture(params=["unary", "stream"])
def how(request):
    """Calls the service in one of two ways; the replies."""
    if request.param == "unary":
        return lambda client, **options: [client.call(SERVICE, "Unary", b"", **options)]
    return lambda client, **options: client.stream(SERVICE, "Stream", b"", **options)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def late(host, port, protocol, shaky, after_s):
    """A server that starts after a while, in the host's loop; what stops it."""

    async def start():
        await asyncio.sleep(after_s)
        own = {"grpc": f"127.0.0.1:{port}", "http": None} if protocol == "grpc" else {"http": f"127.0.0.1:{port}"}
        server = Server(**({"grpc": None} | own))
        add_to(server, shaky)
        await server.start()
        return server

    return asyncio.run_coroutine_threadsafe(start(), host._loop)


def test_a_server_that_starts_late_is_waited_for(host, connect, protocol, how):
    port, shaky, told = free_port(), Shaky(), ResponseMetadata()
    starting = late(host, port, protocol, shaky, 0.3)
    try:
        assert how(connect(port), response=told)
        assert shaky.calls == 1
        assert told.attempts > 1
    finally:
        host.run(starting.result(LIMIT_S).stop(0))


def test_a_server_that_restarts_is_waited_for(host, connect, protocol, how):
    with serving(host) as before:
        port = port_of(before.server, protocol)
        client = connect(port)
        how(client)
    shaky = Shaky()
    starting = late(host, port, protocol, shaky, 0.3)
    try:
        assert how(client)
        assert (before.calls, shaky.calls) == (1, 1)
    finally:
        host.run(starting.result(LIMIT_S).stop(0))


def test_calls_in_many_threads_wait_for_a_server_together(host, protocol):
    port, shaky, replies = free_port(), Shaky(), []
    scheme = "grpc" if protocol == "grpc" else "http"
    with QuillClient(f"{scheme}://127.0.0.1:{port}", protocol=protocol) as client:
        threads = [
            threading.Thread(target=lambda: replies.append(client.call(SERVICE, "Unary", b"x"))) for _ in range(8)
        ]
        starting = late(host, port, protocol, shaky, 0.2)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        host.run(starting.result(LIMIT_S).stop(0))
    assert replies == [b"well x"] * 8
    assert shaky.calls == 8


def test_a_closed_port_is_tried_five_times_and_says_so(connect, how):
    port, told = free_port(), ResponseMetadata()
    with pytest.raises(Unavailable, match=rf"cannot reach 127.0.0.1:{port}: connection refused \(5 attempts in \d+ ms"):
        how(connect(port), response=told)
    assert told.attempts == 5


def test_one_attempt_switches_retries_off(connect, how, shaky, protocol):
    told = ResponseMetadata()
    shaky.failures = [refusal(0)]
    with pytest.raises(Unavailable, match=r"^UNAVAILABLE: not now$"):
        how(connect(port_of(shaky.server, protocol), max_attempts=1), response=told)
    assert (shaky.calls, told.attempts) == (1, 1)


def test_a_stream_says_itself_how_often_it_may_be_sent(client, shaky):
    shaky.failures = [refusal(0)] * 3
    told = ResponseMetadata()
    with pytest.raises(Unavailable, match=r"not now"):
        client.stream(SERVICE, "Stream", b"", max_attempts=2, response=told)
    assert (shaky.calls, told.attempts) == (2, 2)


@pytest.mark.parametrize(
    ("value", "error"), [(0, InvalidUsage), (6, InvalidUsage), (True, InvalidType), ("3", InvalidType)]
)
def test_attempts_are_a_number_from_one_to_five(client, value, error):
    with pytest.raises(error, match="max_attempts"):
        QuillClient("http://localhost:1", max_attempts=value)
    with pytest.raises(error, match="max_attempts"):
        client.stream(SERVICE, "Stream", b"", max_attempts=value)


def test_a_refusal_that_says_so_is_sent_again(client, how, shaky):
    shaky.failures = [refusal(5), refusal(5)]
    told = ResponseMetadata()
    assert how(client, response=told)
    assert (shaky.calls, told.attempts) == (3, 3)
    assert PUSHBACK not in dict(told.trailers)


def test_the_pushback_is_obeyed(client, how, shaky):
    shaky.failures = [refusal(600)]
    start = time.monotonic()
    assert how(client)
    assert time.monotonic() - start >= 0.6


def test_a_handler_that_ran_and_failed_is_never_run_twice(client, how, shaky):
    shaky.failures = [Unavailable("upstream is gone")] * 2
    with pytest.raises(Unavailable, match=r"^UNAVAILABLE: upstream is gone$"):
        how(client)
    assert shaky.calls == 1


@pytest.mark.parametrize("pushback", ["-1", "soon", ""])
def test_a_pushback_that_is_no_time_forbids_a_retry(client, how, shaky, pushback):
    shaky.failures = [Unavailable("no", trailers=[(PUSHBACK, pushback)])] * 2
    with pytest.raises(Unavailable, match="no"):
        how(client)
    assert shaky.calls == 1


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.INTERNAL])
def test_other_codes_are_told_and_not_retried(client, how, shaky, code):
    shaky.failures = [RpcError.of(code, "no", trailers=[(PUSHBACK, "1")])] * 2
    with pytest.raises(RpcError) as caught:
        how(client)
    assert (caught.value.code, shaky.calls) == (code, 1)


def test_a_gateway_that_cannot_connect_is_not_taken_for_our_own_failure(client, how, shaky, protocol):
    port = port_of(shaky.server, protocol)
    text = f"failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:{port}: Connection refused"
    shaky.failures = [Unavailable(text)] * 2
    with pytest.raises(Unavailable) as caught:
        how(client)
    assert (caught.value.message, shaky.calls) == (text, 1)


def test_a_stream_is_not_sent_again_after_its_first_message(client, shaky):
    received = []
    with pytest.raises(Unavailable, match=r"^UNAVAILABLE: not now$"):
        client.stream(SERVICE, "Stream", b"break", received=received)
    assert (received, shaky.calls) == ([b"first"], 1)


def test_a_method_without_side_effects_may_run_twice(host, connect, protocol):
    class Models(LLMServiceServicer):
        calls = 0

        async def ListModels(self, request, context):  # noqa: N802 - the name of the method
            self.calls += 1
            if self.calls < 3:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "try me again")
            return ListModelsResponse()

        async def CancelGenerate(self, request, context):  # noqa: N802 - the name of the method
            self.calls += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "ran")

    async def start():
        server = Server("127.0.0.1:0", "127.0.0.1:0")
        add_LLMServiceServicer_to_server(models, server)
        await server.start()
        return server

    models = Models()
    server = host.run(start())
    try:
        client = connect(port_of(server, protocol))
        assert client.models() == []
        assert models.calls == 3
        with pytest.raises(Unavailable, match=r"ran$"):
            client.cancel("some-run")
        assert models.calls == 4
    finally:
        host.run(server.stop(0))


def test_a_list_of_requests_is_sent_again(client, shaky):
    shaky.failures = [refusal(1)]
    assert client.stream(SERVICE, "Join", [b"a", b"b"]) == [b"a,b"]
    assert shaky.calls == 2


def test_an_iterator_that_was_read_is_not(client, shaky):
    shaky.failures = [refusal(1)]
    with pytest.raises(Unavailable, match=r"not now$"):
        client.stream(SERVICE, "Join", iter([b"a", b"b"]))
    assert shaky.calls == 1


def test_a_retry_that_would_come_too_late_is_not_waited_for(connect, how):
    start = time.monotonic()
    expected = r"refused \([23] attempts in \d+ ms; the next would come after its timeout of 400 ms\)"
    with pytest.raises(Unavailable, match=expected):
        how(connect(free_port()), timeout_ms=400)
    assert time.monotonic() - start < 2


def test_the_deadline_covers_all_attempts(host, drive, protocol):
    """A peer that refuses once and then says nothing; grpc's own is a servicer."""
    asked = []

    async def unary(request, context):
        asked.append(context.time_remaining())
        if len(asked) == 1:
            raise refusal(200)
        await asyncio.Event().wait()

    async def start():
        server = Server("127.0.0.1:0", "127.0.0.1:0")
        handlers = {"Unary": grpc.unary_unary_rpc_method_handler(unary)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        await server.start()
        return server

    server = host.run(start())
    try:
        scheme = "grpc" if protocol == "grpc" else "http"
        client = drive(f"{scheme}://127.0.0.1:{port_of(server, protocol)}", protocol=protocol)
        start_s = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"timeout of 800 ms \(2 attempts in \d+ ms\)"):
            client.call(SERVICE, "Unary", b"", timeout_ms=800)
        assert time.monotonic() - start_s < 4
        assert asked[1] < asked[0] - 0.15, "the server was told of time that had gone"
    finally:
        host.run(server.stop(0))


def test_a_client_whose_calls_fail_stops_retrying(client, how, shaky):
    calls = 20
    shaky.failures = [refusal(0) for _ in range(1000)]
    messages = []
    for _ in range(calls):
        with pytest.raises(Unavailable) as caught:
            how(client)
        messages.append(caught.value.message)
    failed_with_retries = Throttle.MAX_TOKENS // 2
    assert shaky.calls == failed_with_retries + calls - failed_with_retries // 5
    assert messages[0].startswith("not now (5 attempts")
    assert messages[-1] == "not now"


def test_successes_bring_retries_back():
    throttle = Throttle()
    for _ in range(60):
        throttle.failed()
    assert not throttle.allows
    for _ in range(101):
        throttle.succeeded()
    assert throttle.allows


async def test_a_server_that_stops_refuses_calls_before_they_run(host):
    """Other gRPC clients are told in their own terms, too."""
    with serving(host) as shaky:
        shaky.server._calls.close()
        async with grpc.aio.insecure_channel(shaky.server.grpc_address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"/{SERVICE}/Unary")(b"")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(caught.value.trailing_metadata())[PUSHBACK] == "250"
    assert shaky.calls == 0


def test_a_call_that_meets_the_end_of_a_server_goes_to_its_successor(client, how, host, shaky):
    calls = shaky.server._calls
    calls.close()
    host._loop.call_soon_threadsafe(host._loop.call_later, 0.1, lambda: setattr(calls, "_is_closing", False))
    assert how(client)
    assert shaky.calls == 1


@pytest.mark.parametrize("web", [False, True])
def test_http_peers_are_told_the_number_of_the_attempt(host, drive, web):
    heads = []

    async def refuse(reader, writer):
        heads.append((await read_request(reader))[0].lower())
        writer.write(answer("503 Service Unavailable", [f"{PUSHBACK}: 1"]))
        await writer.drain()

    with host.tcp(refuse) as port, pytest.raises(Unavailable, match=r"HTTP 503.*5 attempts"):
        drive(f"http://127.0.0.1:{port}", protocol="grpc-web" if web else "connect").call(SERVICE, "Unary", b"")
    found = [re.search(rb"grpc-previous-rpc-attempts: (\d+)", head) for head in heads]
    assert [match and int(match[1]) for match in found] == [None, 1, 2, 3, 4]


@pytest.mark.parametrize("web", [False, True])
def test_an_http_request_that_a_peer_has_read_is_never_sent_twice(host, drive, how, web):
    heads = []

    async def hang_up(reader, writer):
        heads.append(await read_request(reader))

    with host.tcp(hang_up) as port, pytest.raises(Unavailable, match=r"lost before the call ended"):
        how(drive(f"http://127.0.0.1:{port}", protocol="grpc-web" if web else "connect"))
    assert len(heads) == 1


def test_a_connection_that_breaks_proves_something_only_until_something_is_written():
    address = Address.parse("http://127.0.0.1:80")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        peer, _ = listener.accept()
        unsent, sent = (Patience(CallClock(Call(service="", method=""), time.monotonic)) for _ in range(2))
        patient = PatientSocket(sock, Peer(address))
        assert patient.send(memoryview(b"POST"), sent) == 4
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # resets the connection
        select.select([sock], [], [], LIMIT_S)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            patient.send(memoryview(b"POST"), unsent)
    assert faults.did_not_run(unsent.judge(faults.lost(address)))
    assert not faults.did_not_run(sent.judge(faults.lost(address)))


# HTTP/2 (RFC 9113): a frame has nine bytes of head; types and flags by number.
_HEADERS, _SETTINGS, _GOAWAY = 1, 4, 7


def _frame(kind, stream=0, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + struct.pack(">I", stream) + payload


async def _streams(reader):
    """The numbers of the streams that a client opens."""
    await reader.readexactly(24)
    while True:
        head = await reader.readexactly(9)
        await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == _HEADERS:
            yield int.from_bytes(head[5:], "big")


def test_a_grpc_peer_that_hangs_up_at_once_is_asked_again(host, drive, how):
    connections = []

    async def hang_up(reader, writer):
        connections.append(writer)

    with host.tcp(hang_up) as port, pytest.raises(Unavailable, match=r"cannot reach .* \(5 attempts"):
        how(drive(f"grpc://127.0.0.1:{port}"))
    assert len(connections) > 1


def test_a_grpc_request_that_a_peer_has_read_is_never_sent_twice(host, drive, how):
    opened = []

    async def hang_up(reader, writer):
        writer.write(_frame(_SETTINGS))
        async for stream in _streams(reader):
            opened.append(stream)
            return

    with host.tcp(hang_up) as port, pytest.raises(Unavailable, match=r"lost before the call ended"):
        how(drive(f"grpc://127.0.0.1:{port}"))
    assert len(opened) == 1


def test_a_grpc_stream_above_a_goaway_is_sent_again_by_grpc_itself(host, drive, how):
    opened = []

    async def refuse(reader, writer):
        writer.write(_frame(_SETTINGS))
        async for stream in _streams(reader):
            opened.append(stream)
            writer.write(_frame(_GOAWAY, 0, struct.pack(">II", 0, 0)))  # the last stream that was seen, and no error

    with host.tcp(refuse) as port, pytest.raises(Unavailable):
        how(drive(f"grpc://127.0.0.1:{port}"))
    assert opened == [1, 1]


async def test_cancelling_a_task_ends_its_backoff_at_once(host, shaky, protocol):
    shaky.failures = [refusal(20_000)]
    async with async_client(shaky, protocol) as client:
        task = asyncio.create_task(client.call(SERVICE, "Unary", b""))
        await asyncio.to_thread(host.until, lambda: shaky.calls == 1)
        await asyncio.sleep(0.05)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("end", ["stream", "client"])
async def test_closing_ends_a_backoff_at_once(host, shaky, protocol, end):
    shaky.failures = [refusal(20_000)]
    async with async_client(shaky, protocol) as client:
        stream = client.stream(SERVICE, "Stream", b"")
        task = asyncio.create_task(anext(stream))
        await asyncio.to_thread(host.until, lambda: shaky.calls == 1)
        await asyncio.sleep(0.05)
        start = time.monotonic()
        await (stream.aclose() if end == "stream" else client.close())
        with pytest.raises(Cancelled):
            await task
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("end", ["stream", "client"])
def test_closing_in_another_thread_ends_a_backoff_at_once(host, shaky, protocol, end):
    shaky.failures = [refusal(20_000)]
    scheme = "grpc" if protocol == "grpc" else "http"
    with QuillClient(f"{scheme}://127.0.0.1:{port_of(shaky.server, protocol)}", protocol=protocol) as client:
        stream = client.stream(SERVICE, "Stream", b"")

        def close():
            host.until(lambda: shaky.calls == 1)
            time.sleep(0.05)
            (stream if end == "stream" else client).close()

        thread = threading.Thread(target=close)
        thread.start()
        start = time.monotonic()
        with pytest.raises(Cancelled):
            next(stream)
        thread.join()
    assert time.monotonic() - start < 5


def test_ctrl_c_ends_a_backoff_at_once(host, shaky, protocol):
    shaky.failures = [refusal(20_000)]
    scheme = "grpc" if protocol == "grpc" else "http"
    program = f"""
        from quill import QuillClient
        client = QuillClient("{scheme}://127.0.0.1:{port_of(shaky.server, protocol)}", protocol="{protocol}")
        print("ready", flush=True)
        try:
            client.call("{SERVICE}", "Unary", b"")
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        client.close()
    """
    arguments = [sys.executable, "-c", textwrap.dedent(program)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        first_line(process)
        host.until(lambda: shaky.calls == 1)
        time.sleep(0.2)  # the answer is on its way; nothing outside shows when the wait begins
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=LIMIT_S) == ("interrupted\n", "")
        assert time.monotonic() - pressed < 5
    finally:
        process.kill()


def async_client(shaky, protocol):
    scheme = "grpc" if protocol == "grpc" else "http"
    return AsyncQuillClient(f"{scheme}://127.0.0.1:{port_of(shaky.server, protocol)}", protocol=protocol)
