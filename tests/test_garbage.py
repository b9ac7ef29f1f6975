"""Garbage is collected once there is some, and nothing is looked at while nothing grows."""

import asyncio
import contextlib
import gc
import os
import sys
import weakref
from pathlib import Path

import pytest

from llm.scripted import until
from quill import garbage


class Cycle:
    """What reference counts never free."""

    def __init__(self):
        self.self = self
        self.weight = [[] for _ in range(100)]


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def collections(monkeypatch):
    """The generations that were collected."""
    monkeypatch.setattr(garbage, "_PERIOD_S", 0.001)
    seen = []

    def saw(phase, info):
        if phase == "stop":
            seen.append(info["generation"])

    gc.callbacks.append(saw)
    yield seen
    gc.callbacks.remove(saw)


@contextlib.asynccontextmanager
async def tended():
    task = asyncio.create_task(garbage.collect_seldom())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_nothing_is_looked_at_while_nothing_grows(collections):
    async with tended():
        await until(lambda: 2 in collections)
        kept = [[] for _ in range(10_000)]
        for _ in range(50):
            await asyncio.sleep(0.002)
            kept[:5000] = [[] for _ in range(5000)]
        assert collections[collections.index(2) :] == [2], "half of these objects were made anew fifty times"
        assert gc.get_freeze_count() > len(kept), "they were set aside"


async def test_cycles_are_found_once_there_are_as_many_as_half_of_what_was_there(collections):
    async with tended():
        await until(lambda: 2 in collections)
        first = weakref.ref(Cycle())
        before = sys.getallocatedblocks()
        most = 0
        while first() is not None:
            for _ in range(50):
                Cycle()
            most = max(most, sys.getallocatedblocks())
            await asyncio.sleep(0.002)
            assert most < 3 * before, "it was never collected"
        assert most > 1.4 * before, "it came sooner than it should"
        assert collections.count(2) == 2
        await until(lambda: sys.getallocatedblocks() < 1.1 * before)


async def test_the_process_is_left_as_it_was_found(collections):
    before = gc.get_threshold()
    async with tended():
        await until(lambda: 2 in collections)
        assert gc.get_threshold() != before
    assert gc.get_threshold() == before
    assert not gc.get_freeze_count()


async def test_a_few_large_buffers_in_cycles_are_found_as_well_and_every_time(collections):
    async with tended():
        await until(lambda: 2 in collections)
        before = resident_bytes()
        for _ in range(5):
            first = weakref.ref(Cycle())
            while first() is not None:
                Cycle().weight = bytes(range(256)) * (8192 * 4)
                await asyncio.sleep(0.002)
                assert resident_bytes() < 2 * before, "it was never collected"
        assert collections.count(2) == 1 + 5
