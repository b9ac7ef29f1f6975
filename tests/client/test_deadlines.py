"""Timeouts: which one runs out, what it says, and that a peer which trickles cannot stretch it."""

import asyncio
import json
import time

import h2.errors
import pytest

from client.harness import RAW, answer, ask, read_request
from client.peer2 import Peer2
from quill import Cancelled, DeadlineExceeded, InvalidUsage
from support.echo import SERVICE

SLACK = 5
"""A wait may take this many times its timeout on a busy machine."""


def timed(action):
    """The error of an action, which must come in time: within what it names in milliseconds, times the slack."""
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        action()
    return caught.value, time.monotonic() - started


def test_a_unary_call_ends_at_the_clients_timeout(host, protocol, drive):
    client = drive(host.url(protocol), timeout_ms=200)
    error, took_s = timed(lambda: client.call_json(SERVICE, "Echo", {"text": "hang"}))
    assert error.message == "the call did not end within its timeout of 200 ms"
    assert 0.15 < took_s < 0.2 * SLACK
    assert isinstance(error, TimeoutError)


def test_a_server_that_resets_a_call_at_its_deadline_tells_that_it_has_passed(host, drive):
    """It may be heard before the client's own clock: over gRPC the reset alone would read as CANCELLED."""

    async def reset(reader, writer):
        peer = await Peer2(reader, writer).start()
        (stream_id,) = await peer.requests()
        await asyncio.sleep(0.44)
        peer.h2.reset_stream(stream_id, 8)  # CANCEL
        await peer.rest()

    with host.tcp(reset) as port:
        client = drive(f"grpc://127.0.0.1:{port}")
        error, _ = timed(lambda: client.call("a.B", "C", b"\0", timeout_ms=500))
    assert error.message == "the call did not end within its timeout of 500 ms"


def test_a_call_may_have_its_own_timeout(host, protocol, drive):
    client = drive(host.url(protocol), timeout_ms=50)
    assert client.call(RAW, "Unary", ask(sleep_s=0.1, bytes=1), timeout_ms=10_000) == b"\0"
    error, _ = timed(lambda: drive(host.url(protocol)).call(RAW, "Unary", ask(sleep_s=5), timeout_ms=100))
    assert "100 ms" in error.message


def test_a_streams_first_message_must_come_within_the_clients_timeout(host, protocol, drive):
    client = drive(host.url(protocol), timeout_ms=200)
    error, took_s = timed(lambda: client.stream(RAW, "Stream", ask(count=0, hang=True)))
    assert error.message == "the first message did not come within 200 ms"
    assert took_s < 0.2 * SLACK


def test_a_stream_may_have_its_own_timeout_for_the_first_message(host, protocol, drive):
    client = drive(host.url(protocol), timeout_ms=200)
    asked = ask(count=1, gap_s=0.5)
    assert len(client.stream(RAW, "Stream", asked, first_message_timeout_ms=10_000)) == 1
    error, _ = timed(lambda: client.stream(RAW, "Stream", ask(hang=True, count=0), first_message_timeout_ms=100))
    assert error.message == "the first message did not come within 100 ms"
    with pytest.raises(InvalidUsage, match="first_message_timeout_ms must be from 1"):
        client.stream(RAW, "Stream", asked, first_message_timeout_ms=0)


def test_a_stream_may_last_longer_than_the_clients_timeout(host, protocol, drive):
    client = drive(host.url(protocol), timeout_ms=250)
    assert len(client.stream(RAW, "Stream", ask(count=4, gap_s=0.1))) == 4


def test_a_gap_must_not_exceed_the_idle_timeout(host, protocol, drive):
    client = drive(host.url(protocol), idle_timeout_ms=200)
    received = []
    error, took_s = timed(lambda: client.stream(RAW, "Stream", ask(count=3, hang=True), received=received))
    assert error.message == "no message came for 200 ms (idle_timeout_ms)"
    assert len(received) == 3
    assert took_s < 0.2 * SLACK


def test_gaps_below_the_idle_timeout_may_add_up(host, protocol, drive):
    client = drive(host.url(protocol), idle_timeout_ms=300)
    assert len(client.stream(RAW, "Stream", ask(count=4, gap_s=0.1))) == 4


def test_a_stream_with_a_timeout_ends_at_it(host, protocol, drive):
    client = drive(host.url(protocol))
    received = []
    error, took_s = timed(
        lambda: client.stream(RAW, "Stream", ask(count=1000, gap_s=0.05), timeout_ms=400, received=received)
    )
    assert error.message == "the call did not end within its timeout of 400 ms"
    assert received
    assert took_s < 0.4 * SLACK


def test_a_streams_own_timeout_stands_in_for_the_clients(host, protocol, drive):
    client = drive(host.url(protocol), timeout_ms=50)
    assert len(client.stream(RAW, "Stream", ask(count=1, gap_s=0.15), timeout_ms=10_000)) == 1


def test_the_time_that_the_caller_takes_is_no_gap(host, protocol, drive):
    client = drive(host.url(protocol), idle_timeout_ms=100)
    received = []

    class Slow(list):
        def append(self, message):
            time.sleep(0.15)
            super().append(message)

    received = Slow()
    client.stream(RAW, "Stream", ask(count=3), received=received)
    assert len(received) == 3


def test_the_server_is_told_the_deadline_of_a_call(host, drive):
    told = []

    async def note(reader, writer):
        head, _ = await read_request(reader)
        told.append(head.decode().lower())

    with host.tcp(note) as port:
        client = drive(f"http://127.0.0.1:{port}")
        for action in (
            lambda: client.call("a.B", "C", b"", timeout_ms=1234),
            lambda: client.stream("a.B", "C", b"", timeout_ms=4321),
            lambda: client.stream("a.B", "C", b""),
        ):
            with pytest.raises(ConnectionError):
                action()
    assert "connect-timeout-ms: 1234\r\n" in told[0]
    assert "connect-timeout-ms: 4321\r\n" in told[1]
    assert "connect-timeout-ms" not in told[2]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_body_that_trickles_cannot_stretch_the_deadline(host, drive, streaming):
    kind = "connect+proto" if streaming else "proto"

    async def trickle(reader, writer):
        await read_request(reader)
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: application/{kind}\r\ncontent-length: 9000\r\n\r\n".encode())
        while not writer.is_closing():
            writer.write(b"\0")
            await writer.drain()
            await asyncio.sleep(0.02)

    with host.tcp(trickle) as port:
        client = drive(f"http://127.0.0.1:{port}")
        call = client.stream if streaming else client.call
        # A stream of zero bytes is one of empty messages, so the total deadline is what must end it.
        _, took_s = timed(lambda: call("a.B", "C", b"", timeout_ms=300))
    assert took_s < 0.3 * SLACK


def test_a_head_that_trickles_cannot_stretch_the_deadline(host, drive):
    async def trickle(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nx-a: ")
        while not writer.is_closing():
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.02)

    with host.tcp(trickle) as port:
        _, took_s = timed(lambda: drive(f"http://127.0.0.1:{port}").call("a.B", "C", b"", timeout_ms=300))
    assert took_s < 0.3 * SLACK


def test_a_peer_that_does_not_read_cannot_stretch_the_deadline(host, drive):
    async def deaf(reader, writer):
        reader._transport.pause_reading()
        await asyncio.sleep(5)

    with host.tcp(deaf) as port:
        client = drive(f"http://127.0.0.1:{port}")
        _, took_s = timed(lambda: client.call("a.B", "C", bytes(30_000_000), timeout_ms=400))
    assert took_s < 0.4 * SLACK


def test_a_peer_that_accepts_and_says_nothing_is_a_timeout(host, protocol, drive):
    async def silent(reader, writer):
        await reader.read()

    scheme = "http" if protocol == "connect" else "grpc"
    with host.tcp(silent) as port:
        client = drive(f"{scheme}://127.0.0.1:{port}", timeout_ms=300)
        for action in (lambda: client.call("a.B", "C", b""), lambda: client.stream("a.B", "C", b"")):
            error, took_s = timed(action)
            assert "300 ms" in error.message
            assert took_s < 0.3 * SLACK


def test_a_deadline_that_the_server_keeps_reads_like_the_clients(host, drive):
    body = json.dumps({"code": "deadline_exceeded", "message": "server says"}).encode()

    async def late(reader, writer):
        await read_request(reader)
        await asyncio.sleep(0.19)
        writer.write(answer("504 X", ["content-type: application/json"], body))
        await writer.drain()

    with host.tcp(late) as port:
        client = drive(f"http://127.0.0.1:{port}")
        error, _ = timed(lambda: client.call("a.B", "C", b"", timeout_ms=200))
        assert "200 ms" in error.message
        error, _ = timed(lambda: client.call("a.B", "C", b"", timeout_ms=10_000))
        assert error.message == "server says"


@pytest.mark.parametrize(("scheme", "options"), [("grpc", {}), ("http", {"http2": True})])
def test_a_reset_at_the_deadline_is_the_deadline(host, drive, scheme, options):
    """As grpc-go ends calls whose time is up: it may be quicker than the client's own timer."""

    async def late(reader, writer):
        peer = await Peer2(reader, writer).start()
        for count in (1, 2):
            stream = (await peer.requests(count))[-1]
            await asyncio.sleep(0.17)
            peer.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            await peer.flush()
        await peer.rest()
        writer.close()

    with host.tcp(late) as port:
        client = drive(f"{scheme}://127.0.0.1:{port}", max_attempts=1, **options)
        error, _ = timed(lambda: client.call("a.B", "C", b"", timeout_ms=200))
        assert error.message == "the call did not end within its timeout of 200 ms"
        with pytest.raises(Cancelled) as caught:
            client.call("a.B", "C", b"", timeout_ms=10_000)
        assert caught.value.message == f"127.0.0.1:{port} ended the call: CANCEL (HTTP/2)"
