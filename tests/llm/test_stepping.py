"""Engines that are handed outputs and fill them in steps: the same runs as by ``generate``, and who is told when."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.scripted import LIMIT_S, MODEL, ScriptedBackend, failure, finished, served, tokens, uncollected, until
from quill.errors import Cancelled, FailedPrecondition, RpcError
from quill.limits import Limits
from quill.llm import PromptTokens, Reasoning, Tokens, put_tokens
from quill.llm.run import Timeouts
from quill.llm.runs import RunTable
from quill.principal import ANONYMOUS, token_meter
from quill.proto import (
    CancelGenerateRequest,
    FinishReason,
    GenerateRequest,
    SessionAck,
    SessionRequest,
    SessionStart,
)

ENDLESS = replace(MODEL, context_length=0)
RICH = replace(ENDLESS, options=frozenset({"logprobs", "n", "prompt_logprobs"}))


class Engine:
    """Does nothing by itself: a test puts into its outputs."""

    name = "engine"

    def __init__(self, *, model=ENDLESS, on_submit=None):
        self._model = model
        self._on_submit = on_submit
        self.outputs = []
        self.closes = 0

    def models(self):
        return [self._model]

    def submit(self, request, *, model, output):
        self.outputs.append(output)
        if self._on_submit is not None:
            self._on_submit(request, output)
        return Submitted(self)

    async def aclose(self):
        """Nothing is held."""


class Submitted:
    def __init__(self, engine):
        self._engine = engine

    async def aclose(self):
        self._engine.closes += 1


@pytest.fixture
def engine():
    return Engine()


def started(backend, limits=None, timeouts=None, **options):
    """A run of the backend, which nobody reads."""
    table = RunTable(backend, limits or Limits(), timeouts or Timeouts())
    return table.start(ANONYMOUS, GenerateRequest(prompt="x", **options), backend.models()[0])


async def told(run):
    """What a run's journal has once it has ended, without what is the time's or the run's own."""
    async with asyncio.timeout(LIMIT_S):
        await run.wait()
    entries = []
    for entry in run.journal.read(1):
        if hasattr(entry, "token"):
            token = entry.token
            entries.append((entry.sequence_id, token.position, token.data, token.text, token.id, token.logprob))
        elif hasattr(entry, "timings"):
            entries.append(entry.usage)
        else:
            entries.append(entry)
    return entries


PIECES = st.one_of(
    st.sampled_from([b" word", b"a", b"", b"\xe2", b"\x82", b"\xac", b"\xff", "€".encode(), b"x" * 40, b"st", b"op"]),
    st.binary(max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(PIECES, st.integers(0, 2**32 - 1), st.floats(-9, 0, width=32)), max_size=60),
    st.sampled_from([{}, {"stop": ["stop"]}, {"max_tokens": 7}, {"logprobs": 0}, {"stop": ["€"], "logprobs": 0}]),
    st.booleans(),
)
def test_steps_make_the_same_run_as_events(script, options, tells_ids):
    """One token at a time through ``put_tokens``, against one event at a time out of ``generate``."""

    async def play():
        limits = Limits(max_journal_bytes=10_000)  # so that blocks are small
        events = [Tokens(data=[data], ids=[id_] if tells_ids else None, logprobs=[lp]) for data, id_, lp in script]
        pulled = started(ScriptedBackend([*events, finished()], models=[RICH]), limits, **options)
        engine = Engine(model=RICH)
        pushed = started(engine, limits, **options)
        await until(lambda: engine.outputs)
        (output,) = engine.outputs
        for data, id_, logprob in script:
            put_tokens([output], [data], [id_] if tells_ids else None, [logprob])
        output.put(finished())
        output.end()
        assert await told(pushed) == await told(pulled)
        assert pushed.journal.kept_bytes == pulled.journal.kept_bytes
        if "stop" not in options:
            whole = b"".join(data for data, _, _ in script[: options.get("max_tokens")])
            texts = [entry.token.text for entry in pushed.journal.read(0) if hasattr(entry, "token")]
            assert "".join(texts) == whole.decode("utf-8", "replace")

    asyncio.run(play())


async def test_one_step_goes_to_every_generation_of_a_session(engine):
    async with served(engine) as (_, stub):
        call = stub.Session()
        starts = [SessionStart(run=run, request=GenerateRequest(prompt="x", max_tokens=4)) for run in range(50)]
        await call.write(SessionRequest(starts=starts))
        await until(lambda: len(engine.outputs) == 50)
        for step in range(4):
            data = [b" %d.%d" % (number, step) for number in range(50)]
            put_tokens(engine.outputs, data, np.arange(50), np.zeros(50, np.float32))
        await call.done_writing()
        texts, completed = dict.fromkeys(range(50), b""), set()
        async for frame in call:
            begin, columns = 0, frame.tokens
            for run, count in zip(columns.runs, columns.counts, strict=True):
                size = sum(columns.data_lengths[:count])
                del columns.data_lengths[:count]
                texts[run] += columns.data[begin : begin + size]
                begin += size
            for event in frame.events:
                texts[event.run] += b"".join(token.data for token in event.response.delta.tokens.tokens)
                if event.response.HasField("completed"):
                    completed.add(event.run)
        assert completed == set(range(50))
        assert texts == {run: b"".join(b" %d.%d" % (run, step) for step in range(4)) for run in range(50)}
        assert engine.closes == 50


async def test_columns_of_different_length_are_refused_before_anything_is_put(engine):
    run = started(engine)
    await until(lambda: engine.outputs)
    for columns in ([[b"a", b"b"]], [[b"a"], [1, 2]], [[b"a"], [1], np.zeros(3)]):
        with pytest.raises(ValueError, match="put_tokens got 1 outputs, and"):
            put_tokens(engine.outputs, *columns)
    assert run.journal.end == 1
    run.abort(FailedPrecondition("enough"))
    await run.wait()


@pytest.mark.parametrize(
    "wrong", [("text", 1, None), (b"x", -1, None), (b"x", 2**32, None), (b"x", 1, "low"), (7, 1, None)]
)
async def test_what_is_wrong_with_a_token_ends_its_own_run_alone(wrong, caplog):
    engine = Engine(model=RICH)
    table = RunTable(engine, Limits(), Timeouts())
    runs = [table.start(ANONYMOUS, GenerateRequest(prompt="x", logprobs=0), RICH) for _ in range(3)]
    await until(lambda: len(engine.outputs) == 3)
    data, id_, logprob = wrong
    for _ in range(2):
        put_tokens(engine.outputs, [b"a"] * 3, [1] * 3)
    put_tokens(engine.outputs, [b"b", data, b"b"], [1, id_, 1], None if logprob is None else [-1.0, logprob, -1.0])
    put_tokens(engine.outputs, [b"c"] * 3, [1] * 3)
    assert [output.wanted for output in engine.outputs] == [True, False, True]
    for output in engine.outputs:
        output.end()
    for run in runs:
        await run.wait()
    assert [run.is_whole for run in runs] == [True, False, True]
    with pytest.raises(RpcError, match="INTERNAL"):
        runs[1].journal.raise_ending()
    assert engine.closes == 3
    await table.aclose(0)


async def test_an_output_is_full_at_the_window_of_its_reader_and_its_engine_is_told_of_room(engine):
    async with served(engine) as (_, stub):
        call = stub.Session()
        await call.write(
            SessionRequest(starts=[SessionStart(run=1, request=GenerateRequest(prompt="x", max_tokens=999))])
        )
        await until(lambda: engine.outputs)
        (output,) = engine.outputs
        room = asyncio.Event()
        output.when_room(room.set)
        put = 0
        while not output.is_full:
            put_tokens([output], [b"a"])
            put += 1
        assert put == 255, "Started is an entry too"
        put_tokens([output], [b"b"])  # of a step that had begun
        seen = 0
        while seen < 255:
            seen += sum((await call.read()).tokens.counts)
        assert not room.is_set()
        await call.write(SessionRequest(acks=[SessionAck(run=1, position=100)]))
        await asyncio.wait_for(room.wait(), LIMIT_S)
        assert not output.is_full
        frame = await call.read()
        assert frame.tokens.data == b"b"
        call.cancel()
        await until(lambda: engine.closes == 1)


async def test_an_engine_that_does_not_care_for_room_is_ended_before_memory_is_full(engine, caplog):
    run = started(engine, Limits(max_journal_bytes=40_000), max_tokens=10**6)
    await until(lambda: engine.outputs)
    (output,) = engine.outputs
    for _ in range(10_000):
        put_tokens([output], [b"x" * 20])
    assert not output.wanted
    await run.wait()
    assert run.journal.kept_bytes < 3 * 40_000
    assert "it has to look at Output.is_full" in caplog.text


async def test_a_stop_string_ends_the_output_and_closes_the_submission(engine):
    async with served(engine) as (_, stub):
        reply = asyncio.ensure_future(stub.Generate(GenerateRequest(prompt="x", stop=["lo w"])))
        await until(lambda: engine.outputs)
        (output,) = engine.outputs
        for piece in (b"hel", b"lo", b" ", b"world", b"!"):
            put_tokens([output], [piece])
        assert not output.wanted
        reply = await reply
        assert (reply.text, reply.choices[0].finish.stop_text) == ("hel", "lo w")
        assert engine.closes == 1


async def test_max_tokens_ends_an_output_that_the_engine_does_not_end(engine):
    async with served(engine) as (_, stub):
        reply = asyncio.ensure_future(stub.Generate(GenerateRequest(prompt="x", max_tokens=3)))
        await until(lambda: engine.outputs)
        (output,) = engine.outputs
        for _ in range(5):
            put_tokens([output], [b"a"])
        reply = await reply
        assert (reply.text, reply.choices[0].finish.reason) == ("aaa", FinishReason.FINISH_REASON_LENGTH)
        assert reply.usage.completion_tokens == 3


async def test_an_abort_closes_the_submission_once_and_what_is_put_then_is_dropped(engine):
    async with served(engine) as (_, stub):
        call = asyncio.ensure_future(failure(stub.StreamGenerate(GenerateRequest(prompt="x", request_id="mine"))))
        await until(lambda: engine.outputs)
        (output,) = engine.outputs
        put_tokens([output], [b"a"])
        assert (await stub.CancelGenerate(CancelGenerateRequest(request_id="mine"))).found
        assert engine.closes == 1, "it was told before the answer"
        assert not output.wanted
        put_tokens([output], [b"b"])
        output.put(finished())
        output.fail(FailedPrecondition("late"))
        output.end()
        error, messages = await call
        assert error.code() == grpc.StatusCode.CANCELLED
        assert [message.delta.text for message in messages if message.HasField("delta")] == ["a"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(FailedPrecondition("no memory"), grpc.StatusCode.FAILED_PRECONDITION), (KeyError("k"), grpc.StatusCode.INTERNAL)],
)
@pytest.mark.parametrize("when", ["submitted", "later"])
async def test_a_failure_of_the_engine_is_the_status(error, code, when, caplog):
    def on_submit(_request, output):
        if when == "submitted":
            raise error
        asyncio.get_running_loop().call_soon(output.fail, error)

    async with served(Engine(on_submit=on_submit)) as (_, stub):
        told, _ = await failure(stub.StreamGenerate(GenerateRequest(prompt="x")))
    assert told.code() == code


async def test_a_silent_engine_is_given_up(engine):
    async with served(engine, timeouts=Timeouts(backend_idle_timeout_s=0.05)) as (_, stub):
        error, _ = await failure(stub.Generate(GenerateRequest(prompt="x")))
    assert error.details() == "backend engine gave nothing for 0.05 s"
    assert engine.closes == 1


async def test_a_reader_that_takes_nothing_loses_the_run_and_the_engine_is_not_blamed(engine):
    timeouts = Timeouts(backend_idle_timeout_s=0.05, reader_stall_timeout_s=0.3)
    run = RunTable(engine, Limits(max_journal_bytes=2_000), timeouts).start(
        ANONYMOUS, GenerateRequest(prompt="x"), MODEL
    )
    with run.follow():
        await until(lambda: engine.outputs)
        (output,) = engine.outputs
        while not output.is_full:
            put_tokens([output], [b"x" * 30])
        await asyncio.wait_for(run.wait(), LIMIT_S)
        with pytest.raises(RpcError, match=r"nobody read from it for 0\.3 s"):
            run.journal.raise_ending()


async def test_other_events_are_put_one_by_one():
    def on_submit(_request, output):
        async def tell():
            await output.put_prompt(PromptTokens(Tokens(data=[b"x"], ids=[3])))
            output.put(Reasoning("hm"))
            output.put(tokens("a", "b", ids=[1, 2]))
            put_tokens([output], [b"c"], [3])
            output.put(tokens("z", sequence=1, ids=[4]))
            put_tokens([output], [b"d"], [5])
            output.put(finished(sequence=1))
            output.put(finished())
            output.end()

        telling.append(asyncio.ensure_future(tell()))

    telling = []
    async with served(Engine(model=RICH, on_submit=on_submit)) as (_, stub):
        reply = await stub.Generate(GenerateRequest(prompt="x", n=2, prompt_logprobs=0))
    first, second = reply.choices
    assert (first.reasoning, first.text, [token.id for token in first.tokens.tokens]) == ("hm", "abcd", [1, 2, 3, 5])
    assert (second.text, [token.position for token in first.tokens.tokens]) == ("z", [0, 1, 2, 3])
    assert reply.prompt_token_batch.tokens[0].id == 3


async def test_tokens_that_went_the_short_way_are_paid_for_when_the_run_fails(engine):
    used = []
    token_meter.set(used.append)
    run = started(engine)
    await until(lambda: engine.outputs)
    for _ in range(10):
        put_tokens(engine.outputs, [b"a"])
    engine.outputs[0].fail(FailedPrecondition("no memory"))
    await run.wait()
    assert used == [1 + 10]


async def test_a_run_leaves_nothing_behind_that_only_the_garbage_collector_finds(engine):
    """It runs seldom, and a server has thousands of runs in a minute."""
    table = RunTable(engine, Limits(), Timeouts())
    pulled = RunTable(ScriptedBackend([tokens("a"), tokens("b")]), Limits(), Timeouts())
    with uncollected() as journals_left:
        for runs in (table, pulled):
            run = runs.start(ANONYMOUS, GenerateRequest(prompt="x"), ENDLESS)
            with run.follow() as reader:
                if runs is table:
                    await until(lambda: engine.outputs)
                    put_tokens(engine.outputs, [b"a"])
                    put_tokens(engine.outputs, [b"b"])
                    engine.outputs.pop().end()
                assert [entry async for _, entries in reader for entry in entries]
            await run.wait()
            run = reader = None
            await asyncio.sleep(0)
            assert journals_left() == 0


async def _refuse():
    raise FailedPrecondition("no memory")


async def _fail():
    raise ValueError("wrong")


async def _swallow():
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


@pytest.mark.parametrize("step", [_refuse, _fail, _swallow, asyncio.Event().wait])
async def test_nor_does_one_that_fails_or_is_aborted(step, caplog):
    """Its error has a traceback, which has the run."""
    caplog.set_level(logging.CRITICAL + 1, logger="quill")  # what pytest keeps of the log has one, too
    backend = ScriptedBackend([tokens("a"), tokens("b"), step])
    table = RunTable(backend, Limits(), Timeouts())
    with uncollected() as journals_left:
        run = table.start(ANONYMOUS, GenerateRequest(prompt="x"), ENDLESS)
        await until(lambda: backend.told == 2)
        run.abort(Cancelled("enough"))
        await run.wait()
        assert run.journal.closed
        run = None
        await asyncio.sleep(0)
        assert journals_left() == 0
