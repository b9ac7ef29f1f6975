"""Which way a token takes into a frame of a session is nobody's business: every generation comes whole, in order."""

import asyncio
from collections import defaultdict
from contextlib import aclosing

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.scripted import LIMIT_S, MODEL, uncollected
from quill.generation import Finish, FinishReason
from quill.limits import Limits
from quill.llm import Finished, Reasoning, put_tokens
from quill.llm.run import Timeouts
from quill.llm.runs import RunTable
from quill.llm.session import Session
from quill.llm.session_frame import MAX_TOKENS
from quill.principal import ANONYMOUS
from quill.proto import GenerateRequest, SessionAck, SessionRequest, SessionStart
from quill.wire.columns import Rows, segments

RUNS = 8
"""Their windows are more than two frames."""


class Engine:
    """Steps those that it is told to."""

    name = "engine"

    def __init__(self):
        self.outputs = []

    def models(self):
        return [MODEL]

    def submit(self, request, *, model, output):
        self.outputs.append(output)
        return self

    async def aclose(self):
        """Nothing is held."""


class Scene:
    """A session whose frames are taken when the script says so."""

    def __init__(self):
        self.engine = Engine()
        self.put = defaultdict(list)
        self.got = defaultdict(list)
        self.done = set()
        self.on_frame = lambda: None
        self._next = defaultdict(int)
        self._asked = asyncio.Queue()
        self._permits = asyncio.Semaphore(0)
        self._takes_all = False
        self._table = RunTable(self.engine, Limits(), Timeouts())

    async def play(self, script):
        session = Session(self._run, Limits())
        reading = asyncio.create_task(self._read(session))
        acts = {"step": self._step, "event": self._event, "bare": self._bare, "end": self._end, "take": self._take}
        for what, which, count in script:
            if what == "start":
                await self._start()
            elif what == "turn":
                for _ in range(count):
                    await asyncio.sleep(0)
            elif what == "pause":
                await asyncio.sleep(count / 1000)
            else:
                acts[what](which, count)
        self._end(range(RUNS), 0)
        self._takes_all = True
        self._permits.release()
        async with asyncio.timeout(LIMIT_S):
            while len(self.done) < len(self.engine.outputs):
                await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
        await self._table.aclose(0)

    def _take(self, _which, count):
        for _ in range(count):
            self._permits.release()

    def _event(self, which, _count):
        for number in self._alive(which):
            self.put[number].append("why")
            self.engine.outputs[number].put(Reasoning("why"))

    def _bare(self, which, _count):
        """A token without an id for each."""
        for number in self._alive(which):
            self.put[number].append(b"b")
            put_tokens([self.engine.outputs[number]], [b"b"])

    async def _run(self, request):
        return self._table.start(ANONYMOUS, request, MODEL)

    async def _requests(self):
        while True:
            yield await self._asked.get()

    async def _start(self):
        number = len(self.engine.outputs)
        if number < RUNS:
            self._asked.put_nowait(SessionRequest(starts=[SessionStart(run=number, request=request())]))
            async with asyncio.timeout(LIMIT_S):
                while len(self.engine.outputs) == number:
                    await asyncio.sleep(0)

    def _alive(self, which):
        outputs = self.engine.outputs
        return [number for number in which if number < len(outputs) and outputs[number].wanted]

    def _step(self, which, count):
        for _ in range(count):
            numbers = [number for number in self._alive(which) if not self.engine.outputs[number].is_full]
            data = [b"%d " % len(self.put[number]) for number in numbers]
            for number, piece in zip(numbers, data, strict=True):
                self.put[number].append(piece)
            put_tokens([self.engine.outputs[number] for number in numbers], data, numbers)

    def _end(self, which, _count):
        for number in self._alive(which):
            self.engine.outputs[number].put(Finished(Finish(FinishReason.LENGTH)))
            self.engine.outputs[number].end()

    async def _read(self, session):
        async with aclosing(session.frames(self._requests())) as frames:
            async for frame in frames:
                self._note(frame)
                if not self._takes_all:
                    await self._permits.acquire()

    def _note(self, frame):
        """Take a frame as a client does: what begins, tokens, other events."""
        assert sum(frame.tokens.counts) <= MAX_TOKENS
        later = []
        for event in frame.events:
            assert event.HasField("response"), event
            if event.response.HasField("started"):
                self._advance(event.run, event.response.position, 1)
            else:
                later.append(event)
        for run, piece in segments(frame.tokens.SerializeToString()):
            rows = piece if isinstance(piece, Rows) else Rows(piece[0], piece[1], None, None, [piece[-1]])
            self._advance(run, rows.position, len(rows.data))
            self.got[run] += rows.data
        for event in later:
            self._advance(event.run, event.response.position, max(1, len(event.response.delta.tokens.tokens)))
            if event.response.HasField("delta"):
                delta = event.response.delta
                self.got[event.run] += [token.data for token in delta.tokens.tokens] or [delta.reasoning]
            if event.response.HasField("completed"):
                self.done.add(event.run)
        self.on_frame()
        acks = [SessionAck(run=run, position=position) for run, position in self._next.items()]
        self._asked.put_nowait(SessionRequest(acks=acks))

    def _advance(self, run, position, count):
        assert position == self._next[run]
        self._next[run] += count


def request():
    return GenerateRequest(prompt="x", max_tokens=100_000)


SOME = st.sets(st.integers(0, RUNS - 1), min_size=1).map(sorted)
ALL = list(range(RUNS))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("step"), st.one_of(SOME, st.just(ALL)), st.sampled_from([1, 1, 5, 200])),
            st.tuples(st.just("turn"), st.just(()), st.integers(1, 5)),
            st.tuples(st.just("take"), st.just(()), st.integers(1, 3)),
            st.tuples(st.just("start"), st.just(()), st.just(0)),
            st.tuples(st.just("event"), SOME, st.just(0)),
            st.tuples(st.just("bare"), SOME, st.just(0)),
            st.tuples(st.just("pause"), st.just(()), st.just(3)),
            st.tuples(st.just("end"), SOME, st.just(0)),
        ),
        max_size=50,
    )
)
@example([("start", (), 0)] * RUNS + [("turn", (), 5), ("step", ALL, 200), ("turn", (), 2), ("step", ALL, 200)])
def test_every_generation_comes_whole_and_in_order(script):
    scene = Scene()
    asyncio.run(scene.play([("start", (), 0), *script]))
    assert scene.got == scene.put


def test_tokens_of_another_kind_do_not_wait_for_ever():
    """No frame has ids for some of its tokens only; here others have a token whenever a frame has gone out."""

    async def play():
        scene = Scene()
        reading = asyncio.create_task(scene._read(Session(scene._run, Limits())))
        for _ in range(RUNS):
            await scene._start()
        scene._step(ALL, 1)
        scene._take(ALL, 1000)
        async with asyncio.timeout(LIMIT_S):
            while len(scene.got) < RUNS:
                await asyncio.sleep(0)
            waited = []

            def step():
                if not waited:
                    scene._bare([0], 1)
                waited.append(len(scene.got[0]) < 2)
                scene._step(ALL[1:], 1)

            scene.on_frame = step
            step()
            while len(scene.got[0]) < 2:
                await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
        await scene._table.aclose(0)
        return sum(waited)

    assert asyncio.run(play()) < 2 * 16


def test_a_session_that_is_cut_off_keeps_no_generation():
    async def play():
        scene = Scene()
        session = Session(scene._run, Limits())
        reading = asyncio.create_task(scene._read(session))
        for _ in range(RUNS):
            await scene._start()
        scene._step(ALL, 2)
        reading.cancel()
        await asyncio.wait({reading})
        await scene._table.aclose(0)
        scene.engine.outputs.clear()
        del session, reading, scene
        await asyncio.sleep(0)
        return journals_left()

    with uncollected() as journals_left:
        assert asyncio.run(play()) == 0


def test_a_session_leaves_nothing_behind_that_only_the_garbage_collector_finds():
    """It runs seldom, and a session has thousands of generations in a minute."""

    async def play():
        scene = Scene()
        await scene.play([("start", (), 0)] * RUNS + [("step", ALL, 3), ("turn", (), 3), ("step", ALL, 3)])
        scene.engine.outputs.clear()
        await asyncio.sleep(0)
        return journals_left()

    with uncollected() as journals_left:
        assert asyncio.run(play()) == 0
