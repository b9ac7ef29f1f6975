import asyncio
import math
import subprocess
import sys
import time

import numpy as np
import pytest

from quill.adapters.ngram.backend import NgramBackend
from quill.errors import InvalidArgument, InvalidType, InvalidUsage
from quill.generation import FinishReason, Usage
from quill.llm.backend import Finished, Seeded, Tokens, UsageReport
from quill.proto import GenerateRequest


class Output:
    """The events of a generation, by kind; the order of kinds is checked on the way."""

    def __init__(self, events):
        self.seeded, of_prompt, *self.tokens, self.finished, self.report = events
        assert isinstance(self.seeded, Seeded)
        assert isinstance(self.finished, Finished)
        assert isinstance(self.report, UsageReport)
        assert of_prompt == UsageReport(Usage(prompt_tokens=self.report.usage.prompt_tokens))
        assert all(isinstance(event, Tokens) and len(event.ids) == len(event.data) == 1 for event in self.tokens)
        self.ids = [event.ids[0] for event in self.tokens]
        self.text = b"".join(event.data[0] for event in self.tokens).decode()
        self.finish, self.usage = self.finished.finish, self.report.usage
        assert self.usage.completion_tokens == len(self.tokens)
        assert not self.usage.estimated


async def generate(backend, *, prompt=None, **fields) -> Output:
    if prompt is not None:  # the layer above splits text, because the model takes token ids only
        fields["prompt_token_ids"] = backend.model.tokenizer.encode(prompt)
    request = GenerateRequest(**fields)
    return Output([event async for event in backend.generate(request, model=backend.models()[0])])


async def test_a_generation_told_with_log_probabilities_is_what_the_oracle_draws(backend, oracle, naive):
    settings = {"temperature": 0.75, "top_k": 100, "top_p": 0.9375, "min_p": 0.001953125}  # exact as float32
    bias = {45: -1.5, 20: 2.0}
    output = await generate(
        backend, prompt="The Queen", seed=11, max_tokens=25, logprobs=3, logit_bias=bias, **settings
    )
    uniform = np.random.Generator(np.random.PCG64(11))
    settings["min_p"] = float(np.float32(settings["min_p"]))
    context = oracle.encode("The Queen")
    for event in output.tokens:
        expected = oracle.logprobs(context, bias=bias)
        assert event.ids[0] == naive.draw(naive.truncation(expected, **settings), uniform.random())
        assert event.data[0] == oracle.vocabulary[event.ids[0]]
        assert event.logprobs[0] == pytest.approx(expected[event.ids[0]], abs=1e-9)
        best = sorted(expected, key=lambda id_: (-expected[id_], id_))[:3]
        assert [(candidate.id, candidate.data) for candidate in event.top_logprobs[0]] == [
            (id_, oracle.vocabulary[id_] or b"<|endoftext|>") for id_ in best
        ]
        assert [c.logprob for c in event.top_logprobs[0]] == pytest.approx([expected[id_] for id_ in best], abs=1e-9)
        context.append(event.ids[0])
    assert len(output.tokens) > 1


async def test_defaults_are_the_ones_that_the_model_tells(backend):
    info = backend.models()[0]
    plain = await generate(backend, prompt="Alice", seed=8, ignore_eos=True)
    told = {key: int(value) if key == "top_k" else value for key, value in info.default_sampling.items()}
    spelt_out = await generate(
        backend, prompt="Alice", seed=8, ignore_eos=True, max_tokens=info.default_max_tokens, **told
    )
    assert plain.ids == spelt_out.ids
    assert len(plain.ids) == info.default_max_tokens


async def test_greedy_output_is_the_most_probable_token_each_time(backend, oracle):
    first = await generate(backend, prompt="Alice was", temperature=0, max_tokens=8)
    second = await generate(backend, prompt="Alice was", temperature=0, max_tokens=8, seed=99, top_k=5, top_p=0.5)
    context = oracle.encode("Alice was")
    for id_ in first.ids:
        distribution = oracle.distribution(context)
        assert id_ == distribution.index(max(distribution))
        context.append(id_)
    assert first.ids == second.ids


async def test_log_probabilities_come_only_where_they_are_asked_for(backend):
    silent = await generate(backend, prompt="Alice", seed=2, max_tokens=3)
    assert {event.logprobs for event in silent.tokens} == {event.top_logprobs for event in silent.tokens} == {None}
    own = await generate(backend, prompt="Alice", seed=2, max_tokens=3, logprobs=0)
    assert all(len(event.logprobs) == 1 and event.top_logprobs is None for event in own.tokens)
    everything = await generate(backend, prompt="Alice", seed=2, max_tokens=1, logprobs=100_000)
    candidates = everything.tokens[0].top_logprobs[0]
    assert math.fsum(math.exp(candidate.logprob) for candidate in candidates) == pytest.approx(1)
    assert len(candidates) == 2048
    assert candidates == tuple(sorted(candidates, key=lambda candidate: (-candidate.logprob, candidate.id)))


async def test_a_seed_is_told_first_and_repeats_the_output(backend):
    first = await generate(backend, prompt="The", max_tokens=30)
    second = await generate(backend, prompt="The", max_tokens=30)
    again = await generate(backend, prompt="The", max_tokens=30, seed=first.seeded.seed)
    assert 0 <= first.seeded.seed < 2**53
    assert first.seeded.seed != second.seeded.seed
    assert again.ids == first.ids != second.ids
    assert again.seeded == first.seeded


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
async def test_every_int64_is_a_seed(backend, seed):
    output = await generate(backend, prompt="The", seed=seed, max_tokens=2)
    assert output.seeded.seed == seed


async def test_generations_end_by_themselves_and_the_end_is_no_token(backend):
    outputs = [await generate(backend, prompt="The Queen", seed=seed, max_tokens=400) for seed in range(20)]
    ended = [output for output in outputs if output.finish.reason is FinishReason.STOP]
    assert len(ended) > 10
    for output in ended:
        assert 0 not in output.ids
        assert output.finish.stop_token_id is None


async def test_max_tokens_ends_with_length(backend):
    for max_tokens in (0, 1, 7):
        output = await generate(backend, prompt="The", seed=1, max_tokens=max_tokens)
        assert len(output.ids) == max_tokens
        assert output.finish.reason is FinishReason.LENGTH


async def test_ignore_eos_never_ends(backend, oracle):
    output = await generate(backend, prompt="The", seed=1, max_tokens=300, ignore_eos=True, logit_bias={0: 50})
    assert len(output.ids) == 300
    assert 0 not in output.ids


async def test_min_tokens_holds_the_end_back_and_no_longer(backend):
    output = await generate(backend, prompt="The", seed=1, min_tokens=5, max_tokens=50, logit_bias={0: 100})
    assert len(output.ids) == 5
    assert output.finish.reason is FinishReason.STOP


async def test_a_stop_token_ends_the_output_and_is_kept_only_on_demand(backend, oracle):
    [comma] = oracle.encode(",")
    fields = {"prompt": "The Queen", "seed": 1, "stop_token_ids": [comma], "logit_bias": {comma: 100}}
    left_out = await generate(backend, **fields)
    kept = await generate(backend, **fields, include_stop=True)
    later = await generate(backend, **fields, min_tokens=3)
    assert left_out.ids == []
    assert kept.ids == [comma]
    assert len(later.ids) == 3
    assert comma not in later.ids
    for output in (left_out, kept, later):
        assert output.finish.reason is FinishReason.STOP
        assert output.finish.stop_token_id == comma


async def test_logit_bias_forces_and_bans_tokens(backend, oracle):
    [alice] = oracle.encode(" Alice")
    forced = await generate(backend, prompt="The", seed=1, max_tokens=3, logit_bias={alice: 100})
    assert forced.ids == [alice] * 3
    assert forced.text == " Alice" * 3


async def test_the_context_bounds_prompt_and_output_together(backend):
    fields = {"prompt_token_ids": [300] * 2040, "max_tokens": 100, "seed": 1, "ignore_eos": True}
    output = await generate(backend, **fields)
    assert len(output.ids) == 8
    assert output.finish.reason is FinishReason.LENGTH
    assert output.usage.prompt_tokens == 2040


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"prompt": "", "response_format": {"choice": {"values": [str(n) for n in range(1001)]}}},
            r"at most 1000 choices, got 1001",
        ),
        (
            {"prompt": "", "response_format": {"choice": {"values": ["é" * 40_000]}}},
            r"at most 65536 bytes together, got 80000",
        ),
    ],
)
async def test_what_cannot_be_done_is_refused_with_its_numbers(backend, fields, message):
    with pytest.raises(InvalidArgument, match=message):
        await generate(backend, **fields)


async def test_choice_answers_with_one_of_the_choices(backend):
    values = ["Yes, certainly!", "No", "日本"]
    seen = set()
    for seed in range(60):
        choice = {"choice": {"values": values}}
        output = await generate(backend, prompt="Well?", seed=seed, temperature=3, response_format=choice)
        assert output.finish.reason is FinishReason.STOP
        seen.add(output.text)
    assert seen == set(values)


async def test_closing_in_the_middle_leaves_nothing_behind():
    backend = NgramBackend(token_delay_ms=60_000)
    before = asyncio.all_tasks()
    events = backend.generate(GenerateRequest(prompt_token_ids=[362], seed=1), model=backend.models()[0])
    assert [await anext(events), await anext(events)] == [Seeded(1), UsageReport(Usage(prompt_tokens=1))]
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await events.aclose()
    assert asyncio.all_tasks() == before
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    await backend.aclose()


async def test_other_tasks_have_their_turn_between_tokens(backend):
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    await generate(backend, prompt="The", seed=1, max_tokens=50, ignore_eos=True)
    counter.cancel()
    assert turns >= 50


async def test_many_generations_at_once_do_not_disturb_each_other(backend):
    alone = [await generate(backend, prompt="Alice", seed=seed) for seed in range(10)]
    together = await asyncio.gather(*(generate(backend, prompt="Alice", seed=seed) for seed in range(10)))
    assert [output.ids for output in together] == [output.ids for output in alone]


async def test_a_token_delay_paces_the_tokens():
    backend = NgramBackend(token_delay_ms=20)
    start = time.monotonic()
    await generate(backend, prompt="The", seed=1, max_tokens=5, ignore_eos=True)
    assert time.monotonic() - start >= 0.1


def test_the_model_describes_itself(backend):
    [info] = backend.models()
    assert (info.name, info.aliases, backend.name) == ("ngram-alice", ("ngram",), "ngram")
    assert (info.context_length, info.vocab_size, info.eos_token_ids) == (2048, 2048, (0,))
    assert (info.text_prompt, info.token_prompt) == (False, True)
    assert "embeddings are hashed features of tokens, in which nothing is learnt" in info.weights_origin
    assert "public domain" in info.weights_origin
    assert info.weights_origin.startswith("n-gram over ")
    assert "not an LLM" in info.weights_origin


def test_every_option_is_a_field_of_the_contract(backend):
    request = GenerateRequest.DESCRIPTOR
    for option in backend.models()[0].options:
        field, _, constraint = option.partition(".")
        assert field in request.fields_by_name
        assert not constraint or constraint in request.fields_by_name[field].message_type.fields_by_name


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf])
def test_a_delay_that_is_no_time_is_refused(delay):
    with pytest.raises(InvalidUsage, match="at least 0"):
        NgramBackend(token_delay_ms=delay)


def test_a_delay_that_is_no_number_is_refused():
    with pytest.raises(InvalidType, match="must be a number, got list"):
        NgramBackend(token_delay_ms=[5])


def test_the_package_loads_numpy_only_with_a_backend():
    code = "import sys, quill.adapters, quill.adapters.ngram; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
