"""What becomes of a prompt above the backend: rendered, split, cut, echoed; and what the backend tells of it."""

import asyncio

import grpc
import pytest

from llm.scripted import ByteTokenizer, ScriptedBackend, failure, finished, served, tokens
from quill.generation import Usage
from quill.llm import Candidate, ModelInfo, Progress, PromptTokens, Reasoning, Seeded, UsageReport
from quill.proto import ChatMessage, GenerateRequest

HELLO = [byte + 1 for byte in b"hello"]


def model(*options, **rest):
    fields = {"text_prompt": False, "token_prompt": True, "tokenizer": ByteTokenizer(), "context_length": 100}
    return ModelInfo(name="m", options=frozenset(options), **{"default_max_tokens": 10, **fields, **rest})


async def asked(of, **fields):
    """The request that the backend gets."""
    backend = ScriptedBackend([tokens("!")], models=(of,))
    async with served(backend) as (_, stub):
        await stub.Generate(GenerateRequest(**fields), timeout=10)
    return backend.requests[0]


async def refused(of, **fields):
    """The message and the code that a request ends with; no part of a generation comes before it."""
    backend = ScriptedBackend([tokens("!")], models=(of,))
    async with served(backend) as (_, stub):
        error, messages = await failure(stub.StreamGenerate(GenerateRequest(**fields)))
    assert messages == []
    assert backend.starts == 0
    return error.details(), error.code()


async def stream(stub, wanted):
    async with asyncio.timeout(10):
        return [message async for message in stub.StreamGenerate(wanted)]


async def test_a_model_of_token_ids_gets_the_tokens_of_a_text():
    got = await asked(model(), prompt="hello")
    assert list(got.prompt_token_ids) == HELLO
    assert not got.HasField("prompt")


async def test_an_empty_prompt_is_no_tokens():
    assert list((await asked(model(), prompt="")).prompt_token_ids) == []


@pytest.mark.parametrize(
    ("habit", "wanted", "begins"),
    [(False, None, 0), (False, False, 0), (False, True, 1), (True, None, 1), (True, False, 0), (True, True, 1)],
)
async def test_special_tokens_begin_a_prompt_as_asked_or_by_habit(habit, wanted, begins):
    got = await asked(model(tokenizer=ByteTokenizer(habit=habit)), prompt="hello", add_special_tokens=wanted)
    assert list(got.prompt_token_ids) == [0] * begins + HELLO
    assert not got.HasField("add_special_tokens")


@pytest.mark.parametrize("count", [1, 3, 5, 6, 1000])
async def test_a_prompt_is_cut_to_its_last_tokens(count):
    got = await asked(model(), prompt="hello", truncate_prompt_tokens=count, add_special_tokens=True)
    assert list(got.prompt_token_ids) == ([0, *HELLO])[-count:]
    assert not got.HasField("truncate_prompt_tokens")
    got = await asked(model(tokenizer=None), prompt_token_ids=HELLO, truncate_prompt_tokens=count)
    assert list(got.prompt_token_ids) == HELLO[-count:]
    assert not got.HasField("truncate_prompt_tokens")


async def test_text_stays_text_where_the_engine_takes_it_and_nothing_needs_its_tokens():
    tokenizer = ByteTokenizer()
    got = await asked(model(text_prompt=True, tokenizer=tokenizer), prompt="hello")
    assert (got.prompt, list(got.prompt_token_ids), tokenizer.texts) == ("hello", [], [])
    got = await asked(model(text_prompt=True), prompt="hello", truncate_prompt_tokens=2)
    assert (got.prompt, list(got.prompt_token_ids)) == ("", HELLO[-2:])


async def test_what_the_engine_does_itself_is_left_to_it():
    own = model("add_special_tokens", "truncate_prompt_tokens", "echo", text_prompt=True)
    got = await asked(own, prompt="hello", add_special_tokens=True, truncate_prompt_tokens=2, echo=True)
    assert (got.prompt, got.add_special_tokens, got.truncate_prompt_tokens, got.echo) == ("hello", True, 2, True)


async def test_a_conversation_is_a_prompt_by_the_template():
    chat = [ChatMessage(role="user", content="hello")]
    got = await asked(model(text_prompt=True), messages=chat)
    assert (got.prompt, len(got.messages)) == ("user: hello\nassistant:", 0)
    got = await asked(model(), messages=chat)
    assert list(got.prompt_token_ids) == [byte + 1 for byte in b"user: hello\nassistant:"]
    assert len(got.messages) == 0


async def test_a_conversation_is_left_to_an_engine_that_renders_it():
    chat = [ChatMessage(role="developer", content="hello")]
    got = await asked(model("messages", text_prompt=True), messages=chat)
    assert (list(got.messages), got.HasField("prompt"), list(got.prompt_token_ids)) == (chat, False, [])


async def test_a_long_conversation_is_rendered_as_well():
    chat = [ChatMessage(role="user", content="x" * 10_000)]
    got = await asked(model(text_prompt=True), messages=chat)
    assert got.prompt == "user: " + "x" * 10_000 + "\nassistant:"


@pytest.mark.parametrize("size", [100, 250])
async def test_a_prompt_without_room_for_output_is_refused_before_the_start(size):
    said, code = await refused(model(), prompt="x" * size)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert said == (
        f"the prompt has at least {size} tokens; at most 99 fit into the context of model m, "
        "100 tokens of prompt and output"
    )


async def test_a_text_that_cannot_fit_is_not_split():
    tokenizer = ByteTokenizer()
    await refused(model(tokenizer=tokenizer), prompt="x" * 100)
    assert tokenizer.texts == []


async def test_the_tokens_that_begin_a_prompt_take_room_too():
    said, _ = await refused(model(), prompt="x" * 99, add_special_tokens=True)
    assert said.startswith("the prompt has 100 tokens; at most 99 fit")
    assert len((await asked(model(), prompt="x" * 99)).prompt_token_ids) == 99


async def test_a_prompt_that_is_cut_may_be_longer_than_the_context():
    assert len((await asked(model(), prompt="x" * 5000, truncate_prompt_tokens=99)).prompt_token_ids) == 99
    said, _ = await refused(model(), prompt="x" * 5000, truncate_prompt_tokens=100)
    assert said.startswith("the prompt has 100 tokens; at most 99 fit")


async def test_a_run_is_cancelled_while_its_prompt_is_split():
    tokenizer = ByteTokenizer(gate=asyncio.Event())
    backend = ScriptedBackend([tokens("!")], models=(model(tokenizer=tokenizer),))
    async with served(backend) as (_, stub):
        call = stub.Generate(GenerateRequest(prompt="hello"))
        reading = asyncio.ensure_future(failure(call))
        async with asyncio.timeout(10):
            while not tokenizer.texts:  # the tokenizer sets no event
                await asyncio.sleep(0.001)
        call.cancel()
        await asyncio.wait({reading}, timeout=10)
    assert backend.starts == 0


class TestEcho:
    """The prompt before the output."""

    async def test_prompt_and_output_are_one_sequence_with_one_numbering(self):
        backend = ScriptedBackend([tokens("A", "B", ids=[66, 67], logprobs=[-1.0, -2.0])], models=(model("logprobs"),))
        async with served(backend) as (_, stub):
            reply = await stub.Generate(GenerateRequest(prompt="hé", echo=True, logprobs=0))
            messages = await stream(stub, GenerateRequest(prompt="hé", echo=True, logprobs=0))
        assert reply.text == "héAB"
        listed = list(reply.choices[0].tokens.tokens)
        assert [token.id for token in listed] == [105, 196, 170, 66, 67]
        assert [token.text for token in listed] == ["h", "", "é", "A", "B"]
        assert [token.position for token in listed] == [0, 1, 2, 3, 4]
        assert [token.HasField("logprob") for token in listed] == [False, False, False, True, True]
        assert listed == [token for message in messages for token in message.delta.tokens.tokens]
        assert (
            list(reply.prompt_token_batch.tokens) == list(messages[0].started.prompt_token_batch.tokens) == listed[:3]
        )
        assert messages[-1].completed.entries == 8
        assert not backend.requests[0].echo

    async def test_usage_and_limits_are_those_of_the_output(self):
        never = asyncio.Event()
        backend = ScriptedBackend([tokens("a", "b", "c"), never], models=(model(),))
        async with served(backend) as (_, stub):
            reply = await stub.Generate(GenerateRequest(prompt="hello", echo=True, max_tokens=2))
        assert reply.text == "helloab"
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 2)

    async def test_stops_are_looked_for_in_the_output_alone(self):
        script = [tokens("o", "e", "l", "l", "o")]
        async with served(ScriptedBackend(script, models=(model(),))) as (_, stub):
            reply = await stub.Generate(GenerateRequest(prompt="hello", echo=True, stop=["ll", "oo"]))
        assert reply.text == "hellooe"
        assert reply.choices[0].finish.stop_text == "ll"

    async def test_every_sequence_has_it(self):
        for options in ([], ["n"]):
            script = [tokens("0")] if not options else [tokens("0"), tokens("1", sequence=1)]
            async with served(ScriptedBackend(script, models=(model(*options),))) as (_, stub):
                reply = await stub.Generate(GenerateRequest(prompt="hi", echo=True, n=2))
            assert [choice.text[:2] for choice in reply.choices] == ["hi", "hi"]
            assert [len(choice.tokens.tokens) for choice in reply.choices] == [3, 3]

    async def test_a_sequence_without_output_is_the_prompt(self):
        async with served(ScriptedBackend([finished()], models=(model(),))) as (_, stub):
            assert (await stub.Generate(GenerateRequest(prompt="hi", echo=True))).text == "hi"
        async with served(ScriptedBackend([], models=(model(),))) as (_, stub):
            assert (await stub.Generate(GenerateRequest(prompt="hi", echo=True))).text == "hi"

    async def test_it_comes_before_the_reasoning(self):
        script = [Reasoning("hm"), tokens("!")]
        async with served(ScriptedBackend(script, models=(model(),))) as (_, stub):
            messages = await stream(stub, GenerateRequest(prompt="hi", echo=True))
        assert [(m.delta.text, m.delta.reasoning) for m in messages if m.HasField("delta")] == [
            ("hi", ""),
            ("", "hm"),
            ("!", ""),
        ]

    async def test_token_ids_are_told_as_text(self):
        async with served(ScriptedBackend([tokens("!")], models=(model(),))) as (_, stub):
            wanted = GenerateRequest(prompt_token_ids=[0, *HELLO], echo=True, truncate_prompt_tokens=3)
            assert (await stub.Generate(wanted)).text == "llo!"

    @pytest.mark.parametrize(("skip", "text"), [(None, "hi!"), (True, "hi!"), (False, "<s>hi!")])
    async def test_special_tokens_are_told_and_add_text_only_on_demand(self, skip, text):
        of = model("skip_special_tokens")
        async with served(ScriptedBackend([tokens("!")], models=(of,))) as (_, stub):
            wanted = GenerateRequest(prompt="hi", echo=True, add_special_tokens=True, skip_special_tokens=skip)
            reply = await stub.Generate(wanted)
        assert reply.text == text
        first = reply.choices[0].tokens.tokens[0]
        assert (first.id, first.is_special, first.data) == (0, True, b"<s>")

    async def test_a_model_that_takes_no_ids_is_asked_with_the_text(self):
        of = model(text_prompt=True, token_prompt=False)
        backend = ScriptedBackend([tokens("!")], models=(of,))
        async with served(backend) as (_, stub):
            assert (await stub.Generate(GenerateRequest(prompt="hi", echo=True))).text == "hi!"
        assert backend.requests[0].prompt == "hi"

    async def test_a_conversation_is_echoed_as_the_model_got_it(self):
        async with served(ScriptedBackend([tokens(" Hi!")], models=(model(),))) as (_, stub):
            reply = await stub.Generate(GenerateRequest(messages=[ChatMessage(role="user", content="hi")], echo=True))
        assert reply.text == "user: hi\nassistant: Hi!"

    async def test_a_cut_character_of_the_prompt_stays_with_the_prompt(self):
        """The output's text is the same with and without an echo."""
        async with served(ScriptedBackend([tokens(b"\xa9!")], models=(model(),))) as (_, stub):
            reply = await stub.Generate(GenerateRequest(prompt_token_ids=[0xC3 + 1], echo=True))
        assert reply.text == "\ufffd\ufffd!"

    async def test_a_long_prompt_is_echoed_whole(self):
        of = model(context_length=0)
        async with served(ScriptedBackend([tokens("!")], models=(of,))) as (_, stub):
            messages = await stream(stub, GenerateRequest(prompt="x" * 5000, echo=True))
        assert "".join(message.delta.text for message in messages) == "x" * 5000 + "!"
        assert messages[-1].completed.entries == 5004


class TestPromptLogprobs:
    """The tokens of the prompt with their log probabilities."""

    TOLD = PromptTokens(
        tokens(
            b"\xc3",
            b"\xa9",
            ids=[1, 2],
            logprobs=[None, -0.5],
            top_logprobs=[[], [Candidate(2, b"\xa9", -0.5), Candidate(3, b"x", -1.5)]],
        )
    )

    async def test_they_are_told_in_started_and_in_the_reply(self):
        script = [
            Seeded(7),
            UsageReport(Usage(prompt_tokens=2)),
            Progress(1, 2),
            self.TOLD,
            Progress(2, 2),
            tokens("!"),
        ]
        backend = ScriptedBackend(script, models=(model("prompt_logprobs", "seed"),))
        async with served(backend) as (_, stub):
            messages = await stream(stub, GenerateRequest(prompt="é", prompt_logprobs=1))
            reply = await stub.Generate(GenerateRequest(prompt="é", prompt_logprobs=1))
        assert messages[0].started.seed == 7
        listed = list(messages[0].started.prompt_token_batch.tokens)
        assert [(token.id, token.text, token.data, token.position) for token in listed] == [
            (1, "", b"\xc3", 0),
            (2, "é", b"\xa9", 1),
        ]
        assert [token.HasField("logprob") for token in listed] == [False, True]
        assert listed[1].logprob == -0.5
        assert [[c.id for c in token.top_logprobs] for token in listed] == [[], [2]]
        assert reply.prompt_token_batch == messages[0].started.prompt_token_batch
        assert backend.requests[0].prompt_logprobs == 1

    async def test_a_seed_of_the_request_waits_for_them(self):
        script = [self.TOLD, tokens("!")]
        async with served(ScriptedBackend(script, models=(model("prompt_logprobs", "seed"),))) as (_, stub):
            (first, *_) = await stream(stub, GenerateRequest(prompt="é", prompt_logprobs=0, seed=5))
        assert first.started.seed == 5
        assert len(first.started.prompt_token_batch.tokens) == 2
        assert not first.started.prompt_token_batch.tokens[1].top_logprobs

    async def test_of_several_starts_only_the_first_is_asked_for_them(self):
        def script(wanted):
            return [self.TOLD, tokens("!")] if wanted.HasField("prompt_logprobs") else [tokens("!")]

        backend = ScriptedBackend(script, models=(model("prompt_logprobs"),))
        async with served(backend) as (_, stub):
            reply = await stub.Generate(GenerateRequest(prompt="é", prompt_logprobs=0, n=3))
        assert [wanted.HasField("prompt_logprobs") for wanted in backend.requests] == [True, False, False]
        assert len(reply.prompt_token_batch.tokens) == 2

    async def test_a_backend_that_tells_them_after_the_start_is_wrong(self):
        async with served(ScriptedBackend([tokens("!"), self.TOLD], models=(model("prompt_logprobs"),))) as (_, stub):
            error, _ = await failure(stub.Generate(GenerateRequest(prompt="é", prompt_logprobs=0)))
        assert error.code() == grpc.StatusCode.INTERNAL

    async def test_without_the_option_there_are_none(self):
        async with served(ScriptedBackend([tokens("!")], models=(model("prompt_logprobs"),))) as (_, stub):
            reply = await stub.Generate(GenerateRequest(prompt="é"))
        assert not reply.HasField("prompt_token_batch")

    async def test_many_tokens_are_told_as_well(self):
        told = PromptTokens(tokens(*["x"] * 3000, logprobs=[None, *[-1.0] * 2999]))
        async with served(ScriptedBackend([told, tokens("!")], models=(model("prompt_logprobs"),))) as (_, stub):
            reply = await stub.Generate(GenerateRequest(prompt="x", prompt_logprobs=0))
        assert sum(token.logprob for token in reply.prompt_token_batch.tokens) == -2999
