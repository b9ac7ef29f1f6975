"""Starting, health, draining and stopping, on both ports at once."""

import asyncio
import gc
import os
import socket
import threading
import time

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quill.errors import InvalidUsage
from quill.server.server import Server
from support.http1 import Connection, ask, enveloped, post
from support.probe import STREAM, UNARY, Answer, Ask, Stub, outcome, register, serving

PROTO = "application/connect+proto"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def echo(request, context):
    return Answer(text=request.text)


class Hang:
    """A stream that sends one message and then waits; it can be let go, and says how it ended."""

    def __init__(self, seconds_to_clean=0.0):
        self.seconds_to_clean = seconds_to_clean
        self.running = asyncio.Semaphore(0)
        self.let_go = asyncio.Event()
        self.cleaned = 0

    async def stream(self, request, context):
        try:
            yield Answer(text="first")
            self.running.release()
            await self.let_go.wait()
            yield Answer(text="last")
        finally:
            await asyncio.sleep(self.seconds_to_clean)
            self.cleaned += 1


async def open_http_stream(server):
    connection = await Connection.open(server.http_url)
    await connection.ask("POST", STREAM, enveloped(b""), [("content-type", PROTO)])
    await connection.head()
    await connection.chunk()
    return connection


async def test_a_server_is_a_grpc_aio_server():
    assert isinstance(Server(), grpc.aio.Server)


async def test_free_ports_are_reported_after_the_start():
    server = Server("localhost:0", "[::1]:0")
    assert (server.grpc_address, server.http_url) == (None, None)
    async with server:
        host, _, port = server.grpc_address.rpartition(":")
        assert host == "localhost"
        assert int(port) > 0
        assert server.http_url.startswith("http://[::1]:")
        assert (await ask(server.http_url, "GET", "/healthz")).status == 200


async def test_calls_over_ipv6_know_their_peer():
    async def peer(request, context):
        return Answer(text=context.peer())

    server = Server(None, "[::1]:0")
    register(server, unary=peer)
    async with server:
        reply = await post(server.http_url, UNARY, "application/json", b"{}")
        assert reply.json()["text"].startswith("ipv6:[::1]:")


async def test_either_port_can_be_left_out():
    for grpc_address, http_address in (("127.0.0.1:0", None), (None, "127.0.0.1:0")):
        server = Server(grpc_address, http_address)
        register(server, unary=echo)
        async with server:
            assert (server.grpc_address is None) == (grpc_address is None)
            assert (server.http_url is None) == (http_address is None)
    with pytest.raises(InvalidUsage, match="needs a port"):
        await Server(None, None).start()


async def test_further_grpc_ports_open_before_the_start():
    server = Server(None, None)
    register(server, unary=echo)
    first, second = server.add_insecure_port("127.0.0.1:0"), server.add_insecure_port("127.0.0.1:0")
    async with server:
        assert server.grpc_address == f"127.0.0.1:{first}"
        for port in (first, second):
            async with Stub(f"127.0.0.1:{port}") as stub:
                assert (await stub.unary(Ask(text="hi"))).text == "hi"


async def test_a_unix_socket_serves_grpc(tmp_path):
    server = Server(f"unix:{tmp_path}/socket", None)
    register(server, unary=echo)
    async with server:
        assert server.grpc_address == f"unix:{tmp_path}/socket"
        async with Stub(server.grpc_address) as stub:
            assert (await stub.unary(Ask(text="hi"))).text == "hi"


async def test_a_port_in_use_is_said_by_its_address_and_leaves_the_other_closed():
    async with serving(unary=echo) as first:
        http_address = first.http_url.removeprefix("http://")
        for grpc_address, http in ((first.grpc_address, "127.0.0.1:0"), ("127.0.0.1:0", http_address)):
            taken = grpc_address if grpc_address == first.grpc_address else http
            with pytest.raises(InvalidUsage, match=taken):
                await Server(grpc_address, http).start()
        assert (await ask(first.http_url, "GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    "address",
    ["", "nonsense", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536", "192.0.2.1:0", "a..b:80", f"{'a' * 300}:80"],
)
async def test_an_address_that_cannot_be_listened_on_is_refused(address):
    with pytest.raises(InvalidUsage, match="HTTP"):
        await Server(None, address).start()


async def test_what_comes_too_late_is_refused():
    async with serving(unary=echo) as server:
        for late in (
            lambda: register(server, stream=echo),
            lambda: server.add_insecure_port("127.0.0.1:0"),
        ):
            with pytest.raises(InvalidUsage, match="was started"):
                late()
        with pytest.raises(InvalidUsage, match="was started"):
            await server.start()


def test_opening_a_port_outside_the_loop_is_refused():
    with pytest.raises(InvalidUsage, match="coroutine"):
        Server(None, None).add_insecure_port("127.0.0.1:0")


async def test_health_is_served_on_both_ports_for_the_server_and_each_service():
    async with (
        serving(unary=echo) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "probe.v1.Probe", "grpc.health.v1.Health"):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
            reply = await post(server.http_url, CHECK, "application/json", b'{"service": "%s"}' % service.encode())
            assert reply.json() == {"status": "SERVING"}
        for other in ("other", "x" * 1_000_000):
            error = await outcome(stub.Check(health_pb2.HealthCheckRequest(service=other)))
            assert error.code() is grpc.StatusCode.NOT_FOUND
        for page in ("/healthz", "/readyz"):
            reply = await ask(server.http_url, "GET", page)
            assert (reply.status, reply["content-type"], reply.json()) == (
                200,
                "application/json",
                {"status": "SERVING"},
            )


async def test_draining_tells_balancers_and_goes_on_answering():
    async with (
        serving(unary=echo) as server,
        Stub(server.grpc_address) as stub,
        await Connection.open(server.http_url) as connection,
    ):
        health = health_pb2_grpc.HealthStub(stub.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        await connection.ask(
            "POST", WATCH, enveloped(b'{"service":"probe.v1.Probe"}'), [("content-type", PROTO[:-5] + "json")]
        )
        await connection.head()
        assert await connection.chunk() == enveloped(b'{"status":"SERVING"}')
        server.drain()
        async with asyncio.timeout(20):
            assert (await watch.read()).status == NOT_SERVING
        assert await connection.chunk() == enveloped(b'{"status":"NOT_SERVING"}')
        assert (await health.Check(health_pb2.HealthCheckRequest(service="probe.v1.Probe"))).status == NOT_SERVING
        assert (await ask(server.http_url, "GET", "/readyz")).status == 503
        assert (await ask(server.http_url, "GET", "/readyz")).json() == {"status": "NOT_SERVING"}
        assert (await ask(server.http_url, "GET", "/healthz")).status == 200
        assert (await stub.unary(Ask(text="still"))).text == "still"
        assert (await post(server.http_url, UNARY, "application/json", b"{}")).status == 200


async def test_health_follows_what_is_behind_the_servicers_until_the_server_drains():
    async with serving(unary=echo) as server, Stub(server.grpc_address) as stub:
        health = health_pb2_grpc.HealthStub(stub.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        for serving_now, page in ((False, 503), (True, 200)):
            server.set_serving(serving_now)
            async with asyncio.timeout(20):
                assert (await watch.read()).status == (SERVING if serving_now else NOT_SERVING)
            for service in ("", "probe.v1.Probe"):
                status = (await health.Check(health_pb2.HealthCheckRequest(service=service))).status
                assert status == (SERVING if serving_now else NOT_SERVING)
            assert (await ask(server.http_url, "GET", "/readyz")).status == page
            assert (await ask(server.http_url, "GET", "/healthz")).status == 200
            assert (await stub.unary(Ask(text="still"))).text == "still"
        server.drain()
        server.set_serving(True)
        assert (await ask(server.http_url, "GET", "/readyz")).status == 503


async def test_a_watcher_of_an_unknown_service_is_told_so():
    async with serving(unary=echo) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="other"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_a_health_servicer_of_the_users_own_is_left_alone():
    class Mine(health_pb2_grpc.HealthServicer):
        async def Check(self, request, context):  # noqa: N802 - the name in the contract
            return health_pb2.HealthCheckResponse(status=NOT_SERVING)

    server = Server("127.0.0.1:0", "127.0.0.1:0")
    health_pb2_grpc.add_HealthServicer_to_server(Mine(), server)
    async with server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert reply.status == NOT_SERVING


async def test_stopping_waits_for_streams_that_end_within_the_grace():
    hang = Hang()
    async with serving(unary=echo, stream=hang.stream) as server, Stub(server.grpc_address) as stub:
        call = stub.stream(Ask())
        await call.read()
        connection = await open_http_stream(server)
        stopping = asyncio.create_task(server.stop(60))
        await asyncio.sleep(0.1)
        assert not stopping.done()
        with pytest.raises(OSError, match=r"."):
            await Connection.open(server.http_url)
        hang.let_go.set()
        assert (await call.read()).text == "last"
        assert await call.read() is grpc.aio.EOF
        assert await connection.chunk() == enveloped(Answer(text="last").SerializeToString())
        assert await connection.chunk() == enveloped(b"{}", 2)
        async with asyncio.timeout(10):
            await stopping
        await connection.__aexit__()
    assert hang.cleaned == 2


async def test_streams_that_outlast_the_grace_end_as_unavailable_after_their_cleanup():
    hang = Hang(seconds_to_clean=0.2)
    async with serving(stream=hang.stream) as server, Stub(server.grpc_address) as stub:
        call = stub.stream(Ask())
        await call.read()
        connection = await open_http_stream(server)
        began = time.monotonic()
        await server.stop(0.3)
        assert 0.4 < time.monotonic() - began < 5
        assert hang.cleaned == 2, "stop() returned before the handlers had cleaned up"
        error = await outcome(_rest(call))
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        end = await connection.chunk()
        assert b'"code": "unavailable"' in end
        assert await connection.reader.read() == b"0\r\n\r\n"
        await connection.__aexit__()


async def test_a_stop_during_the_cleanup_of_an_aborted_call_leaves_its_status(caplog):
    aborted = asyncio.Semaphore(0)

    async def stream(request, context):
        yield Answer()
        try:
            await context.abort(grpc.StatusCode.ABORTED, "own words")
        finally:
            aborted.release()
            await asyncio.Event().wait()

    async with serving(stream=stream) as server, Stub(server.grpc_address) as stub:
        call = stub.stream(Ask())
        connection = await open_http_stream(server)
        for _ in range(2):
            await aborted.acquire()
        await server.stop(0)
        error = await outcome(_rest(call))
        assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "own words")
        assert b'"code": "aborted"' in await connection.chunk()
        await connection.__aexit__()
    assert [entry for entry in caplog.records if entry.levelname == "ERROR"] == []


async def _rest(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_handler_that_swallows_cancellation_does_not_hold_the_stop(caplog):
    release = asyncio.Event()

    async def stubborn(request, context):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return Answer()

    async with serving(unary=stubborn) as server, Stub(server.grpc_address) as stub:
        call = asyncio.ensure_future(outcome(stub.unary(Ask())))
        connection = await Connection.open(server.http_url)
        await connection.ask("POST", UNARY, b"", [("content-type", "application/proto")])
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await server.stop(None)
        assert time.monotonic() - began < 10
        assert "2 calls did not end" in caplog.text
        release.set()
        await call
        await connection.__aexit__()
        await asyncio.sleep(0.1)


async def test_a_second_stop_can_be_shorter():
    hang = Hang()
    async with serving(stream=hang.stream) as server, Stub(server.grpc_address) as stub:
        call = stub.stream(Ask())
        await call.read()
        patient = asyncio.create_task(server.stop(60))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            await server.stop(0.1)
            await patient


async def test_a_caller_that_gives_up_does_not_stop_the_stopping():
    hang = Hang()
    async with serving(stream=hang.stream) as server, Stub(server.grpc_address) as stub:
        await stub.stream(Ask()).read()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await server.stop(0.5)
        assert await server.wait_for_termination(20) is False


async def test_watchers_of_health_do_not_use_up_the_grace():
    async with serving(unary=echo) as server, Stub(server.grpc_address) as stub:
        watch = health_pb2_grpc.HealthStub(stub.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        began = time.monotonic()
        await server.stop(60)
        assert time.monotonic() - began < 10
        assert (await watch.read()).status == NOT_SERVING


async def test_idle_connections_do_not_use_up_the_grace():
    async with (
        serving(unary=echo) as server,
        Stub(server.grpc_address) as stub,
        await Connection.open(server.http_url) as kept,
        await Connection.open(server.http_url) as silent,
    ):
        await stub.unary(Ask())
        await kept.ask("GET", "/healthz")
        await kept.reply()
        began = time.monotonic()
        await server.stop(60)
        assert time.monotonic() - began < 10
        assert await silent.reader.read() == b""


async def test_a_reader_that_stalls_does_not_hold_the_stop():
    async def flood(request, context):
        while True:
            yield Answer(blob=bytes(100_000))

    async with serving(stream=flood) as server:
        connection = await open_http_stream(server)
        connection.reader._transport.pause_reading()
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await server.stop(0.1)
        assert time.monotonic() - began < 10
        await connection.__aexit__()


async def test_waiting_for_termination_ends_with_the_server_or_the_time():
    async with serving(unary=echo) as server:
        assert await server.wait_for_termination(0.01) is True
        waiting = asyncio.create_task(server.wait_for_termination())
        await server.stop(0)
        assert await waiting is False
    await server.stop(None)


async def test_stopping_a_server_that_was_not_started_is_nothing():
    await Server().stop(1)


async def test_nothing_is_left_after_a_stop():
    async def round_trip():
        hang = Hang()

        def blocking(request, context):
            return Answer()

        async with serving(unary=blocking, stream=hang.stream) as server, Stub(server.grpc_address) as stub:
            await stub.unary(Ask())
            await post(server.http_url, UNARY, "application/proto")
            await stub.stream(Ask()).read()
            connection = await open_http_stream(server)
            await server.stop(0.05)
            await connection.__aexit__()
            with pytest.raises(InvalidUsage):
                await Server("127.0.0.1:0", server.grpc_address.replace(":", ":x")).start()
            with pytest.raises(InvalidUsage):
                await Server("127.0.0.1:1:1", "127.0.0.1:0").start()

    def counts():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), threading.active_count()

    await round_trip()  # what grpcio keeps for the process is there from here on
    async with asyncio.timeout(30):
        await asyncio.sleep(0.2)
        before = counts()
        for _ in range(5):
            await round_trip()
        while any(now > then for now, then in zip(counts(), before, strict=True)):
            await asyncio.sleep(0.1)


async def test_thousands_of_calls_at_once_all_end_well():
    async def slow(request, context):
        await asyncio.sleep(0.05)
        return Answer(count=request.count)

    async with serving(unary=slow) as server, Stub(server.grpc_address) as stub:
        replies = await asyncio.gather(*(outcome(stub.unary(Ask(count=number))) for number in range(2000)))
        assert [reply.count for reply in replies] == list(range(2000))


async def goaway_after_pings(address, pings=8):
    """Whether a gRPC server sends a client away that pings every 50 ms; HTTP/2 frames by hand (RFC 9113)."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    kinds = set()
    try:
        async with asyncio.timeout(20):
            acknowledged = 0
            writer.write(bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8))
            while acknowledged < pings and 7 not in kinds:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                kinds.add(head[3])
                if head[3] == 6 and head[4] & 1:
                    acknowledged += 1
                    await asyncio.sleep(0.05)
                    writer.write(bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8))
    except (asyncio.IncompleteReadError, ConnectionError):
        return True
    finally:
        writer.transport.abort()
    return 7 in kinds


async def test_clients_may_ping_as_often_as_the_server_permits_and_no_more():
    async with serving(unary=echo) as server:
        assert await goaway_after_pings(server.grpc_address)
    interval = ("grpc.http2.min_ping_interval_without_data_ms", 10)
    server = Server("127.0.0.1:0", None, options=[interval])
    async with server:
        assert not await goaway_after_pings(server.grpc_address)


async def test_an_upload_that_never_ends_does_not_hold_the_stop_and_is_no_error(caplog):
    async with serving(unary=echo) as server:
        connection = await Connection.open(server.http_url)
        headers = [("content-type", "application/proto"), ("content-length", "1000")]
        await connection.ask("POST", UNARY, b"only a part", headers)
        await ask(server.http_url, "GET", "/healthz")
        began = time.monotonic()
        await server.stop(0.1)
        assert time.monotonic() - began < 10
        await connection.__aexit__()
    assert [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []


async def test_ports_that_were_opened_before_a_failed_start_are_free_again():
    server = Server(None, "nonsense")
    port = server.add_insecure_port("127.0.0.1:0")
    with pytest.raises(InvalidUsage):
        await server.start()
    again = Server(f"127.0.0.1:{port}", None)
    async with again:
        assert again.grpc_address == f"127.0.0.1:{port}"


async def test_a_port_of_another_grpc_server_is_not_shared():
    other = grpc.aio.server()
    port = other.add_insecure_port("127.0.0.1:0")
    await other.start()
    try:
        with pytest.raises(InvalidUsage, match=str(port)):
            await Server(f"127.0.0.1:{port}", None).start()
    finally:
        await other.stop(None)


async def test_the_default_of_signals_is_untouched():
    import signal

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    async with serving(unary=echo):
        assert {number: signal.getsignal(number) for number in before} == before


async def test_a_socket_that_is_bound_but_not_listening_blocks_the_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidUsage, match="in use"):
            await Server(None, f"127.0.0.1:{taken.getsockname()[1]}").start()
