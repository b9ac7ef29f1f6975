"""Peers that take their replies slowly or never, send far ahead, or send what becomes much larger."""

import asyncio
import gzip
import logging
import socket
import ssl
import threading
import time

import pytest
import zstandard
from grpc._cython import cygrpc

from quill.errors import InvalidArgument
from quill.limits import Limits
from quill.server.calls import Calls
from quill.server.connect.compression import BoundedCompression, Packed
from quill.server.failure import end_call
from quill.server.tls import Tls
from support.authority import Authority
from support.http1 import Connection, enveloped, post
from support.probe import COLLECT, UNARY, Answer, Ask, serving

PROTO = "application/proto"
BIG_BYTES = 8_000_000
LIMIT_S = 60


async def big(request, context):
    return Answer(blob=bytes(BIG_BYTES))


def connected(server, tls):
    """A blocking connection that the system buffers little for."""
    peer = socket.socket()
    peer.settimeout(LIMIT_S)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    peer.connect(("127.0.0.1", int(server.http_url.rpartition(":")[2])))
    if tls is None:
        return peer
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(peer)


def call(peer):
    peer.sendall(
        f"POST {UNARY} HTTP/1.1\r\nhost: test\r\ncontent-type: {PROTO}\r\ncontent-length: 0\r\n"
        "connection: close\r\n\r\n".encode()
    )


def read_slowly(server, tls):
    """How much comes to a reader that first does nothing for longer than its connection may be idle."""
    with connected(server, tls) as peer:
        call(peer)
        size = 0
        time.sleep(0.2)
        while data := peer.recv(64 * 1024):
            size += len(data)
            time.sleep(0.02 if tls is None else 0.006)
        return size


@pytest.fixture(params=["clear", "tls"])
def tls(request, tmp_path):
    if request.param == "clear":
        return None
    cert, key = Authority().issue().write(tmp_path)
    return Tls(cert=cert, key=key)


async def test_a_slow_reader_gets_the_whole_of_a_reply_after_which_its_connection_closes(tls):
    async with serving(tls=tls, limits=Limits(connection_idle_timeout_s=1.0), unary=big) as server:
        assert await asyncio.to_thread(read_slowly, server, tls) > BIG_BYTES


async def test_a_reader_that_takes_nothing_is_hung_up_on(tls):
    async with serving(tls=tls, limits=Limits(connection_idle_timeout_s=1.0), unary=big) as server:
        with await asyncio.to_thread(connected, server, tls) as peer:
            await asyncio.to_thread(call, peer)
            connections = server._http_host._server.server_state.connections
            async with asyncio.timeout(LIMIT_S):
                while not connections:
                    await asyncio.sleep(0.01)
                while connections:
                    await asyncio.sleep(0.05)


async def test_requests_without_number_behind_one_that_runs_are_cut_off():
    left = asyncio.Event()

    async def wait(request, context):
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with serving(unary=wait) as server, await Connection.open(server.http_url) as connection:
        await connection.ask("POST", UNARY, b"", [("content-type", PROTO)])
        await connection.send(b"GET / HTTP/1.1\r\n\r\n" * 5000)  # 90 kB
        async with asyncio.timeout(LIMIT_S):
            await left.wait()


async def test_a_pipeline_that_is_answered_goes_on_for_ever():
    async with serving(unary=big) as server, await Connection.open(server.http_url) as connection:
        asked = b"GET /healthz HTTP/1.1\r\nhost: test\r\nx-filler: " + b"f" * 1000 + b"\r\n\r\n"
        await connection.send(asked * 20)
        for _ in range(400):  # 400 kB in all, with one request or more behind at all times
            await connection.send(asked)
            assert (await connection.reply()).status == 200


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
async def test_what_becomes_large_is_decoded_beside_the_loop(encoding, compress):
    threads = []

    class Watched(BoundedCompression):
        def decode(self, data, max_bytes=None):
            decoded = super().decode(data, max_bytes)
            threads.append(threading.current_thread())
            return decoded

    compression, large = Watched(encoding, Limits()), bytes(1_000_000)
    assert await compression.decompress_body(compress(large)) == large
    packed = compression.decompress(compress(large))
    assert isinstance(packed, Packed)
    assert await packed.unpack() == large
    assert threading.main_thread() not in threads
    assert compression.decompress(compress(b"small")) == b"small"
    assert threads[-1] is threading.main_thread()
    with pytest.raises(InvalidArgument):
        await Packed(compress(large)[:-4], compression).unpack()


async def test_large_compressed_requests_are_read_in_bodies_and_in_streams():
    async def size(request, context):
        return Answer(count=len(request.blob))

    async def sizes(requests, context):
        return Answer(count=sum([len(request.blob) async for request in requests]))

    message = gzip.compress(Ask(blob=bytes(1_000_000)).SerializeToString())
    async with serving(unary=size, collect=sizes) as server:
        reply = await post(server.http_url, UNARY, PROTO, message, [("content-encoding", "gzip")])
        assert Answer.FromString(reply.body).count == 1_000_000
        kind, headers = "application/connect+proto", [("connect-content-encoding", "gzip")]
        reply = await post(server.http_url, COLLECT, kind, enveloped(message, 1) * 3, headers)
        assert Answer.FromString(reply.messages()[0]).count == 3_000_000
        reply = await post(server.http_url, COLLECT, kind, enveloped(message[:-4], 1), headers)
        assert reply.end()["error"]["code"] == "invalid_argument"
        web = "application/grpc-web+proto"
        reply = await post(server.http_url, UNARY, web, enveloped(message, 1), [("grpc-encoding", "gzip")])
        assert Answer.FromString(reply.messages()[0]).count == 1_000_000


async def test_a_peer_that_hangs_up_on_a_writing_handler_is_no_error_for_the_log(caplog):
    caplog.set_level(logging.INFO)
    error = cygrpc.ExecuteBatchError("the peer is gone")
    with pytest.raises(asyncio.CancelledError):  # grpc.aio logs the other with its stack
        await end_call(None, error, asyncio.current_task(), Calls(Limits()))
    assert caplog.records == []
