"""What sessions of both clients make of frames, whose bytes are protobuf's, without a server."""

import asyncio
import queue
import threading
import time
from codecs import getincrementaldecoder

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.harness import LIMIT_S
from quill import StreamInterrupted, proto
from quill.client import faults
from quill.client.llm.async_session import AsyncSession, AsyncSessionStream
from quill.client.llm.fold import Fold
from quill.client.llm.session_state import SessionState
from quill.client.llm.session_view import SessionView
from quill.client.llm.sync_session import Session
from quill.errors import Cancelled, Code, InvalidUsage, Unavailable
from quill.proto import (
    GenerateRequest,
    SessionEvent,
    SessionResponse,
    StreamGenerateResponse,
    StreamOptions,
    TokenColumns,
)

EURO = "€".encode()


def started(run):
    return SessionEvent(run=run, response=StreamGenerateResponse(started=proto.Started(request_id="r", model="m")))


def completed(run, position):
    end = StreamGenerateResponse(position=position, completed=proto.Completed(entries=position + 1))
    return SessionEvent(run=run, response=end)


def columns(*segments):
    """A frame of (run, position, [bytes of a token, ...])."""
    made = TokenColumns()
    for run, position, pieces in segments:
        made.runs.append(run)
        made.positions.append(position)
        made.counts.append(len(pieces))
        made.ids.extend(range(position, position + len(pieces)))
        made.data_lengths.extend(map(len, pieces))
        made.data += b"".join(pieces)
    return SessionResponse(tokens=made)


class Messages:
    """The replies of a call that somebody else makes up, for either kind of client."""

    idle_timeout_ms = None

    def __init__(self, frames):
        self._frames = frames

    def __iter__(self):
        return iter(self._frames.get, None)

    async def __aiter__(self):
        while (frame := await self._frames.get()) is not None:
            yield frame

    def close(self):
        self._frames.put_nowait(None)

    async def aclose(self):
        self.close()


class Client:
    """Opens such a call."""

    protocol = "grpc"

    def __init__(self, frames):
        self.frames = frames

    def stream(self, *_, **__):
        return Messages(self.frames)


class View(SessionView):
    """A generation that nobody waits for."""

    waiter = None

    def wake(self):
        raise AssertionError("nobody waits")


class Home:
    """Knows how far its generations were read."""

    def __init__(self, state):
        self._state = state
        self.acknowledged = {}

    def acknowledge(self, number, position):
        self.acknowledged[number] = position

    def noted(self, stream):
        self._state.note(stream)

    def read(self, stream):
        self._state.read(stream)


PIECE = st.one_of(
    st.sampled_from([b"a", b" word", EURO, EURO[:1], EURO[1:2], EURO[2:], b"\xff"]), st.binary(max_size=90)
)


@st.composite
def told(draw):
    """Tokens of two sequences of one generation, and which of them travel together: as columns or as a message."""
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(["columns", "columns", "message"]),
                st.integers(0, 1),  # the sequence
                st.tuples(st.booleans(), st.booleans()),  # whether with ids, and with log probabilities
                st.lists(PIECE, min_size=1, max_size=5),
                st.booleans(),  # whether it comes again
            ),
            max_size=30,
        )
    )


@settings(max_examples=300, deadline=None)
@given(told())
def test_any_segmentation_gives_what_messages_of_one_token_give(groups):
    state = SessionState()
    home = Home(state)
    view = View(home, GenerateRequest(request_id="r"), lambda: 0.0)
    view.number = state.start(view)
    oracle, whole = Fold("r"), [started(view.number)]
    decoders = {number: getincrementaldecoder("utf-8")("replace") for number in (0, 1)}
    places = {0: 0, 1: 0}
    oracle.add(whole[0].response)
    state.take(SessionResponse(events=whole))
    position, texts, tokens = 1, {0: "", 1: ""}, {0: [], 1: []}
    for kind, sequence, (has_ids, has_logprobs), pieces, comes_again in groups:
        batch = proto.TokenBatch()
        for row, data in enumerate(pieces):
            token = batch.tokens.add(position=places[sequence], data=data)
            token.text = decoders[sequence].decode(data)
            if has_ids:
                token.id = position + row
            if has_logprobs:
                token.logprob = -row - 0.5
            places[sequence] += 1
            one = proto.Delta(sequence_id=sequence, text=token.text, tokens=proto.TokenBatch(tokens=[token]))
            oracle.add(StreamGenerateResponse(position=position + row, delta=one))
        if kind == "columns":
            frame = columns((view.number, position, pieces))
            frame.tokens.sequence_ids.append(sequence)
            frame.tokens.ids[:] = [token.id for token in batch.tokens if has_ids]
            frame.tokens.logprobs[:] = [token.logprob for token in batch.tokens if has_logprobs]
        else:
            decoders[sequence].reset()
            delta = proto.Delta(sequence_id=sequence, text="".join(t.text for t in batch.tokens), tokens=batch)
            message = StreamGenerateResponse(position=position, delta=delta)
            frame = SessionResponse(events=[SessionEvent(run=view.number, response=message)])
        position += len(pieces)
        for _ in range(1 + comes_again):
            state.take(frame)
        for piece in view.take_all():
            texts[piece.sequence_id] += piece.text
            tokens[piece.sequence_id] += piece.tokens
    end = completed(view.number, position)
    oracle.add(end.response)
    state.take(SessionResponse(events=[end]))
    assert view.take_all() == [None]
    expected = oracle.result()
    assert view._fold.result() == expected
    for choice in expected.choices:
        assert texts[choice.sequence_id] == choice.text
        assert tuple(tokens[choice.sequence_id]) == choice.tokens


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3000)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_reader_that_keeps_up_is_acknowledged_long_before_its_window_is_full(segments):
    state = SessionState()
    home = Home(state)
    view = View(home, GenerateRequest(request_id="r"), lambda: 0.0)
    view.number = state.start(view)
    position, since = 0, []
    for count, size in segments:
        state.take(columns((view.number, position, [b"x" * size] * count)))
        view.take_all()
        position += count
        since += [size] * count
        if home.acknowledged.get(view.number) == position:
            since.clear()
        assert len(since) < 64
        assert sum(since) < 20 * 1024


async def test_what_one_iterator_leaves_the_next_one_gives():
    frames = asyncio.Queue()
    async with AsyncSession(Client(frames)) as session, asyncio.timeout(LIMIT_S):
        streams = [session.stream("x") for _ in range(10)]
        frames.put_nowait(SessionResponse(events=[started(run) for run in range(1, 11)]))
        frames.put_nowait(columns(*((run, 1, [b"a"]) for run in range(1, 11))))
        seen = []
        while len(seen) < 10:
            async for stream, delta in session.deltas():
                seen.append((stream, delta.text))
                break
        assert seen == [(stream, "a") for stream in streams]


@pytest.mark.parametrize(
    ("read", "is_cancelled_first"),
    [(AsyncSessionStream.result, True), (AsyncSessionStream.__anext__, True), (AsyncSessionStream.__anext__, False)],
)
async def test_what_comes_before_a_cancelled_reader_has_its_turn_is_for_the_next(read, is_cancelled_first):
    async with AsyncSession(Client(asyncio.Queue())) as session, asyncio.timeout(LIMIT_S):
        stream = session.stream("x")
        session._state.take(SessionResponse(events=[started(1)]))
        reading = asyncio.create_task(read(stream))
        while stream.waiter is None:
            await asyncio.sleep(0)
        if is_cancelled_first:
            reading.cancel()
        session._state.take(columns((1, 1, [b"a"])))
        reading.cancel()
        await asyncio.wait({reading})
        assert reading.cancelled()
        async for reader, delta in session.deltas():
            assert (reader, delta.text) == (stream, "a")
            break


async def test_a_generation_with_a_gap_breaks_alone_whoever_reads_it():
    frames = asyncio.Queue()
    async with AsyncSession(Client(frames)) as session, asyncio.timeout(LIMIT_S):
        gathered, read, well = (session.stream("x") for _ in range(3))
        reading = [asyncio.create_task(wait()) for wait in (gathered.result, read.__anext__, well.result)]
        await asyncio.sleep(0)
        frames.put_nowait(SessionResponse(events=[started(run) for run in (1, 2, 3)]))
        frames.put_nowait(columns((1, 1, [b"a"]), (2, 1, [b"a"]), (3, 1, [b"a"])))
        assert (await reading[1]).text == "a"
        reading[1] = asyncio.create_task(read.__anext__())
        frames.put_nowait(columns((1, 3, [b"c"]), (2, 3, [b"c"]), (3, 2, [b"b"])))
        frames.put_nowait(SessionResponse(events=[completed(3, 3)]))
        for broken in reading[:2]:
            with pytest.raises(StreamInterrupted, match="expected entry 2, got entry 3") as caught:
                await broken
            assert (caught.value.code, caught.value.text) == (Code.DATA_LOSS, "a")
        assert (await reading[2]).text == "ab"
        with pytest.raises(StreamInterrupted, match="expected entry 2, got entry 3"):
            await gathered.result()


def test_the_blocking_session_gives_each_piece_once_and_breaks_alone():
    frames = queue.SimpleQueue()
    with Session(Client(frames)) as session:
        streams = [session.stream("x") for _ in range(10)]
        frames.put(SessionResponse(events=[started(run) for run in range(1, 11)]))
        frames.put(columns(*((run, 1, [b"a"]) for run in range(1, 11))))
        seen = []
        while len(seen) < 10:
            for stream, delta in session.deltas():
                seen.append((stream, delta.text))
                break
        assert seen == [(stream, "a") for stream in streams]
        outcomes = {}

        def gather(stream):
            try:
                outcomes[stream] = stream.result().text
            except StreamInterrupted as error:
                outcomes[stream] = (error.code, error.text)

        readers = [threading.Thread(target=gather, args=(stream,)) for stream in streams[:2]]
        for reader in readers:
            reader.start()
        frames.put(columns((1, 2, [b"b"]), (2, 3, [b"c"])))
        frames.put(SessionResponse(events=[completed(1, 3)]))
        for reader in readers:
            reader.join(LIMIT_S)
        assert outcomes == {streams[0]: "ab", streams[1]: (Code.DATA_LOSS, "a")}
        frames.put(columns((3, 2, [b"b", b"c"])))
        assert next(streams[2]).text == "bc"
    assert frames.empty() or frames.get() is None


async def test_a_generation_that_was_read_to_its_end_is_not_told_again():
    frames = asyncio.Queue()
    async with AsyncSession(Client(frames)) as session, asyncio.timeout(LIMIT_S):
        first, second = session.stream("x"), session.stream("x")
        frames.put_nowait(SessionResponse(events=[started(1), started(2)]))
        frames.put_nowait(columns((1, 1, [b"a"]), (2, 1, [b"b"])))
        frames.put_nowait(SessionResponse(events=[completed(1, 2), completed(2, 2)]))
        seen = []
        async for stream, delta in session.deltas():
            if not seen:
                assert stream is first
                assert (await second.result()).text == "b"
            seen.append((stream, delta and delta.text))
        assert seen == [(first, "a"), (first, None)]


def failed(run):
    return SessionEvent(run=run, error=proto.SessionError(code=Code.INTERNAL.grpc_number, message="broken"))


async def test_an_end_that_comes_before_a_generation_has_its_turn_is_told_once():
    frames = asyncio.Queue()
    async with AsyncSession(Client(frames)) as session, asyncio.timeout(LIMIT_S):
        first, second = session.stream("x"), session.stream("x")
        frames.put_nowait(SessionResponse(events=[started(1), started(2)]))
        frames.put_nowait(columns((1, 1, [b"a"]), (2, 1, [b"b"])))
        seen = []
        async for stream, delta in session.deltas():
            if not seen:
                session._state.take(SessionResponse(events=[failed(2)]))
                session._state.take(SessionResponse(events=[completed(1, 2)]))
            seen.append((stream, delta and delta.text))
        assert seen == [(first, "a"), (second, "b"), (second, None), (first, None)]
        with pytest.raises(StreamInterrupted, match="broken"):
            await second.result()


async def test_a_session_keeps_no_generation_that_was_read_to_its_end():
    frames = asyncio.Queue()
    async with AsyncSession(Client(frames)) as session, asyncio.timeout(LIMIT_S):
        streams = [session.stream("x") for _ in range(3)]
        ways = [streams[0].result, streams[1].result, streams[2].__anext__]
        early = asyncio.create_task(ways[0]())
        await asyncio.sleep(0)
        frames.put_nowait(SessionResponse(events=[started(run) for run in (1, 2, 3)]))
        frames.put_nowait(columns(*((run, 1, [b"a"]) for run in (1, 2, 3))))
        frames.put_nowait(SessionResponse(events=[completed(run, 2) for run in (1, 2, 3)]))
        await early
        await ways[1]()
        await ways[2]()
        with pytest.raises(StopAsyncIteration):
            await ways[2]()
        assert not session._state._fresh


async def test_a_stream_has_one_reader():
    async with AsyncSession(Client(asyncio.Queue())) as session, asyncio.timeout(LIMIT_S):
        stream = session.stream("x")
        reading = asyncio.create_task(stream.result())
        await asyncio.sleep(0)
        with pytest.raises(InvalidUsage, match="by another task"):
            await anext(stream)
        await stream.aclose()
        with pytest.raises(Cancelled):
            await reading


def test_a_stream_of_a_blocking_session_has_one_reader():
    with Session(Client(queue.SimpleQueue())) as session:
        stream = session.stream("x")
        ended = []

        def read():
            try:
                stream.result()
            except Cancelled as error:
                ended.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        while stream.waiter is None:
            time.sleep(0.001)
        with pytest.raises(InvalidUsage, match="by another thread"):
            next(stream)
        stream.close()
        reader.join(LIMIT_S)
        assert ended


def test_what_begins_while_a_session_is_lost_comes_along_when_it_is_resumed():
    state = SessionState()
    home = Home(state)
    resumable = GenerateRequest(request_id="r", stream_options=StreamOptions(resume_ttl_ms=60_000))
    old, new = View(home, resumable, lambda: 0.0), View(home, GenerateRequest(request_id="n"), lambda: 0.0)
    old.number = state.start(old)
    told = StreamGenerateResponse(started=proto.Started(request_id="r", epoch="e", resumable=True))
    state.take(SessionResponse(events=[SessionEvent(run=1, response=told)]))
    old.take_all()
    assert state.lost(Unavailable("cut")) is not None
    new.number = state.start(new)
    assert state.lost(faults.not_sent(Unavailable("cannot reach it"))) is not None
    assert state.live == 2
    assert state.lost(Unavailable("cut")) is not None  # it may have run
    assert state.live == 1
