"""Generate and StreamGenerate over a real gRPC server: the same journal, streamed or gathered."""

import asyncio
import logging
import subprocess
import sys

import grpc
import pytest
from google.rpc import status_pb2

from llm.scripted import ScriptedBackend, failure, finished, served, tokens, until, words
from quill import proto
from quill.errors import ErrorDetail, FailedPrecondition, InvalidUsage
from quill.generation import FinishReason as Reason
from quill.generation import ToolCall, Usage
from quill.limits import Limits
from quill.llm import Candidate, ModelInfo, Progress, Reasoning, Seeded, Timeouts, ToolCallDelta, UsageReport
from quill.llm.runs import RunTable
from quill.principal import ANONYMOUS
from quill.proto import FinishReason, GenerateRequest


def model(*options, **rest):
    return ModelInfo(name="m", options=frozenset(options), **rest)


def request(prompt="p", **fields):
    return GenerateRequest(prompt=prompt, **fields)


async def stream(stub, wanted):
    async with asyncio.timeout(10):
        return [message async for message in stub.StreamGenerate(wanted)]


def check_positions(messages):
    """Every message carries the number of its first entry, and the numbers are without gap."""
    expected = 0
    for message in messages:
        assert message.position == expected
        if message.WhichOneof("event") != "progress":
            expected += max(1, len(message.delta.tokens.tokens))
    assert messages[-1].completed.entries == expected
    assert messages[0].HasField("started")
    assert [message.HasField("completed") for message in messages].count(True) == 1


def joined(messages, sequence_id=0):
    """The text of a sequence, by deltas and by tokens, which must agree."""
    deltas = [message.delta for message in messages if message.HasField("delta")]
    own = [delta for delta in deltas if delta.sequence_id == sequence_id]
    text = "".join(delta.text for delta in own)
    assert text == "".join(token.text for delta in own for token in delta.tokens.tokens)
    places = [token.position for delta in own for token in delta.tokens.tokens]
    assert places == list(range(len(places)))
    return text


def finishes(messages):
    return {m.sequence_done.sequence_id: m.sequence_done.finish for m in messages if m.HasField("sequence_done")}


async def test_a_stream_has_started_tokens_ends_and_completed_in_order():
    backend = ScriptedBackend([tokens("Hel", ids=[5]), tokens("lo", "!", ids=[6, 7]), finished()])
    async with served(backend) as (_, stub):
        messages = await stream(stub, request(request_id="mine"))
    check_positions(messages)
    started = messages[0].started
    assert (started.request_id, started.model, started.resumable) == ("mine", "scripted-1", False)
    assert started.epoch
    assert joined(messages) == "Hello!"
    assert finishes(messages)[0].reason == FinishReason.FINISH_REASON_STOP
    assert messages[-1].completed.entries == 6
    all_tokens = [token for message in messages for token in message.delta.tokens.tokens]
    assert [token.id for token in all_tokens] == [5, 6, 7]
    assert [token.data for token in all_tokens] == [b"Hel", b"lo", b"!"]
    assert (backend.starts, backend.aborts) == (1, 0)


async def test_generate_gathers_what_a_stream_tells():
    usage = UsageReport(Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1))
    script = [Seeded(77), tokens("a", "b", ids=[1, 2]), finished(Reason.STOP, stop_token_id=9), usage]
    async with served(ScriptedBackend(script, models=(model("seed"),))) as (_, stub):
        reply = await stub.Generate(request())
        messages = await stream(stub, request())
    assert (reply.text, reply.model, reply.seed) == ("ab", "m", 77)
    assert messages[0].started.seed == 77
    assert reply.request_id.startswith("run-")
    (choice,) = reply.choices
    assert (choice.text, choice.finish.stop_token_id) == ("ab", 9)
    assert [(token.text, token.position) for token in choice.tokens.tokens] == [("a", 0), ("b", 1)]
    assert choice.tokens.is_final
    assert choice.finish == finishes(messages)[0]
    assert reply.usage == messages[-1].completed.usage
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.cached_tokens) == (3, 2, 1)
    assert not reply.usage.estimated


async def test_two_runs_have_one_epoch_and_two_ids():
    async with served(ScriptedBackend(words("a"))) as (_, stub):
        first = (await stream(stub, request()))[0].started
        second = (await stream(stub, request()))[0].started
    assert first.epoch == second.epoch
    assert first.request_id != second.request_id


async def test_an_engine_that_is_silent_has_a_started_before_its_first_token():
    gate = asyncio.Event()
    async with served(ScriptedBackend([gate, tokens("a")])) as (_, stub):
        call = stub.StreamGenerate(request())
        assert (await asyncio.wait_for(call.read(), 10)).HasField("started")
        gate.set()
        assert (await asyncio.wait_for(call.read(), 10)).delta.text == "a"


async def test_a_seed_of_the_request_is_told_at_once_and_passed_on():
    gate = asyncio.Event()
    backend = ScriptedBackend([gate], models=(model("seed"),))
    async with served(backend) as (_, stub):
        call = stub.StreamGenerate(request(seed=-5))
        assert (await asyncio.wait_for(call.read(), 10)).started.seed == -5
        await backend.was_running.wait()
        assert backend.requests[0].seed == -5


async def test_the_backend_gets_a_filled_in_request_without_what_it_does_not_honour():
    backend = ScriptedBackend(words("a"))
    async with served(backend) as (_, stub):
        await stub.Generate(request(model="scripted", stop=["x"], include_stop=True, n=1, metadata={"k": "v"}))
    (asked,) = backend.requests
    assert (asked.model, asked.max_tokens, dict(asked.metadata)) == ("scripted-1", 50, {"k": "v"})
    assert asked.request_id.startswith("run-")
    assert not asked.stop
    assert not asked.include_stop
    assert not asked.HasField("n")


async def test_stop_is_passed_on_only_as_far_as_the_backend_can_do_what_was_asked():
    backend = ScriptedBackend(words("a"), models=(model("stop"),))
    async with served(backend) as (_, stub):
        await stub.Generate(request(stop=["x"]))
        await stub.Generate(request(stop=["x"], include_stop=True))
    assert [list(asked.stop) for asked in backend.requests] == [["x"], []]


async def test_a_character_over_two_tokens_is_whole():
    async with served(ScriptedBackend([tokens(b"\xe2\x82"), tokens(b"\xac")])) as (_, stub):
        messages = await stream(stub, request())
    check_positions(messages)
    assert joined(messages) == "€"
    assert [t.data for m in messages for t in m.delta.tokens.tokens] == [b"\xe2\x82", b"\xac"]


@pytest.mark.parametrize(("include_stop", "text"), [(False, "one "), (True, "one two")])
async def test_a_stop_ends_the_run_and_the_backend(include_stop, text):
    backend = ScriptedBackend([tokens("one t"), tokens("wo thr"), tokens("ee")])
    async with served(backend) as (_, stub):
        messages = await stream(stub, request(stop=["two"], include_stop=include_stop))
        reply = await stub.Generate(request(stop=["two"], include_stop=include_stop))
    check_positions(messages)
    assert joined(messages) == reply.text == text
    assert finishes(messages)[0].stop_text == reply.choices[0].finish.stop_text == "two"
    assert messages[-1].completed.usage.completion_tokens == 2
    assert (backend.starts, backend.aborts, backend.told) == (2, 2, 4)


async def test_a_half_stop_comes_out_at_the_end():
    async with served(ScriptedBackend([tokens("a\n")])) as (_, stub):
        messages = await stream(stub, request(stop=["\n\n"]))
    assert joined(messages) == "a\n"
    assert finishes(messages)[0].WhichOneof("matched") is None


async def test_max_tokens_ends_an_engine_that_has_no_limit_at_the_last_token():
    never = asyncio.Event()
    backend = ScriptedBackend([tokens("a", "b"), tokens("c", "d", "e"), never])
    async with served(backend) as (_, stub):
        messages = await stream(stub, request(max_tokens=4))
    check_positions(messages)
    assert joined(messages) == "abcd"
    assert finishes(messages)[0].reason == FinishReason.FINISH_REASON_LENGTH
    assert backend.aborts == 1


async def test_an_engine_with_a_limit_says_itself_how_it_ended_at_the_last_token():
    usage = UsageReport(Usage(prompt_tokens=7, completion_tokens=2))
    backend = ScriptedBackend([tokens("a", "b"), finished(stop_token_id=1), usage], models=(model("max_tokens"),))
    async with served(backend) as (_, stub):
        messages = await stream(stub, request(max_tokens=2))
    assert finishes(messages)[0].stop_token_id == 1
    assert messages[-1].completed.usage.prompt_tokens == 7
    assert backend.aborts == 0


async def test_an_engine_that_exceeds_its_limit_is_ended():
    backend = ScriptedBackend([tokens("a", "b"), tokens("c"), tokens("d")], models=(model("max_tokens"),))
    async with served(backend) as (_, stub):
        messages = await stream(stub, request(max_tokens=2))
    assert joined(messages) == "ab"
    assert finishes(messages)[0].reason == FinishReason.FINISH_REASON_LENGTH
    assert (backend.aborts, backend.told) == (1, 2)


async def test_the_models_default_bounds_a_request_without_max_tokens():
    never = asyncio.Event()
    async with served(ScriptedBackend([tokens(*"abcdef"), never], models=(model(default_max_tokens=3),))) as (_, stub):
        reply = await stub.Generate(request())
    assert (reply.text, reply.choices[0].finish.reason) == ("abc", FinishReason.FINISH_REASON_LENGTH)


@pytest.mark.parametrize(("count", "reason"), [(2, "STOP"), (3, "LENGTH")])
async def test_an_engine_that_just_ends_ended_by_itself_or_at_the_limit(count, reason):
    script = [tokens("a") for _ in range(count)]
    async with served(ScriptedBackend(script, models=(model("max_tokens"),))) as (_, stub):
        reply = await stub.Generate(request(max_tokens=3))
    assert reply.choices[0].finish.reason == FinishReason.Value(f"FINISH_REASON_{reason}")


async def test_an_engine_that_tells_nothing_gives_an_empty_whole_reply():
    async with served(ScriptedBackend([])) as (_, stub):
        messages = await stream(stub, request(""))
        reply = await stub.Generate(request(""))
    check_positions(messages)
    assert (reply.text, len(reply.choices)) == ("", 1)
    assert reply.usage.completion_tokens == 0


async def test_control_tokens_are_told_and_add_no_text():
    async with served(ScriptedBackend([tokens("a", "</s>", "b", special=[False, True, False])])) as (_, stub):
        reply = await stub.Generate(request(skip_special_tokens=True))
    assert reply.text == "ab"
    assert [token.is_special for token in reply.choices[0].tokens.tokens] == [False, True, False]
    assert reply.choices[0].tokens.tokens[1].data == b"</s>"


async def test_control_tokens_add_their_text_where_they_may_not_be_skipped():
    backend = ScriptedBackend([tokens("a", "</s>", special=[False, True])], models=(model("skip_special_tokens"),))
    async with served(backend) as (_, stub):
        reply = await stub.Generate(request(skip_special_tokens=False))
    assert reply.text == "a</s>"


@pytest.mark.parametrize(("asked", "own", "candidates"), [(None, False, 0), (0, True, 0), (1, True, 1), (5, True, 2)])
async def test_log_probabilities_are_told_as_far_as_asked(asked, own, candidates):
    top = [[Candidate(1, b"a", -0.5), Candidate(None, b"\xff", -1.5)]]
    backend = ScriptedBackend([tokens("a", logprobs=[-0.5], top_logprobs=top)], models=(model("logprobs"),))
    async with served(backend) as (_, stub):
        reply = await stub.Generate(request(logprobs=asked))
    (token,) = reply.choices[0].tokens.tokens
    assert token.HasField("logprob") == own
    assert len(token.top_logprobs) == candidates
    if candidates == 2:
        assert (token.top_logprobs[0].id, token.top_logprobs[0].text) == (1, "a")
        assert (token.top_logprobs[1].HasField("id"), token.top_logprobs[1].text) == (False, "\ufffd")
        assert token.top_logprobs[1].data == b"\xff"


async def test_usage_is_estimated_where_the_engine_tells_none():
    async with served(ScriptedBackend(words("a b c"))) as (_, stub):
        usage = (await stub.Generate(request("x" * 9))).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (3, 3, True)


async def test_counts_told_before_a_stop_are_kept_and_the_completion_is_what_was_delivered():
    script = [UsageReport(Usage(prompt_tokens=12)), tokens("a"), tokens("END"), tokens("b")]
    async with served(ScriptedBackend(script)) as (_, stub):
        usage = (await stub.Generate(request(stop=["END"]))).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (12, 2, False)


async def test_timings_are_in_order():
    first, rest = asyncio.Event(), asyncio.Event()
    waits = [Progress(0, 10, queue_position=2), first, Progress(5, 10), rest, tokens("a")]
    backend = ScriptedBackend(waits)
    async with served(backend) as (_, stub):
        call = asyncio.ensure_future(stub.Generate(request()))
        await backend.was_running.wait()
        await asyncio.sleep(0.03)
        first.set()
        await asyncio.sleep(0.03)
        rest.set()
        timings = (await call).timings
    assert timings.queue_ms > 25
    assert timings.queue_ms + 25 < timings.first_token_ms <= timings.total_ms


async def test_progress_is_told_and_has_no_number():
    gate = asyncio.Event()
    async with served(ScriptedBackend([Progress(1, 4, queue_position=3), gate, tokens("a")])) as (_, stub):
        messages = []
        async for message in stub.StreamGenerate(request()):
            messages.append(message)
            if message.HasField("progress"):
                gate.set()
    progress = messages[1]
    assert (progress.progress.processed, progress.progress.total, progress.progress.queue_position) == (1, 4, 3)
    check_positions(messages)


async def test_reasoning_and_tool_calls_are_entries_and_are_gathered():
    script = [
        Reasoning("let me "),
        Reasoning("think"),
        ToolCallDelta(ToolCall(0, "call-1", "weather", '{"at"')),
        ToolCallDelta(ToolCall(1, "call-2", "time")),
        ToolCallDelta(ToolCall(0, "", "", ': "Rome"}')),
        finished(Reason.TOOL_CALLS),
    ]
    async with served(ScriptedBackend(script)) as (_, stub):
        messages = await stream(stub, request())
        (choice,) = (await stub.Generate(request())).choices
    check_positions(messages)
    assert messages[-1].completed.entries == 8
    assert choice.reasoning == "let me think"
    assert [(c.id, c.name, c.arguments) for c in choice.tool_calls] == [
        ("call-1", "weather", '{"at": "Rome"}'),
        ("call-2", "time", ""),
    ]
    assert choice.finish.reason == FinishReason.FINISH_REASON_TOOL_CALLS


async def test_several_sequences_by_repeated_starts_with_seeds_of_their_own():
    backend = ScriptedBackend(lambda asked: [tokens(f"{asked.seed}"), tokens("!")], models=(model("seed"),))
    async with served(backend) as (_, stub):
        messages = await stream(stub, request(n=3, seed=2**63 - 2))
        reply = await stub.Generate(request(n=3, seed=2**63 - 2))
    check_positions(messages)
    seeds = [2**63 - 2, 2**63 - 1, -(2**63)]
    assert [joined(messages, number) for number in range(3)] == [f"{seed}!" for seed in seeds]
    assert [(choice.sequence_id, choice.text) for choice in reply.choices] == [
        (number, f"{seed}!") for number, seed in enumerate(seeds)
    ]
    assert sorted(finishes(messages)) == [0, 1, 2]
    assert backend.starts == 6
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (1, 6)


async def test_an_engine_with_n_is_started_once_and_its_sequences_are_kept_apart():
    script = [
        tokens("a", sequence=0),
        tokens("x", sequence=1),
        tokens("END", sequence=0),
        tokens("dropped", sequence=0),
        tokens("y", sequence=1),
        finished(sequence=1),
        tokens("never", sequence=0),
    ]
    backend = ScriptedBackend(script, models=(model("n"),))
    async with served(backend) as (_, stub):
        messages = await stream(stub, request(n=2, stop=["END"]))
    check_positions(messages)
    assert (joined(messages, 0), joined(messages, 1)) == ("a", "xy")
    assert finishes(messages)[0].stop_text == "END"
    assert (backend.starts, backend.aborts, backend.requests[0].n) == (1, 1, 2)


async def test_tokens_that_are_ready_together_share_a_message():
    async with served(ScriptedBackend([tokens("first"), tokens(*"abcdefgh")])) as (_, stub):
        messages = await stream(stub, request())
    check_positions(messages)
    assert joined(messages) == "firstabcdefgh"
    assert any(message.delta.text.endswith("abcdefgh") for message in messages)


async def test_two_thousand_tokens_at_once_come_in_messages_of_bounded_size():
    async with served(ScriptedBackend([tokens(*["a"] * 2000)])) as (_, stub):
        messages = await stream(stub, request(max_tokens=2000))
    check_positions(messages)
    assert joined(messages) == "a" * 2000
    assert max(len(message.delta.tokens.tokens) for message in messages) <= 512


async def test_an_error_of_the_backend_is_the_status_after_what_was_delivered():
    refusal = FailedPrecondition(
        "the engine has no memory left", details=[ErrorDetail("google.rpc.ErrorInfo", b"")], trailers=[("k", "v")]
    )
    backend = ScriptedBackend([tokens("a"), refusal])
    async with served(backend) as (_, stub):
        error, messages = await failure(stub.StreamGenerate(request()))
        unary_error, _ = await failure(stub.Generate(request()))
    assert "".join(message.delta.text for message in messages) == "a"
    assert not any(message.HasField("completed") for message in messages)
    for failed in (error, unary_error):
        assert failed.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert failed.details() == "the engine has no memory left"
        trailers = dict(failed.trailing_metadata())
        assert trailers["k"] == "v"
        (detail,) = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
        assert detail.type_url.endswith("/google.rpc.ErrorInfo")
    assert backend.closes == 2


@pytest.mark.parametrize("secret", [RuntimeError("secret zebra"), InvalidUsage("secret zebra")])
async def test_an_unforeseen_error_is_a_reference_into_the_log(secret, caplog):
    with caplog.at_level(logging.ERROR, "quill.servicer"):
        async with served(ScriptedBackend([tokens("a"), secret])) as (_, stub):
            error, _ = await failure(stub.StreamGenerate(request()))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "zebra" not in error.details()
    reference = error.details().removeprefix("internal error; reference ")
    (record,) = [record for record in caplog.records if reference in record.getMessage()]
    assert record.exc_info[1] is secret


@pytest.mark.parametrize(
    "event", [tokens("a", sequence=1), tokens("a", ids=[1, 2]), finished(sequence=-1), tokens("a", ids=[-1])]
)
async def test_an_event_that_makes_no_sense_is_an_internal_error(event):
    async with served(ScriptedBackend([event])) as (_, stub):
        error, _ = await failure(stub.Generate(request()))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert error.details().startswith("internal error; reference ")


async def test_a_backend_whose_models_fail_leaks_nothing():
    class Broken(ScriptedBackend):
        def models(self):
            raise RuntimeError("secret zebra")

    async with served(Broken()) as (_, stub):
        error, _ = await failure(stub.Generate(request()))
    assert (error.code(), "zebra" in error.details()) == (grpc.StatusCode.INTERNAL, False)


async def test_a_model_that_is_not_ready_is_unavailable():
    async with served(ScriptedBackend(models=(model(ready=False),))) as (_, stub):
        error, _ = await failure(stub.Generate(request()))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "model m is not ready; try again later")


async def test_a_silent_backend_is_given_up_and_closed():
    backend = ScriptedBackend([tokens("a"), asyncio.Event()])
    async with served(backend, timeouts=Timeouts(backend_idle_timeout_s=0.05)) as (_, stub):
        error, messages = await failure(stub.StreamGenerate(request()))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "backend scripted gave nothing for 0.05 s"
    assert messages[-1].delta.text == "a"
    assert backend.aborts == 1


async def test_a_backend_that_speaks_often_enough_may_take_long():
    pause = [tokens("a"), lambda: asyncio.sleep(0.05)] * 16
    async with served(ScriptedBackend(pause), timeouts=Timeouts(backend_idle_timeout_s=0.5)) as (_, stub):
        assert (await stub.Generate(request())).text == "a" * 16


async def test_a_reader_that_takes_nothing_pauses_the_backend_and_then_loses_the_run():
    backend = ScriptedBackend(lambda _: (tokens("x" * 10_000) for _ in range(100_000)), models=(model(),))
    options = {
        "limits": Limits(max_journal_bytes=200_000),
        "timeouts": Timeouts(reader_stall_timeout_s=0.3, backend_idle_timeout_s=0.1),
        "channel_options": [("grpc.http2.lookahead_bytes", 1024)],
    }
    async with served(backend, **options) as (_, stub):
        messages = aiter(stub.StreamGenerate(request(max_tokens=100_000)))
        assert (await anext(messages)).HasField("started")
        await until(lambda: backend.closes)
        # What the transport and the reader's last batch hold, and the journal: far from 100,000 tokens.
        assert backend.told < 1_000
        error, _ = await failure(messages)
    assert (error.code(), backend.aborts) == (grpc.StatusCode.ABORTED, 1)
    assert "nobody read from it for 0.3 s" in error.details()


async def test_a_reply_larger_than_a_message_is_refused_and_ends_the_run():
    backend = ScriptedBackend([tokens("x" * 600), tokens("x" * 600), asyncio.Event()])
    async with served(backend, limits=Limits(max_reply_bytes=2000)) as (_, stub):
        error, _ = await failure(stub.Generate(request()))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "max_reply_bytes is 2000" in error.details()
    assert backend.aborts == 1


async def test_a_backend_that_never_waits_lets_others_run():
    turns = 0
    seen = []

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def script(_):
        for _ in range(4000):
            seen.append(turns)
            yield tokens("x")

    counting = asyncio.ensure_future(count_turns())
    run = RunTable(ScriptedBackend(script), Limits(), Timeouts()).start(ANONYMOUS, request(max_tokens=4000), model())
    await run.wait()
    counting.cancel()
    assert seen[1] > seen[0], "the first token goes out at once"
    assert seen[-1] - seen[1] >= 3, "and the event loop has its turn every few milliseconds"


async def test_more_runs_than_allowed_are_refused_until_one_ends():
    gate = asyncio.Event()
    backend = ScriptedBackend([gate])
    async with served(backend, limits=Limits(max_runs=1)) as (_, stub):
        first = asyncio.ensure_future(stub.Generate(request()))
        await backend.was_running.wait()
        error, _ = await failure(stub.Generate(request()))
        gate.set()
        await first
        await stub.Generate(request())
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 runs are alive and max_runs is 1" in error.details()


@pytest.mark.parametrize("method", ["Embed", "Tokenize", "Detokenize"])
async def test_methods_that_a_model_does_not_offer_say_their_name(method):
    async with served(ScriptedBackend()) as (_, stub):
        error, _ = await failure(getattr(stub, method)(getattr(proto, f"{method}Request")()))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert error.details() == f"inference.v1.LLMService/{method} is not offered by model scripted-1"


def test_the_servicer_loads_grpc_only_when_it_is_asked_for():
    program = "import sys, quill.llm; print('grpc' in sys.modules); quill.llm.LLMServicer; print('grpc' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.split() == ["False", "True"]
