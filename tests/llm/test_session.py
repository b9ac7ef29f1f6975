"""Sessions over a real socket, by the generated stub: windows, turns, ends. What the clients make of them is theirs."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from llm.scripted import LIMIT_S, MODEL, ScriptedBackend, finished, served, tokens, until
from quill.errors import FailedPrecondition, InvalidArgument, Unavailable
from quill.limits import Limits
from quill.llm.run import Timeouts
from quill.llm.runs import RunTable
from quill.llm.session import Session
from quill.principal import ANONYMOUS
from quill.proto import GenerateRequest, SessionAck, SessionCancel, SessionRequest, SessionStart, StreamOptions
from quill.wire.columns import segments

WINDOW = 256
ENDLESS = replace(MODEL, context_length=0)
LOGPROBS = replace(MODEL, options=frozenset({"logprobs"}))


def start(run, prompt="x", *, window=0, **options):
    return SessionStart(run=run, request=GenerateRequest(prompt=prompt, **options), window=window)


class Talk:
    """One session: what was sent is a queue, what came is kept."""

    def __init__(self, stub):
        self._requests = asyncio.Queue()
        self._call = stub.Session(self._sent())
        self.frames = []
        self.positions = {}
        """By run: the number of the next entry."""
        self.data = {}
        self.errors = {}
        self.completed = []

    async def _sent(self):
        while (request := await self._requests.get()) is not None:
            yield request

    def send(self, *starts, acks=(), cancels=()):
        self._requests.put_nowait(
            SessionRequest(
                starts=starts,
                acks=[SessionAck(run=run, position=position) for run, position in acks],
                cancels=[SessionCancel(run=run, reason="test") for run in cancels],
            )
        )

    def finish(self):
        self._requests.put_nowait(None)

    async def frame(self):
        """The next frame, its order and numbers checked; None at the end."""
        async with asyncio.timeout(LIMIT_S):
            frame = await self._call.read()
        if frame is grpc.aio.EOF:
            return None
        self.frames.append(frame)
        responses = [event for event in frame.events if event.HasField("response")]
        for event in responses:
            if event.response.HasField("started"):
                self.positions[event.run] = 0
                self._advance(event.run, event.response.position, 1)
        for run, told in segments(frame.tokens.SerializeToString()):
            position, pieces = (told[0], [told[-1]]) if isinstance(told, tuple) else (told.position, told.data)
            self._advance(run, position, len(pieces))
            self.data.setdefault(run, []).extend(pieces)
        for event in responses:
            if event.response.HasField("sequence_done") or event.response.HasField("completed"):
                self._advance(event.run, event.response.position, 1)
            if event.response.HasField("completed"):
                self.completed.append(event.run)
        self.errors |= {event.run: event.error for event in frame.events if event.HasField("error")}
        return frame

    async def until(self, condition):
        while not condition():
            assert await self.frame() is not None, "the session ended"

    async def status(self):
        """Read to the end; the status."""
        try:
            while await self.frame() is not None:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def cut(self):
        self._call.cancel()

    def _advance(self, run, position, count):
        assert position == self.positions.get(run, 0)
        self.positions[run] = position + count


def counted(count):
    return (tokens(f"{number} ") for number in range(count))


async def test_two_generations_come_on_one_session():
    async with served(ScriptedBackend(lambda request: [tokens(piece) for piece in request.prompt])) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1, "abc"), start(7, "xyz"))
        await talk.until(lambda: len(talk.completed) == 2)
        assert talk.data == {1: [b"a", b"b", b"c"], 7: [b"x", b"y", b"z"]}
        talk.finish()
        assert await talk.status() == (grpc.StatusCode.OK, "")


async def test_the_backend_is_at_most_a_window_ahead_of_the_acknowledgements():
    backend = ScriptedBackend(lambda _: counted(5000), models=[ENDLESS])
    async with served(backend) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1, max_tokens=5000))
        acknowledged = 0
        for more in (1, 17, 256, 90):
            await talk.until(lambda: talk.positions.get(1) == acknowledged + WINDOW)  # noqa: B023
            await asyncio.sleep(0.02)  # whoever goes too far has the time to
            assert backend.told == acknowledged + WINDOW - 1, "Started is an entry too"
            acknowledged += more
            talk.send(acks=[(1, acknowledged)])
        talk.cut()
        await until(lambda: backend.aborts == 1)


async def test_a_smaller_window_may_be_asked_for_and_a_larger_one_not():
    backend = ScriptedBackend(lambda _: counted(5000), models=[ENDLESS])
    async with served(backend) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1, max_tokens=5000, window=10), start(2, max_tokens=5000, window=100_000))
        await talk.until(lambda: talk.positions.get(2) == WINDOW)
        assert talk.positions[1] == 10
        talk.cut()


async def test_a_burst_that_the_backend_told_at_once_is_sent_by_windows():
    async with served(ScriptedBackend([tokens(*"abcde" * 200)])) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1, max_tokens=1000))
        for acknowledged in range(0, 1002, WINDOW):
            await talk.until(lambda: talk.positions.get(1, 0) >= min(acknowledged + WINDOW, 1003))  # noqa: B023
            assert talk.positions[1] == min(acknowledged + WINDOW, 1003)
            talk.send(acks=[(1, talk.positions[1])])
        assert b"".join(talk.data[1]) == b"abcde" * 200
        assert talk.completed == [1]


async def test_a_generation_that_floods_does_not_keep_another_waiting():
    gates = [asyncio.Event() for _ in range(20)]

    def script(request):
        if request.prompt == "flood":
            return counted(10_000_000)
        return [step for gate in gates for step in (gate, tokens("tick"))]

    async with served(ScriptedBackend(script, models=[ENDLESS])) as (_, stub):
        talk = Talk(stub)
        talk.send(start(0, "tick"), *(start(run, "flood", max_tokens=10_000_000) for run in range(1, 9)))

        async def frame():
            await talk.frame()
            talk.send(acks=[(run, talk.positions.get(run, 0)) for run in range(1, 9)])

        while min(talk.positions.get(run, 0) for run in range(1, 9)) < 500:
            await frame()
        for ticks, gate in enumerate(gates, 1):
            gate.set()
            before = len(talk.frames)
            while len(talk.data.get(0, ())) < ticks:
                await frame()
            # What the transport holds comes first: the windows, 8 x 256 tokens, and what is acknowledged meanwhile.
            assert sum(sum(frame.tokens.counts) for frame in talk.frames[before:]) <= 2 * 8 * WINDOW
        flooded = [talk.positions[run] for run in range(1, 9)]
        assert max(flooded) <= 2 * min(flooded) + 2 * WINDOW
        talk.cut()


async def test_a_reader_that_does_not_acknowledge_does_not_stop_the_others():
    backend = ScriptedBackend(lambda _: counted(2000))
    async with served(backend) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1, max_tokens=3000), start(2, max_tokens=3000))
        while 2 not in talk.completed:
            await talk.frame()
            talk.send(acks=[(2, talk.positions.get(2, 0))])
        assert talk.positions[1] == WINDOW
        talk.cut()
        await until(lambda: backend.running == 0)
        assert backend.aborts == 1


async def test_an_error_of_one_generation_is_its_own():
    backend = ScriptedBackend(
        lambda request: [tokens("a"), FailedPrecondition("no memory")] if request.prompt == "bad" else counted(3)
    )
    async with served(backend) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1, "bad"), start(2, temperature=-1.0), start(3), start(4, model="none"))
        await talk.until(lambda: talk.completed == [3] and len(talk.errors) == 3)
        assert {run: error.code for run, error in talk.errors.items()} == {1: 9, 2: 3, 4: 5}
        assert talk.errors[1].message == "no memory"
        assert talk.data[1] == [b"a"]
        talk.send(start(1))  # the number is free again
        await talk.until(lambda: 1 in talk.completed)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([SessionRequest(starts=[start(1), start(1)])], "run 1 is alive on this session"),
        (
            [SessionRequest(starts=[start(1)], acks=[]), SessionRequest(acks=[SessionAck(run=1, position=99)])],
            "up to entry 99",
        ),
    ],
)
async def test_what_no_client_may_do_ends_the_session_and_its_generations(requests, message):
    backend = ScriptedBackend([asyncio.Event()])
    async with served(backend) as (_, stub):
        talk = Talk(stub)
        for request in requests:
            talk._requests.put_nowait(request)
        code, details = await talk.status()
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert message in details
        await until(lambda: backend.running == 0)
        assert backend.aborts == backend.starts == backend.closes


async def test_limits_are_those_of_the_server():
    limits = Limits(max_session_runs=2, max_session_starts=3)
    gate = asyncio.Event()
    async with served(ScriptedBackend([gate, tokens("a")]), limits=limits) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1), start(2), start(3))
        await talk.until(lambda: 3 in talk.errors)
        assert talk.errors[3].code == 8
        assert "max_session_runs is 2" in talk.errors[3].message
        gate.set()
        await talk.until(lambda: len(talk.completed) == 2)
        talk.send(*map(start, range(10, 14)))
        code, details = await talk.status()
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "starts 4 generations, max_session_starts is 3" in details


@pytest.mark.parametrize("told", [0, 1, 5, 300])
async def test_a_cancel_at_any_moment_is_one_abort(told):
    backend = ScriptedBackend(lambda _: [*counted(told), asyncio.Event()])
    async with served(backend) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1, max_tokens=500), start(2, max_tokens=500))
        await talk.until(lambda: talk.positions.get(1) == min(told + 1, WINDOW))
        talk.send(cancels=[1, 1])
        talk.send(cancels=[1])
        await talk.until(lambda: 1 in talk.errors)
        assert talk.errors[1].code == 1
        assert (backend.aborts, backend.closes, backend.running) == (1, 1, 1)
        talk.send(cancels=[1, 99])  # has ended, never was
        talk.send(cancels=[2])
        await talk.until(lambda: 2 in talk.errors)
        assert (backend.aborts, backend.closes) == (2, 2)


async def test_a_cancel_beside_its_start_ends_it():
    backend = ScriptedBackend([asyncio.Event()])
    async with served(backend) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1), cancels=[1])
        await talk.until(lambda: 1 in talk.errors)
        assert talk.errors[1].code == 1
        assert backend.running == 0


async def test_a_lost_connection_aborts_every_generation_once():
    backend = ScriptedBackend(lambda _: [tokens("a"), asyncio.Event()])
    async with served(backend) as (_, stub):
        talk = Talk(stub)
        talk.send(*map(start, range(50)))
        await talk.until(lambda: len(talk.data) == 50)
        talk.cut()
        await until(lambda: backend.running == 0)
        assert backend.aborts == backend.closes == 50


async def test_a_client_that_asks_for_nothing_more_gets_the_rest_without_acknowledging():
    async with served(ScriptedBackend(lambda _: counted(1000))) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1, max_tokens=1000), start(2, max_tokens=1000))
        talk.finish()
        assert await talk.status() == (grpc.StatusCode.OK, "")
        assert sorted(talk.completed) == [1, 2]
        assert talk.positions == {1: 1003, 2: 1003}


async def test_five_hundred_generations_at_once():
    async with served(ScriptedBackend(lambda request: [*counted(20), tokens(request.prompt)])) as (_, stub):
        talk = Talk(stub)
        talk.send(*(start(run, f"run {run}") for run in range(500)))
        await talk.until(lambda: len(talk.completed) == 500)
        assert all(talk.data[run][-1] == b"run %d" % run for run in range(500))
        assert max(len(frame.tokens.data_lengths) for frame in talk.frames) <= 1000


async def test_a_server_that_stops_tells_every_generation_and_then_the_session():
    backend = ScriptedBackend(lambda _: [tokens("a"), asyncio.Event()])
    async with served(backend) as (servicer, stub):
        talk, idle = Talk(stub), Talk(stub)
        talk.send(start(1), start(2))
        await talk.until(lambda: len(talk.data) == 2)
        idle.send()
        await until(lambda: len(servicer._sessions) == 2)
        await servicer.aclose()
        assert await talk.status() == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        assert {error.code for error in talk.errors.values()} == {14}
        assert "ended at entry 2" in talk.errors[1].message
        assert (await idle.status())[0] == grpc.StatusCode.UNAVAILABLE
        assert backend.aborts == 2


async def test_columns_carry_what_the_engine_told():
    script = [tokens("a", "b", ids=[5, 6], logprobs=[-0.5, -1.5]), finished()]
    async with served(ScriptedBackend(script, models=[LOGPROBS])) as (_, stub):
        talk = Talk(stub)
        talk.send(start(1, logprobs=0), start(2))
        await talk.until(lambda: len(talk.completed) == 2)
        told = {}
        for frame in talk.frames:
            for run, rows in segments(frame.tokens.SerializeToString()):
                told[run] = (list(rows.ids), rows.logprobs and list(rows.logprobs))
        assert told == {1: ([5, 6], [-0.5, -1.5]), 2: ([5, 6], None)}


@pytest.fixture
def table():
    def make(backend):
        return RunTable(backend, Limits(), Timeouts())

    return make


async def test_a_writer_that_is_cancelled_does_not_hurt_its_runs(table):
    """Cancelling a task cancels the future that it waits for; waking that future would raise inside the run."""
    gate = asyncio.Event()
    backend = ScriptedBackend([tokens("a"), gate, tokens("b")])
    runs = table(backend)

    async def run(request):
        return runs.start(ANONYMOUS, request, backend.models()[0])

    async def requests():
        options = StreamOptions(resume_ttl_ms=60_000)
        request = GenerateRequest(prompt="x", request_id="kept", stream_options=options)
        yield SessionRequest(starts=[SessionStart(run=1, request=request)])
        await asyncio.Event().wait()

    async def write():
        async for frame in Session(run, Limits()).frames(requests()):
            frames.append(frame)  # noqa: PERF401

    frames = []
    writing = asyncio.create_task(write())
    await until(lambda: any(frame.tokens.data == b"a" for frame in frames))
    await asyncio.sleep(0)
    writing.cancel()
    gate.set()  # the run goes on in the same turn of the event loop
    with pytest.raises(asyncio.CancelledError):
        await writing
    (kept,) = runs._runs.values()
    await until(lambda: kept.journal.closed)
    kept.journal.raise_ending()
    assert backend.aborts == 0
    await runs.aclose(0)


@pytest.mark.parametrize(
    ("failure", "status"), [(InvalidArgument("broken"), InvalidArgument), (asyncio.CancelledError(), Unavailable)]
)
async def test_a_reader_of_acknowledgements_that_dies_ends_the_session(table, failure, status):
    backend = ScriptedBackend([asyncio.Event()])
    runs = table(backend)

    async def run(request):
        return runs.start(ANONYMOUS, request, backend.models()[0])

    async def requests():
        yield SessionRequest(starts=[start(1)])
        await until(lambda: backend.running)
        raise failure

    async def write():
        return [frame async for frame in Session(run, Limits()).frames(requests())]

    with pytest.raises(status):
        await asyncio.wait_for(write(), LIMIT_S)
    await until(lambda: backend.running == 0)
    assert backend.aborts == 1
