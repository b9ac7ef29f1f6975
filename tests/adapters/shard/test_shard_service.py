"""LLMService in front of a sidecar: real processes, both ports, every dialect, polled and over the WebSocket."""

import asyncio
import time
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import pytest

from quill.client.async_client import AsyncQuillClient
from quill.client.transport import ResponseMetadata
from quill.errors import Code, DeadlineExceeded, InvalidArgument, RpcError, Unavailable
from quill.generation import FinishReason
from quill.testing.sidecar import SidecarProcess
from shard.written import written
from support.processes import serving

PROMPT = "The Queen of Hearts"
MODEL = "shard/network-default"
LIMIT_S = 30
WAYS = [("A", "http_poll"), ("A", "websocket"), ("B", "http_poll"), ("C", "http_poll"), ("C", "websocket")]
PROTOCOLS = ["grpc", "connect"]


@dataclass
class Scene:
    """A sidecar and a server in front of it."""

    sidecar: SidecarProcess
    ready: dict[str, str]

    def client(self, protocol="grpc"):
        return AsyncQuillClient("grpc://" + self.ready["grpc"] if protocol == "grpc" else self.ready["http"])


@contextmanager
def scene(dialect, transport, *arguments):
    with SidecarProcess(dialect) as sidecar:
        options = ("--backend", "shard", "--router-url", sidecar.url, "--transport", transport)
        with serving(*options, *arguments) as (process, ready):
            yield Scene(sidecar, ready)
            assert process.poll() is None, "the server ended while tests ran"


@pytest.fixture(scope="module", params=WAYS, ids=["-".join(way) for way in WAYS])
def every(request):
    with scene(*request.param) as made:
        yield made


@pytest.fixture(scope="module")
def websocket():
    with scene("A", "websocket") as made:
        yield made


@pytest.fixture(scope="module")
def polled():
    with scene("A", "http_poll") as made:
        yield made


@pytest.fixture
def clean(websocket):
    yield websocket
    websocket.sidecar.set_faults()
    websocket.sidecar.behave()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_generate_and_stream_give_the_sidecars_own_tokens(every, protocol):
    expected = "".join(await written(PROMPT, 30))
    async with every.client(protocol) as client:
        whole = await client.llm.generate(PROMPT, max_tokens=30)
        streamed = await client.llm.stream(PROMPT, max_tokens=30).result()
    for generation in (whole, streamed):
        assert generation.text == expected
        assert (generation.model, generation.finish_reason) == (MODEL, FinishReason.LENGTH)
        assert {token.id for token in generation.tokens} == {None}
        assert "".join(token.text for token in generation.tokens) == expected
        assert (generation.usage.completion_tokens, generation.usage.estimated) == (len(generation.tokens), True)
        assert generation.usage.prompt_tokens == 5  # 19 bytes


async def test_many_generations_at_once_each_receive_exactly_their_own_tokens(every):
    prompts = [f"Question {number}:" for number in range(32)]
    expected = ["".join(await written(prompt, 12)) for prompt in prompts]
    async with every.client() as grpc, every.client("connect") as connect, asyncio.timeout(LIMIT_S):
        clients = [grpc, connect] * 16
        calls = (client.llm.generate(prompt, max_tokens=12) for client, prompt in zip(clients, prompts, strict=True))
        assert [generation.text for generation in await asyncio.gather(*calls)] == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_what_the_layer_above_supplies_works_with_a_sidecar(every, protocol):
    expected = "".join(await written(PROMPT, 60))
    stop = expected[25:32]
    cut = expected[: expected.index(stop)]
    messages = [{"role": "user", "content": "Who are you?"}]
    said = "".join(await written("user: Who are you?\nassistant:", 5))
    async with every.client(protocol) as client:
        stopped = await client.llm.generate(PROMPT, max_tokens=60, stop=[stop])
        assert (stopped.text, stopped.choices[0].finish.stop_text) == (cut, stop)
        assert stopped.finish_reason is FinishReason.STOP
        several = await client.llm.generate(PROMPT, max_tokens=4, n=2)
        assert [choice.text for choice in several.choices] == ["".join(await written(PROMPT, 4))] * 2
        assert (await client.llm.generate(messages=messages, max_tokens=5)).text == said


async def test_drafts_are_labelled_and_other_answers_are_not(every):
    response = ResponseMetadata()
    async with every.client() as client:
        await client.llm.generate(PROMPT, max_tokens=4, response=response)
    is_draft = every.sidecar.dialect in {"B", "C"} and not await _uses_websocket(every)
    assert (("quill-shard-draft", "unverified") in response.trailers) is is_draft


async def _uses_websocket(made):
    return "upgrade" in str(made.sidecar.report()["requests"])


REFUSED = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "logprobs": 1, "echo": True, "min_tokens": 2, "top_k": 5}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("option", REFUSED)
async def test_what_a_sidecar_cannot_do_is_refused_by_name(clean, protocol, option):
    before = clean.sidecar.report()["requests"]
    async with clean.client(protocol) as client:
        with pytest.raises(InvalidArgument, match=rf"{option}=.* is not supported by model {MODEL}"):
            await client.llm.generate(PROMPT, **{option: REFUSED[option]})
    assert clean.sidecar.report()["requests"].keys() - {"health"} == before.keys() - {"health"}


async def test_a_prompt_that_is_too_long_for_the_dialect_is_refused():
    with scene("B", "http_poll", "--dialect", "B") as made:
        async with made.client() as client:
            with pytest.raises(InvalidArgument, match=r"16001 bytes.*16000"):
                await client.llm.generate("x" * 16_001)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("how", ["close", "cancel", "deadline"])
async def test_the_end_of_a_call_reaches_the_sidecar(clean, protocol, how):
    clean.sidecar.behave(tokens_per_s=50)
    async with clean.client(protocol) as client, asyncio.timeout(LIMIT_S):
        timeout_ms = 1_500 if how == "deadline" else None
        async with aclosing(client.llm.stream(PROMPT, max_tokens=2000, timeout_ms=timeout_ms)) as stream:
            await anext(stream)
            assert clean.sidecar.report()["serving"] == 1
            if how == "cancel":
                assert await client.llm.cancel(stream.request_id)
            if how != "close":
                with pytest.raises(RpcError):
                    [delta async for delta in stream]
        while clean.sidecar.report()["serving"]:  # another process tells no event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_deadline_before_the_first_token_is_kept(clean, protocol):
    clean.sidecar.behave(first_token_delay_ms=60_000)
    async with clean.client(protocol) as client:
        started_s = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.llm.generate(PROMPT, timeout_ms=300)
        assert time.monotonic() - started_s < LIMIT_S


async def test_an_error_of_the_sidecar_has_its_status_and_leaves_what_came_before(clean):
    clean.sidecar.set_faults({"on": "frame", "kind": "error", "after": 5})
    async with clean.client() as client:
        stream = client.llm.stream(PROMPT, max_tokens=40)
        with pytest.raises(RpcError, match="the peer went away") as caught:
            await stream.result()
    assert caught.value.code is Unavailable.code
    assert caught.value.text == "".join(await written(PROMPT, 5))


async def test_the_limit_of_dialect_c_is_a_stop_with_a_warning():
    with scene("C", "websocket", "--dialect", "C") as made:
        made.sidecar.behave(websocket_limit_s=1.0, tokens_per_s=10)
        async with made.client() as client:
            response = ResponseMetadata()
            generation = await client.llm.generate(PROMPT, max_tokens=1000, response=response)
    assert generation.text
    assert generation.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("transport", ["http_poll", "websocket"])
async def test_a_sidecar_may_go_and_come_back(transport):
    with scene("A", transport) as made:
        async with made.client() as grpc, made.client("connect") as connect:
            for client in (grpc, connect):
                assert (await client.llm.generate(PROMPT, max_tokens=2)).text
            assert [model.ready for model in await grpc.llm.models()] == [True]
            made.sidecar.kill()
            for client in (grpc, connect):
                with pytest.raises(Unavailable) as caught:
                    await client.llm.generate(PROMPT, max_tokens=2, timeout_ms=20_000)
                assert made.sidecar.url.removeprefix("http://") in str(caught.value)
                assert "\n" not in str(caught.value)
            await _health_becomes(grpc, connect, is_well=False)
            with pytest.raises(Unavailable, match=f"model {MODEL} is not ready: cannot reach the sidecar at"):
                await grpc.llm.generate(PROMPT)
            assert [model.ready for model in await grpc.llm.models()] == [False]
            made.sidecar.start()
            await _health_becomes(grpc, connect, is_well=True)
            for client in (grpc, connect):
                assert (await client.llm.generate(PROMPT, max_tokens=2)).text == "".join(await written(PROMPT, 2))


async def _health_becomes(*clients, is_well):
    async with asyncio.timeout(LIMIT_S):
        for client in clients:
            while await client.health_check() is not is_well:
                await asyncio.sleep(0.05)


async def test_models_are_those_that_the_operator_names_and_each_is_told_to_the_sidecar():
    with scene("A", "http_poll", "--shard-model", "one", "--shard-model", "two") as made:
        async with made.client() as client:
            assert [model.name for model in await client.llm.models()] == ["one", "two"]
            assert (await client.llm.generate(PROMPT, model="two", max_tokens=2)).model == "two"
            with pytest.raises(InvalidArgument, match="there are 2: one, two"):
                await client.llm.generate(PROMPT)


async def test_a_network_without_peers_is_not_ready(clean):
    clean.sidecar.behave(peers=0)
    async with clean.client() as grpc, clean.client("connect") as connect:
        await _health_becomes(grpc, connect, is_well=False)
        with pytest.raises(Unavailable, match="is not ready: the sidecar has no peers"):
            await connect.llm.generate(PROMPT)
        clean.sidecar.behave()
        await _health_becomes(grpc, connect, is_well=True)
        assert (await grpc.llm.generate(PROMPT, max_tokens=1)).text


async def test_a_server_that_stops_ends_its_streams_and_leaves_nothing_at_the_sidecar():
    with SidecarProcess("A") as sidecar:
        sidecar.behave(tokens_per_s=20)
        options = ("--backend", "shard", "--router-url", sidecar.url, "--set", "grace_s=0.2")
        with serving(*options) as (process, ready):
            async with AsyncQuillClient("grpc://" + ready["grpc"]) as client:
                stream = client.llm.stream(PROMPT, max_tokens=2000)
                await anext(stream)
                process.terminate()
                with pytest.raises(RpcError) as caught:
                    await stream.result()
            _, err = await asyncio.to_thread(process.communicate, timeout=LIMIT_S)
        assert caught.value.code is Unavailable.code
        assert (process.returncode, err) == (0, "")
        assert sidecar.report()["serving"] == 0


STATUSES = [
    (400, Code.INVALID_ARGUMENT),
    (401, Code.UNAUTHENTICATED),
    (403, Code.PERMISSION_DENIED),
    (404, Code.UNIMPLEMENTED),
    (413, Code.INVALID_ARGUMENT),
    (422, Code.INVALID_ARGUMENT),
    (429, Code.RESOURCE_EXHAUSTED),
    (503, Code.UNAVAILABLE),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("status", "code"), STATUSES)
async def test_a_refusal_of_the_sidecar_is_a_status_over_both_protocols(polled, protocol, status, code):
    polled.sidecar.set_faults({"on": "broadcast", "kind": "status", "status": status, "retry_after_s": 7})
    try:
        async with polled.client(protocol) as client:
            with pytest.raises(RpcError, match=f"HTTP {status}") as caught:
                await client.llm.generate(PROMPT, timeout_ms=20_000)
    finally:
        polled.sidecar.set_faults()
    assert caught.value.code is code
    told = dict((*caught.value.trailers, *caught.value.metadata)).get("retry-after")
    assert told == ("7" if status == 429 else None)


@pytest.mark.parametrize(("dialect", "uses"), [("A", {"upgrade"}), ("B", {"upgrade", "broadcast", "pop"})])
async def test_auto_takes_the_websocket_where_there_is_one(dialect, uses):
    with scene(dialect, "auto") as made:
        async with made.client() as client:
            assert (await client.llm.generate(PROMPT, max_tokens=5)).text == "".join(await written(PROMPT, 5))
        asked = {name for name, count in made.sidecar.report()["requests"].items() if count}
        assert asked & {"upgrade", "broadcast", "pop"} == uses
