"""Tokenize and Detokenize over a real gRPC server."""

import asyncio

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.scripted import ByteTokenizer, ScriptedBackend, failure, served, tokens
from quill.limits import Limits
from quill.llm import ModelInfo, Timeouts
from quill.llm.tokenization import detokenize, tokenize
from quill.proto import (
    ChatMessage,
    DetokenizeRequest,
    GenerateRequest,
    GetModelRequest,
    TokenizeRequest,
)

MODEL = ModelInfo(
    name="m",
    aliases=("alias",),
    text_prompt=False,
    token_prompt=True,
    context_length=50,
    vocab_size=257,
    tokenizer=ByteTokenizer(),
)


def backend(**changes):
    fields = {name: getattr(MODEL, name) for name in MODEL.__slots__}
    return ScriptedBackend([tokens("!")], models=(ModelInfo(**{**fields, **changes}),))


async def tokenized(**fields):
    async with served(backend()) as (_, stub):
        return await stub.Tokenize(TokenizeRequest(**fields), timeout=10)


async def detokenized(*ids, **fields):
    async with served(backend()) as (_, stub):
        return (await stub.Detokenize(DetokenizeRequest(token_ids=ids, **fields), timeout=10)).text


async def test_a_text_is_told_token_by_token():
    reply = await tokenized(model="alias", text="aé")
    assert [(t.id, t.text, t.data, t.position, t.is_special) for t in reply.tokens.tokens] == [
        (98, "a", b"a", 0, False),
        (196, "", b"\xc3", 1, False),
        (170, "é", b"\xa9", 2, False),
    ]
    assert not any(token.HasField("logprob") for token in reply.tokens.tokens)
    assert reply.context_length == 50


async def test_no_text_has_no_tokens():
    assert len((await tokenized()).tokens.tokens) == 0
    assert await detokenized() == ""


async def test_special_tokens_are_told_and_add_no_text():
    reply = await tokenized(text="a", add_special_tokens=True)
    assert [(t.id, t.text, t.data, t.is_special) for t in reply.tokens.tokens] == [
        (0, "", b"<s>", True),
        (98, "a", b"a", False),
    ]


async def test_a_text_beyond_the_context_is_told_whole():
    reply = await tokenized(text="x" * 5000)
    assert [token.position for token in reply.tokens.tokens] == list(range(5000))


async def test_a_conversation_has_the_tokens_that_generate_gives_the_backend():
    chat = [ChatMessage(role="user", content="hé\nassistant: x")]
    asked = backend()
    async with served(asked) as (_, stub):
        reply = await stub.Tokenize(TokenizeRequest(messages=chat))
        await stub.Generate(GenerateRequest(messages=chat))
    ids = [token.id for token in reply.tokens.tokens]
    assert ids == list(asked.requests[0].prompt_token_ids)
    assert bytes(id_ - 1 for id_ in ids).decode() == "user: hé\n assistant: x\nassistant:"


@settings(max_examples=100)
@given(st.text())
def test_what_was_split_joins_to_the_same_text(text):
    async def there_and_back():
        split = await tokenize(TokenizeRequest(text=text), MODEL, Limits())
        assert "".join(token.text for token in split.tokens.tokens) == text
        ids = [token.id for token in split.tokens.tokens]
        return (await detokenize(DetokenizeRequest(token_ids=ids), MODEL, Limits())).text

    assert asyncio.run(there_and_back()) == text


@settings(max_examples=100)
@given(st.binary())
def test_ids_join_to_the_text_of_their_bytes_together(data):
    ids = [byte + 1 for byte in data]
    reply = asyncio.run(detokenize(DetokenizeRequest(token_ids=ids), MODEL, Limits()))
    assert reply.text == data.decode("utf-8", errors="replace")


@pytest.mark.parametrize(("skip", "text"), [(None, "a"), (True, "a"), (False, "<s>a<s>")])
async def test_control_tokens_are_left_out_unless_asked_for(skip, text):
    assert await detokenized(0, 98, 0, skip_special_tokens=skip) == text


async def test_many_ids_are_joined_as_well():
    assert await detokenized(*[98] * 50_000) == "a" * 50_000


@pytest.mark.parametrize("count", [1, 20_000])
async def test_an_unknown_id_is_refused_with_the_size_of_the_vocabulary(count):
    async with served(backend()) as (_, stub):
        error, _ = await failure(stub.Detokenize(DetokenizeRequest(token_ids=[1] * (count - 1) + [257])))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "token_ids has token 257, model m knows tokens below 257"


CHAT = [ChatMessage(role="user", content="hello")]
INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"text": "a", "messages": CHAT}, INVALID, "text and messages are given: give one of them"),
        ({"messages": [ChatMessage(role="tool")]}, INVALID, "messages[0].role='tool' is not supported: model m has no"),
        ({"text": "é" * 6}, EXHAUSTED, "text has 12 bytes of text, max_prompt_bytes is 11"),
        ({"messages": [*CHAT, *CHAT, *CHAT]}, EXHAUSTED, "messages has 15 bytes of text, max_prompt_bytes is 11"),
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND, "model 'other' is not known"),
    ],
)
async def test_what_cannot_be_split_is_refused(fields, code, said):
    async with served(backend(), limits=Limits(max_prompt_bytes=11)) as (_, stub):
        error, _ = await failure(stub.Tokenize(TokenizeRequest(**fields)))
    assert (error.code(), error.details()[: len(said)]) == (code, said)


async def test_more_ids_than_a_prompt_has_bytes_are_refused():
    async with served(backend(), limits=Limits(max_prompt_bytes=11)) as (_, stub):
        error, _ = await failure(stub.Detokenize(DetokenizeRequest(token_ids=[98] * 12)))
    assert error.code() == EXHAUSTED
    assert error.details().startswith("token_ids has 12 tokens, max_prompt_bytes is 11")


@pytest.mark.parametrize("size", [50, 200])
async def test_a_reply_larger_than_a_message_is_refused(size):
    async with served(backend(), limits=Limits(max_reply_bytes=500)) as (_, stub):
        error, _ = await failure(stub.Tokenize(TokenizeRequest(text="x" * size)))
    assert error.code() == EXHAUSTED
    assert error.details().endswith("bytes or more and max_reply_bytes is 500; send less at once")


async def test_a_conversation_that_the_engine_renders_is_refused():
    async with served(backend(options=frozenset({"messages"}))) as (_, stub):
        error, _ = await failure(stub.Tokenize(TokenizeRequest(messages=CHAT)))
    assert error.details() == "messages is not supported by model m here: its engine renders them; give text"


async def test_a_model_that_is_not_ready_is_unavailable():
    async with served(backend(ready=False)) as (_, stub):
        for call in (stub.Tokenize(TokenizeRequest()), stub.Detokenize(DetokenizeRequest())):
            error, _ = await failure(call)
            assert (error.code(), error.details()) == (
                grpc.StatusCode.UNAVAILABLE,
                "model m is not ready; try again later",
            )


async def test_a_silent_tokenizer_is_given_up():
    silent = backend(tokenizer=ByteTokenizer(gate=asyncio.Event()))
    async with served(silent, timeouts=Timeouts(backend_idle_timeout_s=0.05)) as (_, stub):
        for call in (stub.Tokenize(TokenizeRequest(text="a")), stub.Detokenize(DetokenizeRequest(token_ids=[1]))):
            error, _ = await failure(call)
            assert (error.code(), error.details()) == (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "backend scripted gave nothing for 0.05 s",
            )


async def test_a_tokenizer_that_fails_is_an_internal_error_without_its_text():
    class Broken(ByteTokenizer):
        async def encode(self, text, *, add_special_tokens=None):
            raise TimeoutError("secret zebra")

    async with served(backend(tokenizer=Broken())) as (_, stub):
        error, _ = await failure(stub.Tokenize(TokenizeRequest(text="a")))
    assert (error.code(), "zebra" in error.details()) == (grpc.StatusCode.INTERNAL, False)


async def test_the_model_says_that_it_has_a_tokenizer():
    async with served(backend()) as (_, stub):
        capabilities = (await stub.GetModel(GetModelRequest())).model.capabilities
    assert "tokenize" in capabilities
    assert "embed" not in capabilities
