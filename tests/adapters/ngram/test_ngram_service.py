"""The embedded model behind a real LLMService: what the layer above and the model do together."""

import asyncio
import math
import time

import grpc
import numpy as np
import pytest

from llm.scripted import failure, served
from quill.proto import (
    ChatMessage,
    DataType,
    DetokenizeRequest,
    EmbedInput,
    EmbedRequest,
    GenerateRequest,
    Pooling,
    TokenizeRequest,
)
from quill.tensor import Tensor


@pytest.fixture
async def stub(backend):
    async with served(backend, channel_options=[("grpc.max_receive_message_length", -1)]) as (_, stub):
        yield stub


async def generate(stub, **fields):
    return await stub.Generate(GenerateRequest(**{"max_tokens": 8, "seed": 3, **fields}), timeout=60)


def ids_of(batch):
    return [token.id for token in batch.tokens]


def output(reply):
    return ids_of(reply.choices[0].tokens)


async def test_a_prompt_is_the_same_as_text_and_as_tokens(stub, oracle):
    by_text = await generate(stub, prompt="The Queen was")
    by_ids = await generate(stub, prompt_token_ids=oracle.encode("The Queen was"))
    assert output(by_text) == output(by_ids)
    assert by_text.usage.prompt_tokens == by_ids.usage.prompt_tokens == 3
    assert not by_text.usage.estimated


@pytest.mark.parametrize("begins", [False, True])
async def test_log_probabilities_of_a_prompt_are_those_of_the_oracle(stub, oracle, begins):
    fields = {"prompt": "The Queen said naïve", "add_special_tokens": begins, "logit_bias": {45: 5.0}, "min_tokens": 2}
    reply = await generate(stub, prompt_logprobs=4, **fields)
    ids = [0] * begins + oracle.encode("The Queen said naïve")
    told = reply.prompt_token_batch.tokens
    assert ids_of(reply.prompt_token_batch) == ids
    assert "".join(token.text for token in told) == "The Queen said naïve"
    assert not told[0].HasField("logprob")
    assert not told[0].top_logprobs
    for at in range(1, len(ids)):
        expected = oracle.logprobs(ids[:at])  # of the model itself: neither bias nor min_tokens have a part in it
        assert told[at].logprob == pytest.approx(expected[ids[at]], rel=1e-6)
        best = sorted(expected, key=lambda id_: (-expected[id_], id_))[:4]
        assert [candidate.id for candidate in told[at].top_logprobs] == best
        assert [c.logprob for c in told[at].top_logprobs] == pytest.approx([expected[id_] for id_ in best], rel=1e-6)
    assert reply.usage.prompt_tokens == len(ids)
    assert output(reply) == output(await generate(stub, **fields)), "asking changes nothing"


async def test_candidates_of_a_prompt_are_told_only_on_demand(stub):
    reply = await generate(stub, prompt="The Queen", prompt_logprobs=0)
    assert reply.prompt_token_batch.tokens[1].HasField("logprob")
    assert not reply.prompt_token_batch.tokens[1].top_logprobs
    assert not (await generate(stub, prompt="The Queen")).HasField("prompt_token_batch")


async def test_the_longest_prompt_has_log_probabilities_too(stub):
    reply = await generate(stub, prompt_token_ids=[362] * 2047, prompt_logprobs=20)
    assert len(reply.prompt_token_batch.tokens) == 2047
    assert len(output(reply)) == 1


async def test_an_empty_prompt_has_no_tokens_to_tell(stub):
    reply = await generate(stub, prompt="", prompt_logprobs=1, echo=True)
    assert len(reply.prompt_token_batch.tokens) == 0
    assert reply.choices[0].tokens.tokens[0].position == 0


async def test_a_token_that_begins_the_prompt_changes_the_count_and_nothing_else(stub):
    plain = await generate(stub, prompt="The Queen")
    begun = await generate(stub, prompt="The Queen", add_special_tokens=True)
    assert output(plain) == output(begun)
    assert (plain.usage.prompt_tokens, begun.usage.prompt_tokens) == (2, 3)


async def test_a_prompt_cut_to_its_end_is_the_prompt_of_its_end(stub, oracle):
    text = "The Queen said to Alice that she was"
    ids = oracle.encode(text)
    for count in (1, 3, len(ids), 5000):
        cut = await generate(stub, prompt=text, truncate_prompt_tokens=count, temperature=0)
        by_ids = await generate(stub, prompt_token_ids=ids, truncate_prompt_tokens=count, temperature=0)
        alone = await generate(stub, prompt_token_ids=ids[-count:], temperature=0)
        assert output(cut) == output(by_ids) == output(alone)
        assert cut.usage.prompt_tokens == alone.usage.prompt_tokens == min(count, len(ids))


async def test_an_echo_is_the_prompt_and_then_the_same_output(stub, oracle):
    plain = await generate(stub, prompt="The Queen", n=2, stop=["Queen", ","])
    echoed = await generate(stub, prompt="The Queen", n=2, stop=["Queen", ","], echo=True)
    for one, other in zip(plain.choices, echoed.choices, strict=True):
        assert other.text == "The Queen" + one.text
        assert ids_of(other.tokens) == oracle.encode("The Queen") + ids_of(one.tokens)
        assert [token.position for token in other.tokens.tokens] == list(range(len(other.tokens.tokens)))
        assert other.finish == one.finish
    assert echoed.usage == plain.usage


async def test_a_conversation_is_the_prompt_that_tokenize_tells(stub):
    chat = [ChatMessage(role="system", content="Be mad."), ChatMessage(role="user", content="Who\nare you?")]
    told = await stub.Tokenize(TokenizeRequest(messages=chat))
    by_chat = await generate(stub, messages=chat, echo=True)
    by_ids = await generate(stub, prompt_token_ids=ids_of(told.tokens), echo=True)
    assert by_chat.text == by_ids.text
    assert by_chat.text.startswith("system: Be mad.\nuser: Who\n are you?\nassistant:")
    assert by_chat.usage.prompt_tokens == len(told.tokens.tokens)


@pytest.mark.parametrize(("include", "skip", "ids", "text"), [
    (False, None, [], ""),
    (True, None, [0], ""),
    (True, True, [0], ""),
    (True, False, [0], "<|endoftext|>"),
])  # fmt: skip
async def test_the_end_of_sequence_may_be_a_stop_token(stub, include, skip, ids, text):
    fields = {"stop_token_ids": [0], "logit_bias": {0: 100}, "include_stop": include, "skip_special_tokens": skip}
    for ignore_eos in (False, True):
        reply = await generate(stub, prompt="The", ignore_eos=ignore_eos, **fields)
        assert (output(reply), reply.text) == (ids, text)
        assert reply.choices[0].finish.stop_token_id == 0
        assert reply.choices[0].finish.HasField("stop_token_id")
        assert [(token.is_special, token.data) for token in reply.choices[0].tokens.tokens] == [
            (True, b"<|endoftext|>") for _ in ids
        ]


async def test_options_of_sampling_work_together_with_those_of_the_prompt(stub, oracle):
    [comma], [the] = oracle.encode(","), oracle.encode(" the")
    fields = {"messages": [ChatMessage(role="user", content="x")], "truncate_prompt_tokens": 2, "echo": True}
    reply = await generate(stub, **fields, logit_bias={the: 100}, stop_token_ids=[comma], min_tokens=3, max_tokens=4)
    assert output(reply)[2:] == [the] * 4
    forced = await generate(stub, **fields, logit_bias={comma: 100}, stop_token_ids=[comma], min_tokens=3)
    assert len(output(forced)) == 2 + 3
    assert forced.choices[0].finish.stop_token_id == comma
    assert forced.usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": " the" * 2048}, "the prompt has 2048 tokens; at most 2047 fit into the context of model"),
        ({"prompt": "x" * 4_000_000}, "the prompt has at least 307693 tokens; at most 2047 fit"),
        ({"prompt_token_ids": [300] * 2048}, "prompt_token_ids has 2048 tokens; at most 2047 fit"),
        ({"prompt_token_ids": [1, 2048]}, "prompt_token_ids has token 2048, model ngram-alice knows tokens below 2048"),
        ({"prompt": "", "logit_bias": {5000: 1.0}}, "logit_bias has token 5000, model ngram-alice knows tokens below"),
        ({"prompt": "", "stop_token_ids": [4096]}, "stop_token_ids has token 4096, model ngram-alice knows tokens"),
        ({"prompt": "a", "tools": [{"name": "f"}]}, "tools=[name: \"f\"] is not supported by model ngram-alice"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_before_the_start(stub, fields, said):
    error, messages = await failure(stub.StreamGenerate(GenerateRequest(**fields)))
    assert (error.code(), error.details()[: len(said)], messages) == (grpc.StatusCode.INVALID_ARGUMENT, said, [])


async def test_the_longest_prompt_has_one_token_of_output(stub):
    reply = await generate(stub, prompt=" the" * 2047, ignore_eos=True)
    assert (reply.usage.prompt_tokens, len(output(reply))) == (2047, 1)


async def test_a_text_goes_to_tokens_and_back(stub, oracle):
    text = "“Off with her head!” — naïve 日本 👩‍👩‍👧\r\n<|endoftext|>"
    told = await stub.Tokenize(TokenizeRequest(text=text, add_special_tokens=True))
    assert ids_of(told.tokens) == [0, *oracle.encode(text)]
    assert "".join(token.text for token in told.tokens.tokens) == text
    assert b"".join(token.data for token in told.tokens.tokens[1:]) == text.encode()
    assert told.context_length == 2048
    back = await stub.Detokenize(DetokenizeRequest(token_ids=ids_of(told.tokens)))
    assert back.text == text
    whole = await stub.Detokenize(DetokenizeRequest(token_ids=ids_of(told.tokens), skip_special_tokens=False))
    assert whole.text == "<|endoftext|>" + text


async def test_other_calls_have_their_turn_while_a_long_text_is_split(stub):
    text = " ".join(f"{number:x}" for number in range(50_000))
    began_s = time.monotonic()
    splitting = asyncio.ensure_future(stub.Tokenize(TokenizeRequest(text=text), timeout=60))
    longest_s = 0.0
    answers = 0
    while not splitting.done():
        asked_s = time.monotonic()
        await stub.Detokenize(DetokenizeRequest(token_ids=[741]))
        longest_s = max(longest_s, time.monotonic() - asked_s)
        answers += 1
    split_s = time.monotonic() - began_s
    assert "".join(token.text for token in (await splitting).tokens.tokens) == text
    assert answers > 10
    assert longest_s < split_s / 2


class TestEmbeddings:
    async def embed(self, stub, *texts, **fields):
        wanted = EmbedRequest(inputs=[EmbedInput(text=text) for text in texts], **fields)
        reply = await stub.Embed(wanted, timeout=60)
        return reply, [Tensor.from_proto(tensor).to_numpy() for tensor in reply.embeddings]

    async def test_they_are_the_mean_of_the_signed_features(self, stub, oracle):
        reply, [vector] = await self.embed(stub, "the Queen, The Queen")
        expected = np.zeros(256)
        expected[0x5E], expected[0xF9], expected[0x06] = 2 / 5, -2 / 5, 1 / 5  # of b2sum -l 64: the, queen, comma
        assert vector.tolist() == expected.astype(np.float32).tolist()
        assert (reply.usage.prompt_tokens, reply.usage.estimated) == (5, False)

    async def test_scaled_ones_have_length_one_and_tell_similarity(self, stub):
        texts = ["the Queen of Hearts", "The King of Hearts", "a very small golden key"]
        _, vectors = await self.embed(stub, *texts, normalize=True, dtype=DataType.DATA_TYPE_FLOAT64)
        assert [math.fsum(vector**2) for vector in vectors] == pytest.approx([1, 1, 1])
        assert vectors[0] @ vectors[1] > 0.5
        assert vectors[0] @ vectors[2] < 0.2

    async def test_without_pooling_there_is_a_row_for_each_token(self, stub, oracle):
        _, [rows] = await self.embed(stub, "the Queen, the", pooling=Pooling.POOLING_NONE)
        _, [mean] = await self.embed(stub, "the Queen, the", pooling=Pooling.POOLING_MEAN)
        _, [largest] = await self.embed(stub, "the Queen, the", pooling=Pooling.POOLING_MAX)
        _, [first] = await self.embed(stub, "the Queen, the", pooling=Pooling.POOLING_CLS)
        assert rows.shape == (4, 256)
        assert rows.sum(axis=0).tolist() == (mean * 4).tolist()
        assert largest.tolist() == rows.max(axis=0).tolist()
        assert first.tolist() == rows[0].tolist() == rows[3].tolist()

    async def test_leading_dimensions_are_the_leading_ones(self, stub):
        _, [whole] = await self.embed(stub, "the Queen, the", normalize=False)
        _, [cut] = await self.embed(stub, "the Queen, the", dimensions=100)
        assert cut.tolist() == whole[:100].tolist()

    async def test_many_inputs_and_long_ones_are_embedded(self, stub):
        _, vectors = await self.embed(stub, *["the Queen"] * 2047, " the" * 2048)
        assert len(vectors) == 2048
        assert {vector.tobytes() for vector in vectors[:-1]} == {vectors[0].tobytes()}
        assert vectors[-1].tolist() == [float(at == 0x5E) for at in range(256)]

    async def test_an_input_beyond_the_context_is_refused(self, stub):
        wanted = EmbedRequest(inputs=[EmbedInput(text="a"), EmbedInput(text=" the" * 2049)])
        error, _ = await failure(stub.Embed(wanted))
        assert error.details().startswith("inputs[1] has 2049 tokens; at most 2048 fit into the context")
