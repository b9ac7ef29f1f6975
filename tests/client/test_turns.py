"""A peer that is always ready takes neither its deadline nor the event loop from the caller."""

import asyncio
import contextlib
import multiprocessing
import socket
import struct
import threading

import h2.config
import h2.connection
import h2.events
import pytest

from client.harness import LIMIT_S
from quill import AsyncQuillClient, DeadlineExceeded

ENVELOPES = struct.pack(">BI", 0, 10) + b"x" * 10
TIMEOUT_MS = 300
MIN_TURNS = 3
"""Of the sixty that fit into the timeout on a machine that is idle. Without a turn there is none."""
PULLED_S = 5.0
"""How long a test goes on that nobody ends."""


def _serve(listener, talk):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_talk, args=(connection, talk), daemon=True).start()


def _talk(connection, talk):
    with contextlib.suppress(OSError):
        talk(connection)


def flood(connection):
    """Messages without end."""
    connection.recv(65536)
    connection.sendall(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/connect+proto\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    body = ENVELOPES * 4000
    while True:
        connection.sendall(b"%x\r\n%b\r\n" % (len(body), body))


def flood_body(connection):
    """The reply to a unary call, in chunks of a byte without end."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\nx\r\n" * 10_000)


def flood_http2(connection):
    """Messages without end over HTTP/2, as the client's window takes them."""
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    http.initiate_connection()
    stream = None
    while True:
        if stream is None or http.local_flow_control_window(stream) < len(ENVELOPES) * 1000:
            for event in http.receive_data(connection.recv(65536)):
                if isinstance(event, h2.events.RequestReceived):
                    stream = event.stream_id
                    fields = [(":status", "200"), ("content-type", "application/connect+proto")]
                    http.send_headers(stream, fields)
        else:
            http.send_data(stream, ENVELOPES * 1000)
        connection.sendall(http.data_to_send())


def swallow(connection):
    """Takes all that comes."""
    while connection.recv(1 << 20):
        pass


@contextlib.contextmanager
def peer(talk):
    """A server in a process of its own, which the client's loop cannot hold up. Yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(listener, talk), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        process.kill()
        process.join(LIMIT_S)
        listener.close()


@contextlib.asynccontextmanager
async def ticking():
    """Counts the turns of another task on the loop."""
    turns = []

    async def tick():
        while True:
            await asyncio.sleep(0.005)
            turns.append(None)

    task = asyncio.create_task(tick())
    try:
        yield turns
    finally:
        task.cancel()


async def read(stream):
    """Read a stream to its end, which is not to come this late."""
    end = asyncio.get_running_loop().time() + PULLED_S
    async for _ in stream:
        assert asyncio.get_running_loop().time() < end


@pytest.mark.parametrize(("talk", "http2"), [(flood, False), (flood_http2, True)])
async def test_a_stream_that_never_pauses_ends_at_its_deadline(talk, http2):
    with peer(talk) as url:
        async with AsyncQuillClient(url, http2=http2, idle_timeout_ms=None) as client, ticking() as turns:
            with pytest.raises(DeadlineExceeded):
                await read(client.stream("a.B", "C", b"", timeout_ms=TIMEOUT_MS))
    assert len(turns) >= MIN_TURNS


@pytest.mark.parametrize(("talk", "http2"), [(flood, False), (flood_http2, True)])
async def test_a_reader_of_a_stream_that_never_pauses_can_be_cancelled(talk, http2):
    with peer(talk) as url:
        async with AsyncQuillClient(url, http2=http2) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read(client.stream("a.B", "C", b"")), 0.2)


async def test_a_unary_reply_in_single_bytes_leaves_the_loop_to_others():
    with peer(flood_body) as url:
        async with AsyncQuillClient(url) as client, ticking() as turns:
            with pytest.raises(DeadlineExceeded):
                await client.call("a.B", "C", b"", timeout_ms=TIMEOUT_MS)
    assert len(turns) >= MIN_TURNS


@pytest.mark.parametrize("several", ["asynchronous", "ordinary"])
async def test_requests_that_never_pause_end_at_the_deadline(several):
    end = asyncio.get_running_loop().time() + PULLED_S
    unhindered = []

    def requests():
        while asyncio.get_running_loop().time() < end:
            yield b"x" * 100
        unhindered.append(None)

    async def asynchronous():
        for request in requests():
            yield request

    with peer(swallow) as url:
        async with AsyncQuillClient(url) as client, ticking() as turns:
            given = asynchronous() if several == "asynchronous" else requests()
            with pytest.raises(DeadlineExceeded):
                await read(client.stream("a.B", "C", given, timeout_ms=TIMEOUT_MS))
    assert unhindered == []
    assert len(turns) >= MIN_TURNS
