"""Embed over a real gRPC server: what goes to the embedder, what becomes of its vectors, and what is refused."""

import asyncio

import grpc
import numpy as np
import pytest

from llm.scripted import ByteTokenizer, ScriptedBackend, failure, served
from quill.generation import Usage
from quill.limits import Limits
from quill.llm import Embedding, ModelInfo, Timeouts, UsageReport
from quill.llm.embedding import embed
from quill.llm.patience import Patience
from quill.proto import DataType, EmbedInput, EmbedRequest, GetModelRequest, Pooling, TokenIds
from quill.tensor import Tensor


class ScriptedEmbedder:
    """Two dimensions: of a text its length and 2, of ids one row (id, 1) for each, unless it is told other events."""

    def __init__(self, events=None, **changes):
        self.dimensions = 2
        self.per_token = False
        self.pooling = Pooling.POOLING_UNSPECIFIED
        self.normalized = False
        self.shortens = True
        vars(self).update(changes)
        self._events = events
        self.inputs = []
        self.closed = 0

    async def embed(self, inputs):
        self.inputs.append(list(inputs))
        try:
            for event in self._events or map(self._embedding, inputs):
                if isinstance(event, asyncio.Event):
                    await event.wait()
                elif isinstance(event, Exception):
                    raise event
                else:
                    yield event
        finally:
            self.closed += 1

    def _embedding(self, item):
        if self.per_token:
            return Embedding(np.array([(id_, 1) for id_ in item], np.float32))
        return Embedding(np.array([len(item), 2], np.float32))


TEXTS = {"name": "m", "context_length": 10, "vocab_size": 300}
IDS = {**TEXTS, "text_prompt": False, "token_prompt": True, "tokenizer": ByteTokenizer()}


def request(*inputs, **fields):
    made = [
        EmbedInput(text=item) if isinstance(item, str) else EmbedInput(token_ids=TokenIds(ids=item)) for item in inputs
    ]
    return EmbedRequest(inputs=made, **fields)


async def embedded(embedder, wanted, *, of=TEXTS, **options):
    backend = ScriptedBackend(models=(ModelInfo(**of, embedder=embedder),))
    async with served(backend, **options) as (_, stub):
        return await stub.Embed(wanted, timeout=10)


async def refused(embedder, wanted, *, of=TEXTS, **options):
    backend = ScriptedBackend(models=(ModelInfo(**of, embedder=embedder),))
    async with served(backend, **options) as (_, stub):
        error, _ = await failure(stub.Embed(wanted))
    return error.code(), error.details()


def values(reply):
    return [Tensor.from_proto(tensor).to_numpy().tolist() for tensor in reply.embeddings]


def rows(**changes):
    return ScriptedEmbedder(per_token=True, pooling=Pooling.POOLING_MEAN, **changes)


async def test_there_is_one_vector_per_text_in_order():
    embedder = ScriptedEmbedder()
    reply = await embedded(embedder, request("abc", "d"))
    assert reply.model == "m"
    assert values(reply) == [[3, 2], [1, 2]]
    assert {tensor.meta.dtype for tensor in reply.embeddings} == {DataType.DATA_TYPE_FLOAT32}
    assert [list(tensor.meta.shape) for tensor in reply.embeddings] == [[2], [2]]
    assert embedder.inputs == [["abc", "d"]]
    assert embedder.closed == 1


async def test_texts_and_ids_are_ids_for_a_model_of_ids():
    embedder = rows()
    reply = await embedded(embedder, request("ab", [7, 9]), of=IDS)
    assert embedder.inputs == [[[98, 99], [7, 9]]]
    assert values(reply) == [[98.5, 1], [8, 1]]
    assert (reply.usage.prompt_tokens, reply.usage.estimated) == (4, False)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (Pooling.POOLING_UNSPECIFIED, [6, 1]),
        (Pooling.POOLING_MEAN, [6, 1]),
        (Pooling.POOLING_CLS, [7, 1]),
        (Pooling.POOLING_LAST, [2, 1]),
        (Pooling.POOLING_MAX, [9, 1]),
        (Pooling.POOLING_NONE, [[7, 1], [9, 1], [2, 1]]),
    ],
)
async def test_rows_of_tokens_are_pooled_as_asked(pooling, expected):
    assert values(await embedded(rows(), request([7, 9, 2], pooling=pooling), of=IDS)) == [expected]


async def test_vectors_are_scaled_cut_and_converted_as_asked():
    embedder = rows(events=[Embedding(np.array([[3.0, 4.0]]))])
    reply = await embedded(embedder, request([1], normalize=True, dtype=DataType.DATA_TYPE_FLOAT64), of=IDS)
    assert values(reply) == [[3 / 5, 4 / 5]]
    assert reply.embeddings[0].meta.dtype == DataType.DATA_TYPE_FLOAT64
    reply = await embedded(embedder, request([1], dimensions=1, normalize=False), of=IDS)
    assert values(reply) == [[3]]
    reply = await embedded(embedder, request([1], dimensions=1, normalize=True, dtype="DATA_TYPE_BFLOAT16"), of=IDS)
    assert reply.embeddings[0].data == b"\x80\x3f", "1.0 as bfloat16: the upper half of a binary32"


async def test_vectors_that_come_scaled_are_scaled_again_after_a_cut():
    embedder = ScriptedEmbedder([Embedding(np.array([0.6, 0.8]))], normalized=True)
    assert values(await embedded(embedder, request("a", dimensions=1))) == [[1]]


async def test_a_large_array_is_pooled_as_well():
    many = rows(events=[Embedding(np.ones((20_000, 2), np.float32))])
    assert values(await embedded(many, request([1]), of=IDS)) == [[1, 1]]


@pytest.mark.parametrize(
    ("events", "of", "usage"),
    [
        ([], TEXTS, Usage(prompt_tokens=3, estimated=True)),
        ([], IDS, Usage(prompt_tokens=9)),
        ([UsageReport(Usage(4, 0, 1)), UsageReport(Usage(5, 0, 2))], TEXTS, Usage(9, 0, 3)),
        ([UsageReport(Usage(4, estimated=True))], IDS, Usage(4, estimated=True)),
    ],
)
async def test_usage_is_the_engines_own_or_the_tokens_given_or_an_estimate(events, of, usage):
    embedder = ScriptedEmbedder([*events, Embedding(np.zeros(2)), Embedding(np.zeros(2))])
    got = (await embedded(embedder, request("abcde", "efgh"), of=of)).usage
    assert Usage(got.prompt_tokens, got.completion_tokens, got.cached_tokens, 0, got.estimated) == usage


INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
MEAN_ONLY = {"pooling": Pooling.POOLING_MEAN}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (request(), "inputs has 0 inputs, must be from 1 to 2048"),
        (request(*["a"] * 2049), "inputs has 2049 inputs, must be from 1 to 2048"),
        (EmbedRequest(inputs=[EmbedInput(text="a"), EmbedInput()]), "inputs[1] has no input: give text or token_ids"),
        (request("a", ""), "inputs[1].text is empty: there is nothing to embed"),
        (request([]), "inputs[0].token_ids is empty: there is nothing to embed"),
        (request("a", [1, 300]), "inputs[1].token_ids has token 300, model m knows tokens below 300"),
        (request([1] * 11), "inputs[0] has 11 tokens; at most 10 fit into the context of model m, 10 tokens"),
        (request("x" * 11), "inputs[0] has at least 11 tokens; at most 10 fit into the context of model m, 10 tokens"),
        (request("a", pooling=77), "pooling=77 is not known; there are 0 to 5"),
        (request("a", dimensions=0), "dimensions=0 must be from 1 to 2 for model m"),
        (request("a", dimensions=3), "dimensions=3 must be from 1 to 2 for model m"),
        (
            request("a", dtype=DataType.DATA_TYPE_INT8),
            "dtype=DATA_TYPE_INT8 is not supported: embeddings come as float32, float16, bfloat16, float64",
        ),
        (request("a", dtype=DataType.DATA_TYPE_FLOAT8_E5M2), "dtype=DATA_TYPE_FLOAT8_E5M2 is not supported"),
        (request("a", dtype=99), "dtype=99 is not supported"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
async def test_what_makes_no_sense_is_refused_by_name_and_value(wanted, said):
    embedder = rows()
    code, details = await refused(embedder, wanted, of=IDS)
    assert (code, details[: len(said)]) == (INVALID, said)
    assert embedder.inputs == []


@pytest.mark.parametrize(
    ("embedder", "wanted", "said"),
    [
        ({}, request([1]), "inputs[0].token_ids is not supported by model m"),
        ({}, request("a", pooling=1), "pooling=POOLING_MEAN is not supported by model m: leave pooling out"),
        (
            MEAN_ONLY,
            request("a", pooling=5),
            "pooling=POOLING_NONE is not supported by model m: it pools by POOLING_MEAN",
        ),
        (
            {"normalized": True},
            request("a", normalize=False),
            "normalize=false is not supported by model m: its vectors come scaled to length 1",
        ),
        (
            {"shortens": False},
            request("a", dimensions=1),
            "dimensions=1 is not supported by model m: its vectors are of use only with all 2 dimensions",
        ),
    ],
)
async def test_what_the_model_cannot_do_is_refused_by_name_and_value(embedder, wanted, said):
    assert await refused(ScriptedEmbedder(**embedder), wanted) == (INVALID, said)


async def test_what_the_model_does_anyway_may_be_asked_for():
    embedder = ScriptedEmbedder(**MEAN_ONLY, normalized=True, shortens=False)
    wanted = request("abc", pooling=Pooling.POOLING_MEAN, normalize=True, dimensions=2)
    assert len((await embedded(embedder, wanted)).embeddings) == 1


async def test_a_text_for_a_model_of_ids_without_a_tokenizer_is_refused():
    of = {**IDS, "tokenizer": None}
    assert await refused(rows(), request("a"), of=of) == (INVALID, "inputs[0].text is not supported by model m")


async def test_a_text_without_tokens_is_refused():
    class Deaf(ByteTokenizer):
        async def encode(self, text, *, add_special_tokens=None):
            return await self.decode([])

    code, said = await refused(rows(), request("a", "\n"), of={**IDS, "tokenizer": Deaf()})
    assert (code, said) == (INVALID, "inputs[0].text='a' has no tokens: there is nothing to embed")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (request("é" * 4, "abc"), "inputs has 11 bytes of text, max_prompt_bytes is 10"),
        (request([1] * 9, [2] * 2), "inputs has 11 tokens, max_prompt_bytes is 10"),
    ],
)
async def test_inputs_over_the_limit_are_refused_with_both_numbers(wanted, said):
    code, details = await refused(rows(), wanted, of=IDS, limits=Limits(max_prompt_bytes=10))
    assert (code, details[: len(said)]) == (EXHAUSTED, said)


async def test_a_reply_larger_than_a_message_is_refused_and_the_embedder_closed():
    embedder = ScriptedEmbedder()
    code, said = await refused(embedder, request(*["a"] * 20), limits=Limits(max_reply_bytes=100))
    assert code == EXHAUSTED
    assert "the embeddings of 6 of 20 inputs have 102 bytes and max_reply_bytes is 100" in said
    assert embedder.closed == 1


async def test_a_silent_embedder_is_given_up_and_closed():
    embedder = ScriptedEmbedder([Embedding(np.zeros(2)), asyncio.Event()])
    code, said = await refused(embedder, request("a", "b"), timeouts=Timeouts(backend_idle_timeout_s=0.05))
    assert (code, said) == (grpc.StatusCode.DEADLINE_EXCEEDED, "backend scripted gave nothing for 0.05 s")
    assert embedder.closed == 1


async def test_a_client_that_goes_away_closes_the_embedder():
    embedder = ScriptedEmbedder([asyncio.Event()])
    backend = ScriptedBackend(models=(ModelInfo(**TEXTS, embedder=embedder),))
    async with served(backend) as (_, stub):
        call = stub.Embed(request("a"))
        reading = asyncio.ensure_future(failure(call))
        async with asyncio.timeout(10):
            while not embedder.inputs:  # the embedder sets no event
                await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.wait({reading})
            while not embedder.closed:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "events",
    [
        [Embedding(np.zeros(2))],
        [Embedding(np.zeros(2))] * 3,
        [Embedding(np.zeros(3)), Embedding(np.zeros(2))],
        [Embedding(np.zeros((1, 2)))] * 2,
        [RuntimeError("secret zebra")],
    ],
)
async def test_an_embedder_that_is_wrong_is_an_internal_error_without_its_text(events):
    code, said = await refused(ScriptedEmbedder(events), request("a", "b"))
    assert code == grpc.StatusCode.INTERNAL
    assert said.startswith("internal error; reference ")


async def test_rows_for_no_token_are_an_internal_error():
    code, _ = await refused(rows(events=[Embedding(np.zeros((0, 2)))]), request([1]), of=IDS)
    assert code == grpc.StatusCode.INTERNAL


async def test_others_have_their_turn_between_inputs():
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count_turns())
    patience = Patience(backend="b", limit_s=10, close_limit_s=10)
    await embed(request(*["ab"] * 500), ModelInfo(**IDS, embedder=rows()), Limits(), patience)
    counting.cancel()
    assert turns >= 1000, "one for each text that is split and one for each vector"


async def test_the_model_says_that_it_embeds():
    backend = ScriptedBackend(models=(ModelInfo(**TEXTS, embedder=ScriptedEmbedder()),))
    async with served(backend) as (_, stub):
        capabilities = (await stub.GetModel(GetModelRequest())).model.capabilities
    assert "embed" in capabilities
    assert "tokenize" not in capabilities
