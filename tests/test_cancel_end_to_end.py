"""Wherever a caller stops listening, the backend stops, and nothing is left: tasks, threads, sockets, descriptors."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import quill
from quill.llm import LLMServicer, ModelInfo, Tokens
from quill.proto import add_LLMServiceServicer_to_server

CELLS = [(protocol, style) for protocol in ("grpc", "connect") for style in ("sync", "async")]


class Endless:
    """Gives tokens as long as somebody wants them; counts who does."""

    name = "endless"

    def __init__(self):
        self.live = self.started = self.aborted = 0
        self.first_token = asyncio.Event()
        self.first_token.set()

    def models(self):
        return [ModelInfo(name="endless", weights_origin="none")]

    async def generate(self, request, *, model):
        self.live += 1
        self.started += 1
        try:
            await self.first_token.wait()
            while True:
                yield Tokens(data=[b"x "])
                await asyncio.sleep(0.001)
        finally:
            self.live -= 1
            self.aborted += 1

    async def aclose(self):
        pass


class Host:
    """A whole server on a loop of its own, in a thread of this process, so that its tasks can be counted."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.run(self._start())

    async def _start(self):
        self.backend = Endless()
        self.servicer = LLMServicer(self.backend)
        self.server = quill.Server(grpc="127.0.0.1:0", http="127.0.0.1:0")
        add_LLMServiceServicer_to_server(self.servicer, self.server)
        await self.server.start()
        self.urls = {"grpc": "grpc://" + self.server.grpc_address, "connect": self.server.http_url}

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def idle(self):
        """Wait until no backend runs."""
        self.run(self._until_idle())

    async def _until_idle(self):
        async with asyncio.timeout(10):
            while self.backend.live:
                await asyncio.sleep(0.002)

    def counts(self):
        async def tasks():
            return len(asyncio.all_tasks())

        descriptors = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return {
            "tasks": self.run(tasks()),
            "threads": threading.active_count(),
            "sockets": sum("socket:" in target for target in descriptors),
            "descriptors": len(descriptors),
        }

    def close(self):
        async def stop():
            await self.servicer.aclose()
            await self.server.stop(0)

        self.run(stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture(scope="module")
def host():
    host = Host()
    yield host
    host.close()


def read(protocol, style, host, tokens):
    """Start a generation, read so many tokens of it, and stop listening."""
    url = host.urls[protocol]
    if style == "sync":
        with quill.QuillClient(url) as client, client.llm.stream("go", max_tokens=100_000) as stream:
            take(stream, tokens, host)
        return

    async def main():
        async with quill.AsyncQuillClient(url) as client, client.llm.stream("go", max_tokens=100_000) as stream:
            await atake(stream, tokens, host)

    asyncio.run(main())


def take(stream, tokens, host):
    if not tokens:
        reader = threading.Thread(target=drain, args=(stream,))
        reader.start()
        until(lambda: host.backend.live)
        stream.close()
        reader.join(10)
        assert not reader.is_alive()
        return
    seen = 0
    for delta in stream:
        seen += len(delta.tokens)
        if seen >= tokens:
            break


def drain(stream):
    with contextlib.suppress(quill.QuillError):
        for _ in stream:
            pass


async def atake(stream, tokens, host):
    if not tokens:
        reader = asyncio.ensure_future(anext(aiter(stream)))
        await asyncio.to_thread(until, lambda: host.backend.live)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        return
    seen = 0
    async for delta in stream:
        seen += len(delta.tokens)
        if seen >= tokens:
            break


def until(condition, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def settles(host, baseline):
    """Whether the counts come back to the baseline; asyncio and C-core close some things a moment later."""
    gc.collect()
    until(lambda: all(host.counts()[name] <= baseline[name] for name in baseline))


@pytest.mark.parametrize("tokens", [0, 1, 25])
@pytest.mark.parametrize(("protocol", "style"), CELLS)
def test_stopping_to_read_stops_the_backend_and_leaves_nothing(host, protocol, style, tokens):
    gate = host.backend.first_token
    read(protocol, style, host, 1)  # what is made once and kept, as C-core's own threads, is made now
    host.idle()
    gc.collect()
    baseline = host.counts()
    aborted, started = host.backend.aborted, host.backend.started
    if not tokens:
        host.loop.call_soon_threadsafe(gate.clear)
    try:
        for _ in range(3):
            read(protocol, style, host, tokens)
            host.idle()
    finally:
        host.loop.call_soon_threadsafe(gate.set)
    assert host.backend.started == started + 3
    assert host.backend.aborted == aborted + 3
    settles(host, baseline)


@pytest.mark.parametrize("protocol", ["grpc", "connect"])
def test_cancel_generate_stops_the_backend_and_ends_the_stream(host, protocol):
    with quill.QuillClient(host.urls[protocol]) as client:
        stream = client.llm.stream("go", max_tokens=100_000, request_id=f"named-{protocol}")
        next(iter(stream))
        assert client.llm.cancel(f"named-{protocol}") is True
        assert host.backend.live == 0
        with pytest.raises(quill.StreamInterrupted) as caught:
            drain_loudly(stream)
        assert caught.value.code is quill.Code.CANCELLED
        assert caught.value.text.startswith("x ")
        assert client.llm.cancel(f"named-{protocol}") is False


def drain_loudly(stream):
    for _ in stream:
        pass


@pytest.mark.parametrize("protocol", ["grpc", "connect"])
def test_a_client_process_that_is_killed_stops_the_backend(host, protocol):
    program = f"""
import quill
client = quill.QuillClient({host.urls[protocol]!r})
for delta in client.llm.stream("go", max_tokens=100_000):
    print(delta.text, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert host.backend.live == 1
        process.send_signal(signal.SIGKILL)
        host.idle()


def test_a_unary_generate_that_is_given_up_stops_the_backend(host):
    for url in host.urls.values():
        with quill.QuillClient(url) as client, pytest.raises(quill.DeadlineExceeded):
            client.llm.generate("go", max_tokens=100_000, timeout_ms=200)
        host.idle()
