"""ShardDistributedModel as its users meet it: against the sidecar, a Quill server, and a router of one's own."""

import asyncio
import re
import subprocess
import sys
from contextlib import aclosing

import pytest

import shard_client
import shard_client.model
import shard_client.transport
from quill.client.async_client import AsyncQuillClient
from quill.errors import DeadlineExceeded, InvalidType, InvalidUsage, QuillError, RpcError, Unavailable
from quill.generation import StreamInterrupted
from quill.shard import RouterClientConfig, ShardDistributedModel, ShardRouterClient, SidecarProtocolError
from quill.shard.config import SidecarConfig
from quill.shard.sidecar import Sidecar
from shard.written import written

PROMPT = "Explain speculative decoding in one sentence."
LIMIT_S = 30
WAYS = [("A", "http_poll"), ("A", "websocket"), ("B", "http_poll"), ("C", "http_poll"), ("C", "websocket")]


@pytest.fixture
def sidecars(sidecar_of):
    return {dialect: sidecar_of(dialect) for dialect in "ABC"}


@pytest.fixture
def sidecar(sidecar_of):
    return sidecar_of("A")


def model_of(sidecar, transport="http_poll", **options):
    return ShardDistributedModel.from_pretrained(
        "shard/network-default", router_url=sidecar.url, transport=transport, **options
    )


@pytest.mark.parametrize(("dialect", "transport"), WAYS)
async def test_every_token_arrives_once_and_in_order(sidecars, dialect, transport):
    expected = "".join(await written(PROMPT, 40))
    async with model_of(sidecars[dialect], transport) as model:
        streamed = [piece async for piece in model.stream_generate(PROMPT, max_new_tokens=40)]
        assert "".join(streamed) == expected
        assert all(streamed)
        assert await model.generate(PROMPT, max_new_tokens=40) == expected


@pytest.mark.parametrize(("dialect", "transport"), WAYS)
async def test_many_generations_at_once_each_receive_their_own_tokens(sidecars, dialect, transport):
    prompts = [f"Question {number}:" for number in range(32)]
    expected = ["".join(await written(prompt, 12)) for prompt in prompts]
    async with model_of(sidecars[dialect], transport) as model, asyncio.timeout(LIMIT_S):
        assert await asyncio.gather(*(model.generate(prompt, max_new_tokens=12) for prompt in prompts)) == expected


@pytest.mark.parametrize("transport", ["http_poll", "websocket"])
def test_the_documented_example_runs_as_it_stands(sidecars, transport):
    example = f"""
import asyncio
from shard_client import ShardDistributedModel


async def main() -> None:
    model = ShardDistributedModel.from_pretrained(
        "shard/network-default",
        router_url="{sidecars["A"].url}",
        transport="{transport}",  # or "websocket"
    )

    async for token in model.stream_generate("Explain speculative decoding in one sentence.", max_new_tokens=64):
        print(token, end="", flush=True)

    await model.aclose()


asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "".join(asyncio.run(written(PROMPT, 64)))


async def test_request_ids_begin_with_sdk(sidecar):
    async with model_of(sidecar) as model:
        await model.generate(PROMPT, max_new_tokens=2)
    assert re.fullmatch(r"sdk-\S+", sidecar.report()["request_ids"][-1])


def test_the_drop_in_names_are_those_of_quill():
    assert shard_client.ShardDistributedModel is shard_client.model.ShardDistributedModel is ShardDistributedModel
    assert shard_client.transport.RouterClientConfig is RouterClientConfig
    assert shard_client.transport.ShardRouterClient is ShardRouterClient
    assert shard_client.transport.SidecarProtocolError is SidecarProtocolError
    assert issubclass(SidecarProtocolError, QuillError)


class FakeRouter:
    """Records what the model asks for: the part of the SDK that its users may replace."""

    def __init__(self):
        self.asked, self.closed, self.ended = [], 0, 0

    async def stream_tokens_http_poll(self, **request):
        self.asked.append(request)
        try:
            for token in (" a", "", " b"):
                yield token
        finally:
            self.ended += 1

    async def stream_tokens_websocket(self, **request):
        yield "by websocket"

    def close(self):
        self.closed += 1


async def test_a_replaced_router_and_encoder_are_asked_with_the_documented_keywords():
    class Words:
        def encode(self, text):
            return [len(word) for word in text.split()]

    model = ShardDistributedModel("m/1")
    assert (model.model_name, model.transport) == ("m/1", "http_poll")
    model.router, model.encoder = router, _ = FakeRouter(), Words()
    async with model:
        assert await model.generate("one two three", max_new_tokens=7) == " a b"
        await model.generate("x", timeout_ms=5, top_p=0.5)
    documented = {"prompt": "one two three", "encoded_prompt": [3, 3, 5], "max_new_tokens": 7, "model": "m/1"}
    further = {"prompt": "x", "encoded_prompt": [1], "max_new_tokens": 128, "model": "m/1"}
    assert router.asked == [documented, further | {"timeout_ms": 5, "top_p": 0.5}]
    assert (router.closed, router.ended) == (1, 2)
    model = ShardDistributedModel("m/1", transport="websocket")
    model.router = FakeRouter()
    assert await model.generate("x") == "by websocket"


async def test_closing_the_iterator_closes_that_of_the_router():
    model = ShardDistributedModel("m/1")
    model.router = router = FakeRouter()
    async with aclosing(model.stream_generate("x")) as pieces:
        assert await anext(pieces) == " a"
    assert router.ended == 1


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ShardDistributedModel("m", transport="smoke"), ValueError, "transport 'smoke' is not supported"),
        (lambda: ShardDistributedModel.from_pretrained("m", transport="poll"), ValueError, "'http_poll', 'websocket'"),
        (lambda: ShardDistributedModel(5), InvalidType, "model_name must be a string, got int"),
        (lambda: ShardDistributedModel.from_pretrained("m", router_url=5), InvalidType, "router_url must be a string"),
        (lambda: ShardDistributedModel.from_pretrained("m", router_url="ftp://x"), InvalidUsage, "ftp"),
        (
            lambda: ShardDistributedModel.from_pretrained("m", router_url="grpc://a:1", transport="websocket"),
            InvalidUsage,
            "has no transport 'websocket'",
        ),
        (
            lambda: ShardDistributedModel.from_pretrained("m", router_url="grpc://a:1", websocket_url="ws://a:1/x"),
            InvalidUsage,
            "websocket_url is a sidecar's",
        ),
        (lambda: ShardDistributedModel.from_pretrained("m", tokenizer_name="/nowhere/at/all/x"), InvalidUsage, "x"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_sent(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("option", ["max_new_tokens", "timeout_ms", "first_token_timeout_ms", "idle_timeout_ms"])
@pytest.mark.parametrize("transport", ["http_poll", "quill"])
async def test_numbers_that_cannot_be_used_are_refused_by_their_names(sidecar, transport, option):
    before = sidecar.report()["requests"]
    async with model_of(sidecar, transport) as model:
        for value, error in ((0, InvalidUsage), (-1, InvalidUsage), ("5", InvalidType)):
            with pytest.raises(error, match=option):
                await model.generate(PROMPT, **{option: value})
    assert sidecar.report()["requests"] == before


async def test_a_prompt_that_is_no_text_is_refused():
    async with ShardDistributedModel("m") as model:
        with pytest.raises(InvalidType, match="prompt must be a string, got bytes"):
            await model.generate(b"x")


@pytest.mark.parametrize("transport", ["http_poll", "websocket"])
async def test_a_sidecar_that_is_not_there_is_one_clear_error(unused_tcp_port, transport):
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with ShardDistributedModel.from_pretrained("m", router_url=url, transport=transport) as model:
        model.router.sidecar = Sidecar(SidecarConfig(base_url=url, retry_budget_s=0.2))
        with pytest.raises(Unavailable, match=str(unused_tcp_port)) as caught:
            await model.generate(PROMPT)
    assert isinstance(caught.value, ConnectionError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("transport", ["http_poll", "websocket"])
async def test_what_breaks_in_the_middle_keeps_its_text(sidecar, transport):
    point = "frame" if transport == "websocket" else "pop"
    fault = {"kind": "error"} if transport == "websocket" else {"kind": "status", "status": 403, "hits": True}
    sidecar.set_faults({"on": point, "after": 5, **fault})
    async with model_of(sidecar, transport) as model:
        with pytest.raises(RpcError) as caught:
            await model.generate(PROMPT, max_new_tokens=40)
    assert isinstance(caught.value, StreamInterrupted)
    assert caught.value.text == "".join(await written(PROMPT, 5))


@pytest.mark.parametrize("transport", ["http_poll", "websocket"])
@pytest.mark.parametrize("option", ["timeout_ms", "first_token_timeout_ms"])
async def test_no_token_in_time_is_a_deadline(sidecar, transport, option):
    sidecar.behave(first_token_delay_ms=60_000)
    async with model_of(sidecar, transport) as model:
        with pytest.raises(DeadlineExceeded) as caught:
            await asyncio.wait_for(model.generate(PROMPT, **{option: 200}), LIMIT_S)
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize("transport", ["http_poll", "websocket"])
async def test_a_gap_that_is_too_long_is_a_deadline_with_the_text_so_far(sidecar, transport):
    sidecar.behave(tokens_per_s=0.2)
    async with model_of(sidecar, transport) as model:
        pieces = model.stream_generate(PROMPT, max_new_tokens=4, idle_timeout_ms=300, first_token_timeout_ms=20_000)
        with pytest.raises(StreamInterrupted) as caught:
            async with asyncio.timeout(LIMIT_S):
                [piece async for piece in pieces]
    assert caught.value.code is DeadlineExceeded.code
    assert caught.value.text == "".join(await written(PROMPT, 1))


@pytest.mark.parametrize(("dialect", "transport"), WAYS)
async def test_what_follows_a_cancelled_generation_receives_none_of_its_tokens(sidecars, dialect, transport):
    expected = "".join(await written("Another question:", 20))
    async with model_of(sidecars[dialect], transport) as model:
        for _ in range(3):
            async with aclosing(model.stream_generate(PROMPT, max_new_tokens=100)) as pieces:
                await anext(pieces)
            assert await model.generate("Another question:", max_new_tokens=20) == expected


async def test_a_cancelled_task_ends_its_generation(sidecar):
    sidecar.behave(first_token_delay_ms=60_000)
    async with model_of(sidecar, "websocket") as model:
        task = asyncio.create_task(model.generate(PROMPT))
        async with asyncio.timeout(LIMIT_S):
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_a_quill_server_serves_the_same_model_class(server, scheme):
    url = f"grpc://{server['grpc']}" if scheme == "grpc" else server["http"]
    said = {} if scheme == "grpc" else {"transport": "quill"}
    async with AsyncQuillClient(url) as client:
        expected = (await client.llm.generate("Alice was", max_tokens=20, seed=7, temperature=0.5)).text
    async with ShardDistributedModel.from_pretrained(server["model"], router_url=url, **said) as model:
        assert model.transport == "quill"
        pieces = [
            piece async for piece in model.stream_generate("Alice was", max_new_tokens=20, seed=7, temperature=0.5)
        ]
        assert "".join(pieces) == expected
        assert len(pieces) > 10
        with pytest.raises(InvalidUsage, match="unknown option 'tempperature'"):
            await model.generate("Alice", tempperature=1)
        with pytest.raises(RpcError, match="is not supported by model"):
            await model.generate("Alice", presence_penalty=1.0)


async def test_a_slow_quill_server_meets_the_deadlines_of_the_sdk():
    from support.processes import serving

    with serving("--set", "backend_options.token_delay_ms=2000") as (_, ready):
        async with ShardDistributedModel.from_pretrained(ready["model"], router_url="grpc://" + ready["grpc"]) as model:
            with pytest.raises(DeadlineExceeded, match="the first token did not come within 100 ms"):
                await model.generate("Alice", first_token_timeout_ms=100)
            with pytest.raises(StreamInterrupted, match="the next token did not come within 100 ms") as caught:
                await model.generate("Alice", idle_timeout_ms=100)
            assert caught.value.text
            with pytest.raises(RpcError) as caught:
                await model.generate("Alice", timeout_ms=100)
            assert caught.value.code is DeadlineExceeded.code


async def test_a_model_can_be_closed_again_and_is_not_used_after():
    model = ShardDistributedModel("m")
    await model.aclose()
    await model.aclose()
    with pytest.raises(QuillError, match="closed"):
        await model.generate("x")


async def test_a_reply_that_was_lost_is_never_a_whole_answer(sidecar):
    sidecar.set_faults({"on": "pop", "kind": "close", "hits": True, "handled": True, "after": 3, "next": 1})
    async with model_of(sidecar) as model:
        with pytest.raises(StreamInterrupted) as caught:
            await model.generate(PROMPT, max_new_tokens=8, idle_timeout_ms=5_000)
    tokens = await written(PROMPT, 9)
    assert caught.value.text in {
        "".join(tokens[:3]),
        "".join(tokens[:3] + tokens[4:9]),
        "".join(tokens[:3] + tokens[4:8]),
    }


@pytest.mark.parametrize("kind", ["malformed", "list", "missing_result"])
async def test_what_is_not_in_the_protocol_is_an_error_of_its_own(sidecar, kind):
    sidecar.set_faults({"on": "pop", "kind": kind})
    async with model_of(sidecar) as model:
        with pytest.raises(SidecarProtocolError, match="pop-result") as caught:
            await asyncio.wait_for(model.generate(PROMPT), LIMIT_S)
    assert "\n" not in str(caught.value)


async def test_a_tokenizer_of_ones_own_is_heard(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"Alice": 5, "was": 9, "?": 0}, unk_token="?"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = ShardDistributedModel("m", tokenizer_name=str(tmp_path))
    model.router = router = FakeRouter()
    await model.generate("Alice was tired")
    assert router.asked[0]["encoded_prompt"] == [5, 9, 0]


def test_without_the_extra_the_error_says_what_to_install():
    code = """
import sys
sys.modules["websockets"] = None
from quill.shard import ShardDistributedModel
ShardDistributedModel("m")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr.splitlines()[-1].endswith(
        "the sidecar client needs websockets, which is not installed: pip install 'quill-rpc[shard]'"
    )
