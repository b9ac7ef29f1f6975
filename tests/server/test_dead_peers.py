"""A peer that is gone without a word is noticed: by pings where the protocol has them, by the kernel where not."""

import asyncio
import time

import pytest

import quill
from quill.limits import Limits
from quill.llm import LLMServicer, ModelInfo, Tokens
from quill.proto import add_LLMServiceServicer_to_server
from quill.testing import ChaosProxy

INTERVAL_S, TIMEOUT_S = 1.0, 1.0
BOUND_S = INTERVAL_S + TIMEOUT_S + 1.0
LIMITS = Limits(keepalive_interval_s=INTERVAL_S, keepalive_timeout_s=TIMEOUT_S, min_ping_interval_s=0.5)


class Slow:
    """A token, and then silence or a token now and then, or tokens as fast as they are taken."""

    name = "slow"

    def __init__(self, gap_s):
        self.gap_s = gap_s
        self.live = 0
        self.told = 0
        self.aborted_s = None

    def models(self):
        return [ModelInfo(name="slow", weights_origin="none")]

    async def generate(self, request, *, model):
        self.live += 1
        try:
            while True:
                yield Tokens(data=[b"x" * 20])
                self.told += 1
                await asyncio.sleep(self.gap_s)
        finally:
            self.live -= 1
            self.aborted_s = time.monotonic()

    async def aclose(self):
        pass


class Scene:
    def __init__(self, backend, server):
        self.backend = backend
        self.urls = {"grpc": f"grpc://{server.grpc_address}", "connect": server.http_url, "h2c": server.http_url}

    async def aborted(self, since_s):
        async with asyncio.timeout(5 * BOUND_S):
            while self.backend.live:
                await asyncio.sleep(0.01)
        return self.backend.aborted_s - since_s


@pytest.fixture
async def scene(request):
    gap_s, options = request.param
    backend = Slow(gap_s)
    servicer = LLMServicer(backend)
    server = quill.Server("127.0.0.1:0", "127.0.0.1:0", limits=LIMITS, **options)
    add_LLMServiceServicer_to_server(servicer, server)
    async with server:
        yield Scene(backend, server)
        await servicer.aclose()


def cells(*gaps):
    return pytest.mark.parametrize(
        ("scene", "protocol"),
        [
            pytest.param((gap_s, {"http2": protocol == "h2c"}), protocol, id=f"{protocol}-{gap_s}")
            for protocol in ("grpc", "connect", "h2c")
            for gap_s in gaps
        ],
        indirect=["scene"],
    )


@cells(3600.0, 0.1)
async def test_a_server_notices_a_client_whose_machine_is_gone(scene, protocol):
    async with ChaosProxy(scene.urls[protocol]) as proxy:
        client = quill.AsyncQuillClient(proxy.url, http2=protocol == "h2c")
        async with client, client.llm.stream("go", max_tokens=100_000) as stream:
            await anext(aiter(stream))
            assert scene.backend.live == 1
            proxy.set(deaf=True)
            assert await scene.aborted(time.monotonic()) < 5 * BOUND_S
            proxy.cut()


@cells(3600.0)
async def test_a_server_keeps_a_client_that_lives(scene, protocol):
    async with ChaosProxy(scene.urls[protocol]) as proxy:
        client = quill.AsyncQuillClient(proxy.url, http2=protocol == "h2c")
        async with client, client.llm.stream("go", max_tokens=100_000) as stream:
            await anext(aiter(stream))
            await asyncio.sleep(BOUND_S + 1)
            assert scene.backend.live == 1


@pytest.mark.parametrize("scene", [(0.0, {})], indirect=True)
async def test_a_reader_that_stops_and_lives_is_not_taken_for_dead(scene):
    async with ChaosProxy(scene.urls["connect"]) as proxy:
        client = quill.AsyncQuillClient(proxy.url)
        async with client, client.llm.stream("go", max_tokens=1_000_000) as stream:
            reader = aiter(stream)
            await anext(reader)
            told = -1
            async with asyncio.timeout(60):  # until every buffer between is full
                while told != (told := scene.backend.told):
                    await asyncio.sleep(0.5)
            await asyncio.sleep(BOUND_S + 1)
            assert (scene.backend.live, scene.backend.told) == (1, told)
            for _ in range(10):
                await anext(reader)


@pytest.mark.parametrize("scene", [(3600.0, {})], indirect=True)
@pytest.mark.parametrize("switch", ["black_hole", "deaf"])
async def test_a_client_notices_a_server_that_answers_no_pings(scene, switch):
    async with ChaosProxy(scene.urls["grpc"]) as proxy:
        client = quill.AsyncQuillClient(proxy.url, keepalive_ms=1000, keepalive_timeout_ms=1000)
        async with client, client.llm.stream("go", max_tokens=100_000) as stream:
            reader = aiter(stream)
            await anext(reader)
            await asyncio.sleep(3.5)  # more pings than servers with default settings allow
            proxy.set(**{switch: True})
            began_s = time.monotonic()
            with pytest.raises(quill.StreamInterrupted) as caught:
                await anext(reader)
            assert time.monotonic() - began_s < 5 * BOUND_S
            assert caught.value.code is quill.Code.UNAVAILABLE
            assert caught.value.text == "x" * 20
            # The server has noticed too, by itself.
            assert await scene.aborted(began_s) < 5 * BOUND_S


@pytest.mark.parametrize("wrong", [{"keepalive_ms": 0}, {"keepalive_timeout_ms": -1}])
def test_keepalive_is_checked(wrong):
    with pytest.raises(quill.InvalidUsage, match=next(iter(wrong))):
        quill.QuillClient("grpc://127.0.0.1:1", **wrong)
