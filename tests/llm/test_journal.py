"""The journal of a run: numbers, several readers, the bound, the end."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import FailedPrecondition, OutOfRange
from quill.llm.block import TokenEntry
from quill.llm.journal import Journal
from quill.proto import Completed, PromptProgress, Started, Token

LIMIT_S = 10


def entry(number, size=0):
    return TokenEntry(0, Token(position=number, data=b"x" * size))


def places(batch):
    return [entry.token.position for entry in batch]


async def everything(reader):
    seen = []
    async with asyncio.timeout(LIMIT_S):
        async for position, entries in reader:
            assert position == len(seen)
            seen += entries
    return seen


async def test_entries_are_numbered_from_zero_and_come_in_order():
    journal = Journal(10_000)
    written = [Started(), entry(0), entry(1), Completed()]
    for one in written:
        assert journal.end == written.index(one)
        journal.append(one)
    journal.close()
    assert await everything(journal.follow()) == written


async def test_a_reader_that_waits_is_woken_by_the_next_entry():
    journal = Journal(10_000)
    reading = asyncio.ensure_future(everything(journal.follow()))
    for number in range(3):
        await asyncio.sleep(0)
        journal.append(entry(number))
    await asyncio.sleep(0)
    assert not reading.done()
    journal.close()
    assert places(await reading) == [0, 1, 2]


async def test_a_reader_gets_all_that_is_there_up_to_a_batch():
    journal = Journal(1_000_000)
    for number in range(700):
        journal.append(entry(number))
    reader = journal.follow()
    position, batch = await anext(reader)
    assert (position, len(batch)) == (0, 512)
    position, batch = await anext(reader)
    assert (position, len(batch)) == (512, 188)


async def test_several_readers_each_see_everything():
    journal = Journal(10_000)
    readings = [asyncio.ensure_future(everything(journal.follow())) for _ in range(5)]
    for number in range(20):
        journal.append(entry(number))
        if number % 3 == 0:
            await asyncio.sleep(0)
    journal.close()
    for seen in await asyncio.gather(*readings):
        assert places(seen) == list(range(20))


async def test_reading_may_begin_in_the_middle_but_not_past_the_end():
    journal = Journal(10_000)
    for number in range(4):
        journal.append(entry(number))
    position, batch = await anext(journal.follow(2))
    assert (position, places(batch)) == (2, [2, 3])
    journal.follow(4)
    with pytest.raises(OutOfRange, match="entry 5 is not there: the journal has entries 0 to 3"):
        journal.follow(5)


async def test_an_error_comes_after_what_was_written_and_to_every_reader_as_its_own():
    journal = Journal(10_000)
    journal.append(entry(0))
    journal.close(FailedPrecondition("no memory", trailers=[("k", "v")]))
    raised = []
    for _ in range(2):
        reader = journal.follow()
        assert places((await anext(reader))[1]) == [0]
        with pytest.raises(FailedPrecondition, match="no memory") as caught:
            await anext(reader)
        assert caught.value.trailers == (("k", "v"),)
        raised.append(caught.value)
    assert raised[0] is not raised[1]


async def test_only_the_first_close_counts():
    journal = Journal(10_000)
    journal.close()
    journal.close(FailedPrecondition("late"))
    assert await everything(journal.follow()) == []


async def test_a_cancelled_reader_does_not_break_the_writer():
    """Cancelling a task cancels the future that it waits for; waking that future would raise in the writer."""
    journal = Journal(10_000)
    staying = asyncio.ensure_future(everything(journal.follow()))
    leaving = asyncio.ensure_future(everything(journal.follow()))
    await asyncio.sleep(0)
    leaving.cancel()
    journal.append(entry(0))  # before the cancelled task has had its turn
    journal.close()
    assert places(await staying) == [0]
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_progress_reaches_a_waiting_reader_and_is_void_after_the_next_entry():
    journal = Journal(10_000)
    journal.append(entry(0))
    journal.note(PromptProgress(processed=1))
    reader = journal.follow()
    assert (await anext(reader))[0] == 0
    assert await anext(reader) == (1, [PromptProgress(processed=1)])
    journal.note(PromptProgress(processed=2))
    journal.append(entry(1))
    position, batch = await anext(reader)
    assert (position, places(batch)) == (1, [1])


async def test_the_writer_waits_while_the_fastest_reader_is_too_far_behind():
    journal = Journal(5_000)
    slow, fast = journal.follow(), journal.follow()
    while not journal.full:
        journal.append(entry(journal.end, size=100))
    written = journal.end
    assert 5 <= written <= 10
    room = asyncio.Event()
    journal.on_turn = room.set
    await anext(slow)
    assert not room.is_set(), "given, but not taken"
    await anext(fast)
    assert not room.is_set()
    waiting = asyncio.ensure_future(anext(fast))  # asking for more means having taken
    await asyncio.wait_for(room.wait(), LIMIT_S)
    assert not journal.full
    journal.append(entry(written))
    assert (await waiting)[0] == written


async def test_a_reader_that_fell_behind_is_told_so():
    journal = Journal(1_000)
    slow, fast = journal.follow(), journal.follow()
    for number in range(100):
        journal.append(entry(number, size=100))
        await anext(fast)
    with pytest.raises(OutOfRange, match=r"entry 0 is gone: the journal begins at \d+"):
        await anext(slow)


async def test_a_closed_reader_counts_no_longer():
    journal = Journal(10_000)
    reader = journal.follow()
    assert journal.readers == [reader]
    reader.close()
    reader.close()
    assert journal.readers == []


@settings(max_examples=200)
@given(st.lists(st.one_of(st.integers(0, 400), st.just("read")), max_size=120))
def test_the_journal_keeps_to_its_bound_and_loses_nothing_that_was_not_taken(steps):
    """Against a list of everything written: the reader sees it all, and only what it took is forgotten."""

    async def play():
        journal = Journal(2_000)
        reader, seen, written, largest = journal.follow(), [], 0, 0
        for step in steps:
            if step == "read":
                if len(seen) < written:
                    seen += places((await anext(reader))[1])
            elif not journal.full:
                journal.append(entry(written, size=step))
                written += 1
                largest = max(largest, step)
            kept = journal.read(journal.first)
            assert sum(len(one.token.data) for one in kept) <= 2_000 + largest + 400
            assert len(kept) + journal.first == written
        journal.close()
        while len(seen) < written:
            seen += places((await anext(reader))[1])
        assert seen == list(range(written))

    asyncio.run(play())
