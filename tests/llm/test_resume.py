"""A run outlives its connections: it is joined, resumed, kept for a time, and never held without bounds."""

import asyncio

import grpc
import pytest

from llm.scripted import LIMIT_S, MODEL, ScriptedBackend, failure, finished, served, tokens, until
from llm.test_cancellation import Named, Tasks, cancel
from quill.errors import Aborted, NotFound, OutOfRange, ResourceExhausted, Unavailable
from quill.limits import Limits
from quill.llm import Timeouts
from quill.llm.runs import RunTable
from quill.principal import ANONYMOUS, Principal
from quill.proto import GenerateRequest, Resume, StreamOptions

LONG_MS = 60_000


def asked(prompt="p", request_id="mine", ttl_ms=LONG_MS, resume=None, **fields):
    options = StreamOptions(resume_ttl_ms=ttl_ms)
    if resume is not None:
        options.resume.epoch, options.resume.next_position = resume
    return GenerateRequest(prompt=prompt, request_id=request_id, stream_options=options, **fields)


async def messages_of(call):
    async with asyncio.timeout(LIMIT_S):
        return [message async for message in call]


async def first_messages(call, count):
    """The first messages of a stream, which is then cut."""
    async with asyncio.timeout(LIMIT_S):
        messages = [await call.read() for _ in range(count)]
    call.cancel()
    return messages


def entries(messages):
    """(number, text) of each entry; the text is that of the token, or the name of the event."""
    found = []
    for message in messages:
        event = message.WhichOneof("event")
        texts = [token.text for token in message.delta.tokens.tokens] if event == "delta" else [event]
        found += [(message.position + place, text) for place, text in enumerate(texts)]
    return found


WHOLE = [(0, "started"), (1, "a"), (2, "b"), (3, "c"), (4, "sequence_done"), (5, "completed")]


def gated(*, before=2):
    """A script of three tokens that waits before one of them, and its gate."""
    gate = asyncio.Event()
    steps = [tokens("a"), tokens("b"), tokens("c"), finished()]
    return [*steps[:before], gate, *steps[before:]], gate


@pytest.mark.parametrize("position", range(7))
async def test_a_stream_goes_on_where_it_was_cut(position):
    script, gate = gated()
    backend = ScriptedBackend(script)
    async with served(backend) as (_, stub):
        begun = await first_messages(stub.StreamGenerate(asked()), 1)
        epoch = begun[0].started.epoch
        assert begun[0].started.resumable
        assert epoch
        gate.set()
        await until(lambda: backend.closes)
        rest = await messages_of(stub.StreamGenerate(asked(resume=(epoch, position))))
    assert entries(rest) == WHOLE[position:]
    assert (backend.starts, backend.aborts) == (1, 0)


async def test_a_run_goes_on_while_nobody_reads_and_is_waited_for_at_its_edge():
    script, gate = gated()
    backend = ScriptedBackend(script)
    async with served(backend) as (_, stub):
        begun = await first_messages(stub.StreamGenerate(asked()), 1)
        await until(lambda: backend.told == 2)
        reading = asyncio.ensure_future(messages_of(stub.StreamGenerate(asked(resume=(begun[0].started.epoch, 3)))))
        await asyncio.sleep(0.05)
        assert not reading.done()
        gate.set()
        assert entries(await reading) == WHOLE[3:]
    assert (backend.starts, backend.aborts) == (1, 0)


async def test_a_run_that_nobody_resumes_is_ended_and_says_so():
    backend = ScriptedBackend([tokens("a"), asyncio.Event()])
    async with served(backend) as (_, stub):
        tasks = Tasks()
        begun = await first_messages(stub.StreamGenerate(asked(ttl_ms=50)), 1)
        await until(lambda: backend.aborts and not tasks.left())
        error, came = await failure(stub.StreamGenerate(asked(resume=(begun[0].started.epoch, 1))))
    assert entries(came) == [(1, "a")]
    assert error.code() == grpc.StatusCode.CANCELLED
    assert error.details() == "run 'mine' was ended: nobody resumed it within 0.05 s"
    assert backend.starts == 1


async def test_a_reader_that_comes_in_time_stops_the_clock():
    script, gate = gated()
    backend = ScriptedBackend(script)
    async with served(backend) as (_, stub):
        begun = await first_messages(stub.StreamGenerate(asked(ttl_ms=300)), 1)
        reading = asyncio.ensure_future(
            messages_of(stub.StreamGenerate(asked(ttl_ms=300, resume=(begun[0].started.epoch, 1))))
        )
        await asyncio.sleep(0.5)
        gate.set()
        assert entries(await reading) == WHOLE[1:]
    assert backend.aborts == 0


async def test_without_a_ttl_a_run_ends_with_its_connection_and_its_id_is_free_again():
    slow_end = asyncio.Event()
    script, gate = gated(before=1)
    backend = ScriptedBackend(script, on_close=slow_end.wait)
    async with served(backend) as (_, stub):
        begun = await first_messages(stub.StreamGenerate(asked(ttl_ms=0)), 1)
        assert not begun[0].started.resumable
        await until(lambda: backend.closes == 1)
        again = asyncio.ensure_future(stub.Generate(asked(ttl_ms=0)))
        await asyncio.sleep(0.05)
        assert backend.starts == 1, "the second start waits for the end of the first"
        slow_end.set()
        gate.set()
        assert (await again).text == "abc"
    assert (backend.starts, backend.aborts) == (2, 1)


@pytest.mark.parametrize("ttl_ms", [0, LONG_MS])
async def test_fifty_starts_at_once_are_one_and_all_get_the_same(ttl_ms):
    script, gate = gated(before=0)
    backend = ScriptedBackend(script)
    async with served(backend) as (_, stub):
        streams = [asyncio.ensure_future(messages_of(stub.StreamGenerate(asked(ttl_ms=ttl_ms)))) for _ in range(25)]
        replies = [asyncio.ensure_future(stub.Generate(asked(ttl_ms=ttl_ms))) for _ in range(25)]
        await backend.was_running.wait()
        await asyncio.sleep(0.05)
        gate.set()
        assert all(entries(messages) == WHOLE for messages in await asyncio.gather(*streams))
        first, *others = await asyncio.gather(*replies)
        assert first.text == "abc"
        assert all(reply == first for reply in others)
    assert (backend.starts, backend.closes) == (1, 1)


@pytest.mark.parametrize("ttl_ms", [0, LONG_MS])
async def test_a_reply_that_was_lost_is_had_again_without_a_second_start(ttl_ms):
    backend = ScriptedBackend([tokens("a"), tokens("b"), tokens("c"), finished()])
    async with served(backend) as (_, stub):
        first = await stub.Generate(asked(ttl_ms=ttl_ms))
        assert await stub.Generate(asked(ttl_ms=ttl_ms, metadata={"attempt": "2"})) == first
        assert entries(await messages_of(stub.StreamGenerate(asked(ttl_ms=ttl_ms)))) == WHOLE
        assert not await cancel(stub), "it does not live any more"
        unnamed = GenerateRequest(prompt="p")
        assert (await stub.Generate(unnamed)).request_id != (await stub.Generate(unnamed)).request_id
    assert backend.starts == 3


async def test_a_finished_run_is_kept_for_its_time_and_then_forgotten():
    backend = ScriptedBackend([tokens("a")])
    async with served(backend, timeouts=Timeouts(finished_run_s=0.3)) as (servicer, stub):
        await stub.Generate(asked(ttl_ms=0))
        await stub.Generate(asked(ttl_ms=0))
        assert backend.starts == 1
        await until(lambda: not servicer._runs._runs)
        assert servicer._runs._store.used_bytes == 0
        await stub.Generate(asked(ttl_ms=0))
    assert backend.starts == 2


@pytest.mark.parametrize("failing", [Unavailable("no engine"), ResourceExhausted("no memory")], ids=str)
async def test_a_run_that_failed_is_started_again_unless_it_can_be_resumed(failing):
    backend = ScriptedBackend([tokens("a"), failing])
    async with served(backend) as (_, stub):
        for _ in range(2):
            await failure(stub.Generate(asked(ttl_ms=0)))
        assert backend.starts == 2
        for _ in range(2):
            error, came = await failure(stub.StreamGenerate(asked(request_id="other")))
            assert entries(came) == WHOLE[:2]
            assert error.code().name == failing.code.name
            # The connection is not to blame, so a client does not come back for it.
            assert ("grpc-retry-pushback-ms", "-1") in [tuple(item) for item in error.trailing_metadata()]
    assert backend.starts == 3


async def test_what_cannot_be_resumed_says_why():
    backend = ScriptedBackend([tokens("a"), asyncio.Event()])
    async with served(backend, interceptors=[Named()]) as (_, stub):
        alice, bob = [("who", "alice")], [("who", "bob")]
        call = stub.StreamGenerate(asked(), metadata=alice)
        epoch = (await call.read()).started.epoch
        resume = asked(resume=(epoch, 1))

        async def code(request, who):
            error, came = await failure(stub.StreamGenerate(request, metadata=who))
            assert not came
            return error.code().name, error.details()

        assert await code(resume, bob) == (
            "NOT_FOUND",
            "there is no run 'mine': it is no longer kept, or has never been",
        )
        assert (await code(asked(request_id="other", resume=(epoch, 1)), alice))[0] == "NOT_FOUND"
        assert await code(asked(resume=("elsewhere", 1)), alice) == (
            "ABORTED",
            f"run 'mine' is lost: it ran on server instance 'elsewhere', this is '{epoch}'",
        )
        assert (await code(asked(prompt="q", resume=(epoch, 1)), alice))[0] == "ALREADY_EXISTS"
        assert (await code(asked(prompt="q"), alice))[0] == "ALREADY_EXISTS"
        assert (await code(asked(resume=(epoch, 9)), alice))[0] == "OUT_OF_RANGE"
        assert (await code(asked(resume=("", 1)), alice))[0] == "INVALID_ARGUMENT"
        assert (await code(asked(request_id="", resume=(epoch, 1)), alice))[0] == "INVALID_ARGUMENT"
        error, _ = await failure(stub.Generate(resume, metadata=alice))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert backend.starts == 1
        own = stub.StreamGenerate(asked(), metadata=bob)
        assert (await own.read()).started.request_id == "mine"
        assert backend.starts == 2, "the same id of another principal names another run"


async def test_entries_that_were_trimmed_are_out_of_range():
    limits = Limits(max_journal_bytes=2_000)
    backend = ScriptedBackend([*(tokens("x" * 50) for _ in range(40)), asyncio.Event()])
    async with served(backend, limits=limits) as (_, stub):
        call = stub.StreamGenerate(asked())
        await until(lambda: backend.told == 40)
        epoch = (await call.read()).started.epoch
        call.cancel()
        error, _ = await failure(stub.StreamGenerate(asked(resume=(epoch, 1))))
        assert error.code() == grpc.StatusCode.OUT_OF_RANGE
        assert "entry 1 is not there" in error.details()
        later = stub.StreamGenerate(asked(resume=(epoch, 40)))
        assert entries([await later.read()]) == [(40, "x" * 50)]
        later.cancel()


async def test_a_reply_that_is_no_longer_whole_is_not_kept():
    backend = ScriptedBackend([tokens("x" * 50) for _ in range(40)])
    async with served(backend, limits=Limits(max_journal_bytes=2_000)) as (_, stub):
        first = await stub.Generate(asked(ttl_ms=0))
        assert await stub.Generate(asked(ttl_ms=0)) != first, "of another time"
    assert backend.starts == 2


async def test_the_engine_waits_while_the_journal_of_an_unread_run_is_full():
    limits = Limits(max_journal_bytes=6_000)
    backend = ScriptedBackend([*(tokens("x" * 50) for _ in range(2_000)), finished()])
    async with served(backend, limits=limits) as (servicer, stub):
        begun = await first_messages(stub.StreamGenerate(asked(max_tokens=4_000)), 1)
        (run,) = servicer._runs._runs.values()
        await until(lambda: run.journal.full and not run.journal.readers)
        told = backend.told
        await asyncio.sleep(0.05)
        assert backend.told == told < 2_000
        assert run.journal.kept_bytes < 7_000
        position = run.journal.taken
        resumed = asked(max_tokens=4_000, resume=(begun[0].started.epoch, position))
        rest = await messages_of(stub.StreamGenerate(resumed))
    whole = [(0, "started"), *((n, "x" * 50) for n in range(1, 2001)), (2001, "sequence_done"), (2002, "completed")]
    assert entries(rest) == whole[position:]
    assert backend.starts == 1


async def test_the_time_to_come_back_is_bounded_by_the_server():
    backend = ScriptedBackend([tokens("a"), asyncio.Event()])
    async with served(backend, limits=Limits(max_resume_ttl_s=0.05)) as (_, stub):
        await first_messages(stub.StreamGenerate(asked(ttl_ms=2**32 - 1)), 1)
        await until(lambda: backend.aborts)


async def test_closing_ends_unread_runs_at_once_and_tells_readers_their_position():
    backend = ScriptedBackend([tokens("a"), asyncio.Event()])
    async with served(backend) as (servicer, stub):
        tasks = Tasks()
        await first_messages(stub.StreamGenerate(asked(request_id="unread")), 1)
        await until(lambda: not any(run.journal.readers for run in servicer._runs._alive))
        reading = asyncio.ensure_future(failure(stub.StreamGenerate(asked())))
        await until(lambda: backend.told == 2)
        closing = asyncio.ensure_future(servicer.aclose(0.5))
        await until(lambda: backend.aborts == 1)
        assert not closing.done()
        await closing
        error, came = await reading
        assert (servicer._runs._runs, tasks.left()) == ({}, [])
        assert servicer._runs._store.used_bytes == 0
    assert entries(came) == WHOLE[:2]
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert error.details() == "the server is shutting down; run 'mine' ended at entry 2"


class TestBounds:
    """How much is kept, on one table without a network."""

    @staticmethod
    def table(backend, **limits):
        return RunTable(backend, Limits(**limits), Timeouts())

    async def test_resumable_runs_that_would_hold_too_much_are_refused(self):
        backend = ScriptedBackend([asyncio.Event()])
        table = self.table(backend, max_kept_bytes=460_000, max_kept_bytes_per_principal=160_000)
        alice, bob = Principal("alice"), Principal("bob")
        for number in range(2):  # 64 KiB of journal, and an overhead of 8 KiB
            table.start(alice, asked(request_id=f"{number}"), MODEL)
        with pytest.raises(ResourceExhausted, match=r"this caller's resumable runs hold .* is 160000"):
            table.start(alice, asked(request_id="3"), MODEL)
        table.start(alice, asked(request_id="3", ttl_ms=0), MODEL)
        for who in (bob, Principal("carol")):
            for number in range(2):
                table.start(who, asked(request_id=f"{number}"), MODEL)
        with pytest.raises(ResourceExhausted, match=r"all resumable runs hold .* max_kept_bytes is 460000"):
            table.start(Principal("dave"), asked(), MODEL)
        assert table._store.used_bytes <= 460_000
        await table.cancel(bob, "0", "")
        table.start(bob, asked(request_id="again"), MODEL)
        await table.aclose(0)
        assert table._store.used_bytes == 0

    async def test_the_oldest_finished_run_goes_first(self):
        backend = ScriptedBackend([tokens("x" * 1000)])
        table = self.table(backend, max_finished_bytes=26_000)
        for number in range(4):
            await table.start(ANONYMOUS, asked(request_id=f"{number}", ttl_ms=0), MODEL).wait()
            assert table._store.used_bytes <= 26_000
        assert [request_id for _, request_id in table._runs] == ["2", "3"]
        table.start(ANONYMOUS, asked(request_id="0", ttl_ms=0), MODEL)
        assert table._runs[ANONYMOUS, "0"].journal.end == 0, "it was forgotten, and starts anew"
        await table.aclose(0)

    async def test_finished_runs_make_room_for_one_that_starts(self):
        backend = ScriptedBackend([tokens("x" * 1000)])
        table = self.table(backend, max_kept_bytes=100_000)
        for number in range(4):
            await table.start(ANONYMOUS, asked(request_id=f"{number}", ttl_ms=0), MODEL).wait()
        run = table.start(ANONYMOUS, asked(request_id="new"), MODEL)
        assert table._store.used_bytes <= 100_000
        assert (ANONYMOUS, "0") not in table._runs
        assert (ANONYMOUS, "3") in table._runs
        await run.wait()
        await table.aclose(0)

    async def test_a_run_too_large_to_be_kept_is_forgotten_at_its_end_and_still_read(self):
        backend = ScriptedBackend([tokens("x" * 10_000)])
        table = self.table(backend, max_kept_bytes=10_000)
        run = table.start(ANONYMOUS, asked(ttl_ms=0), MODEL)
        with run.follow() as reader:
            await run.wait()
            assert not table._runs
            assert sum(len(batch) for _, batch in [piece async for piece in reader]) == 4
        assert run._loneliness is None

    async def test_a_run_that_was_resumed_reads_the_same_errors_from_the_table(self):
        table = self.table(ScriptedBackend([asyncio.Event()]))
        run = table.start(ANONYMOUS, asked(), MODEL)
        assert table.resume(ANONYMOUS, asked(), Resume(epoch=table.epoch)) is run
        with pytest.raises(Aborted):
            table.resume(ANONYMOUS, asked(), Resume(epoch="x"))
        with pytest.raises(NotFound):
            table.resume(Principal("bob"), asked(), Resume(epoch=table.epoch))
        with pytest.raises(OutOfRange), run.follow(5):
            pass
        await table.aclose(0)
