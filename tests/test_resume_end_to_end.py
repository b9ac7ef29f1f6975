"""Generations over connections that break: nothing is lost, nothing comes twice, and the engine starts once."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import quill
from quill.errors import Code
from quill.llm import LLMServicer, ModelInfo, Tokens
from quill.proto import add_LLMServiceServicer_to_server
from quill.testing import ChaosProxy

ROOT = Path(quill.__file__).parent.parent
LIMIT_S = 60
PROTOCOLS = ["grpc", "connect", "grpc-web"]


def figures_of(*command):
    """What a benchmark prints as JSON."""
    done = subprocess.run(
        [sys.executable, *command, "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=110,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", ["grpc", "connect", "grpc_web", "session_grpc", "session_h2c"])
def test_streams_that_are_cut_again_and_again_lose_nothing(way):
    figures = figures_of(
        "benchmarks/resume.py", "--ways", way, "--streams", "4", "--tokens", "100", "--cuts", "24", "--seed", "7"
    )[way]
    assert figures["errors"] == []
    assert (figures["backend_starts"], figures["cuts"]) == (4, 24)
    assert figures["connections"] >= 24 + (1 if way.startswith("session") else 4)
    for name in ("lost", "duplicated", "out_of_order", "texts_unlike_journal"):
        assert figures[name] == 0, name


def test_fifty_starts_at_once_are_one_run_and_nobody_elses():
    figures = figures_of("benchmarks/starts.py", "--rounds", "5")
    assert (figures["starts"], figures["rounds_with_one_start"]) == (5, 5)
    assert (figures["readers"], figures["readers_unlike_the_first"]) == (250, 0)
    for name in (
        "other_principal_resumes_NOT_FOUND",
        "other_principal_cancels_not_found",
        "other_principal_has_its_own_run",
        "other_parameters_ALREADY_EXISTS",
    ):
        assert figures[name] == 5, name


class Counting:
    """An engine that counts as far as it is asked to, one number every millisecond."""

    name = "counting"

    def __init__(self):
        self.starts = self.live = 0

    def models(self):
        return [ModelInfo(name="counting", weights_origin="none")]

    async def generate(self, request, *, model):
        self.starts += 1
        self.live += 1
        try:
            for number in range(request.max_tokens):
                yield Tokens(data=[b"%d " % number], ids=[number])
                await asyncio.sleep(0.001)
        finally:
            self.live -= 1

    async def aclose(self):
        pass


class Site:
    """A server of the engine on a loop of its own."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.backend = Counting()
        self.run(self.start())

    async def start(self, grpc="127.0.0.1:0", http="127.0.0.1:0"):
        self.servicer = LLMServicer(self.backend)
        self.server = quill.Server(grpc=grpc, http=http)
        add_LLMServiceServicer_to_server(self.servicer, self.server)
        await self.server.start()

    async def restart(self):
        """Another instance in the place of this one, which knows nothing of its runs."""
        grpc, http = self.server.grpc_address, self.server.http_url.removeprefix("http://")
        await self.stop()
        await self.start(grpc, http)

    async def stop(self):
        await self.server.stop(0)
        await self.servicer.aclose()

    def url(self, protocol):
        return f"grpc://{self.server.grpc_address}" if protocol == "grpc" else self.server.http_url

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LIMIT_S)

    def close(self):
        self.run(self.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT_S)
        self.loop.close()


@pytest.fixture
def site():
    site = Site()
    yield site
    site.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_blocking_client_goes_on_after_each_cut(site, protocol, how):
    with (
        ChaosProxy(site.url(protocol)) as proxy,
        quill.QuillClient(proxy.url, protocol=protocol) as client,
        client.llm.stream("count", max_tokens=300, resume_ttl_ms=30_000) as stream,
    ):
        ids, next_cut = [], 50
        for delta in stream:
            ids += [token.id for token in delta.tokens]
            if len(ids) >= next_cut:
                next_cut += 50
                proxy.cut(how)
        assert ids == list(range(300))
        assert stream.result().text == "".join(f"{number} " for number in range(300))
        assert proxy.counts.cuts >= 3
    assert site.backend.starts == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_whole_generation_outlives_its_connection(site, protocol):
    async with (
        ChaosProxy(site.url(protocol)) as proxy,
        quill.AsyncQuillClient(proxy.url, protocol=protocol) as client,
    ):
        waiting = asyncio.ensure_future(client.llm.generate("count", max_tokens=300, resume_ttl_ms=30_000))
        while site.backend.live == 0:
            await asyncio.sleep(0.005)
        proxy.cut()
        assert (await waiting).text == "".join(f"{number} " for number in range(300))
    assert site.backend.starts == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_stops_tells_the_position_and_is_not_waited_for(site, protocol):
    with quill.QuillClient(site.url(protocol), protocol=protocol) as client:
        stream = client.llm.stream("count", max_tokens=100_000, resume_ttl_ms=600_000)
        next(stream)
        site.run(site.servicer.aclose())
        with pytest.raises(quill.StreamInterrupted, match=r"shutting down; run .* ended at entry") as caught:
            stream.result()
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message.endswith(f"ended at entry {caught.value.position}")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_another_instance_says_that_the_run_is_lost(site, protocol):
    with ChaosProxy(site.url(protocol)) as proxy, quill.QuillClient(proxy.url, protocol=protocol) as client:
        stream = client.llm.stream("count", max_tokens=100_000, resume_ttl_ms=30_000)
        next(stream)
        proxy.set(refuse=True)
        proxy.cut()
        site.run(site.restart())
        proxy.set(refuse=False)
        with pytest.raises(quill.StreamInterrupted, match="is lost: it ran on server instance") as caught:
            stream.result()
    assert caught.value.code is Code.ABORTED
    assert caught.value.text.startswith("0 ")
    assert caught.value.tokens[-1].id == caught.value.position - 2
    assert site.backend.starts == 1, "nothing is generated again"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_resumable_stream_that_is_left_stops_the_engine(site, protocol):
    with quill.QuillClient(site.url(protocol), protocol=protocol) as client:
        with client.llm.stream("count", max_tokens=100_000, resume_ttl_ms=600_000) as stream:
            next(stream)
        assert site.backend.live == 0
