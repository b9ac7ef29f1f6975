"""Large replies of the asyncio client are read in a thread, while the loop goes on."""

import json
import threading

import pytest
import zstandard

from client.harness import answer, read_request
from client.test_http_async import tcp
from quill import AsyncQuillClient, Internal
from quill.client import exchange
from quill.wire import compression
from support.echo import SERVICE

TEXT = {"text": "x" * 100_000}
SMALL = {"text": "x"}


@pytest.fixture
def watch(monkeypatch):
    """Notes in which threads functions run."""
    seen = []

    def spy(owner, *names):
        for name in names:
            monkeypatch.setattr(owner, name, noting(getattr(owner, name)))
        return seen

    def noting(work):
        def noted(*arguments, **options):
            seen.append(threading.current_thread())
            return work(*arguments, **options)

        return noted

    return spy


@pytest.fixture
def threads(watch):
    """Where JSON is read."""
    watch(exchange, "_from_document")
    return watch(exchange.Method, "_to_dict", "_to_json")


@pytest.mark.parametrize("protocol", ["connect", "grpc", "grpc-web"])
async def test_large_json_is_read_in_a_thread_and_small_json_is_not(host, protocol, threads):
    async with AsyncQuillClient(host.url("grpc" if protocol == "grpc" else "connect"), protocol=protocol) as client:
        here = threading.current_thread()
        assert await client.call_json(SERVICE, "Echo", SMALL) == SMALL
        assert threads == [here]
        assert await client.call_json(SERVICE, "Echo", TEXT) == TEXT
        assert len(threads) == 2
        assert threads[1] is not here
        document = json.dumps(TEXT).encode()
        assert json.loads(await client.call(SERVICE, "Echo", document)) == TEXT
        assert here not in threads[1:]


async def test_large_json_that_is_none_is_refused(threads):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(answer("200 OK", ["content-type: application/json"], b'{"a": ' + b"[" * 100_000))

    async with tcp(serve) as port, AsyncQuillClient(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(Internal, match="no JSON object"):
            await client.call_json("a.B", "C", {})


async def test_large_json_means_what_small_json_means(threads):
    values = {"int": 2**80, "float": -1.5e300, "twice": 1, "list": [None, True, "é", {}]}
    text = json.dumps({**values, "pad": "x" * 100_000})[:-1] + ', "twice": 2}'

    async def serve(reader, writer):
        await read_request(reader)
        writer.write(answer("200 OK", ["content-type: application/json"], text.encode()))

    async with tcp(serve) as port, AsyncQuillClient(f"http://127.0.0.1:{port}") as client:
        assert await client.call_json("a.B", "C", {}) == json.loads(text)


@pytest.mark.parametrize("streaming", [False, True])
async def test_large_compressed_replies_are_decompressed_in_a_thread(streaming, watch):
    threads = watch(compression, "decompress")
    large = bytes(index * 7919 % 251 ^ index >> 8 & 255 for index in range(400_000))
    messages = [b"small", large, b"small"] if streaming else [large]
    packed = [zstandard.compress(message, -50) for message in messages]
    assert any(len(message) > 64 * 1024 for message in packed)

    async def serve(reader, writer):
        await read_request(reader)
        if streaming:
            body = b"".join(b"\1" + len(data).to_bytes(4, "big") + data for data in packed) + b"\2\0\0\0\2{}"
            names = ["content-type: application/connect+proto", "connect-content-encoding: zstd"]
        else:
            body, names = packed[0], ["content-type: application/proto", "content-encoding: zstd"]
        writer.write(answer("200 OK", names, body))

    async with tcp(serve) as port, AsyncQuillClient(f"http://127.0.0.1:{port}") as client:
        if streaming:
            got = [message async for message in client.stream("a.B", "C", b"")]
        else:
            got = [await client.call("a.B", "C", b"")]
    assert got == messages
    where = [thread is threading.current_thread() for thread in threads]
    assert where == ([True, False, True] if streaming else [False])
