"""Alarms are due when they should be, and take few timers of the event loop."""

import asyncio
import math
import random

import pytest

from llm.scripted import until
from quill.llm.alarms import Alarms


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time goes on at once when nobody has anything to do."""

    def __init__(self):
        super().__init__()
        self.now_s = 1000.0
        self.timers = 0

    def time(self):
        return self.now_s

    def call_at(self, when, callback, *args, context=None):
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)

    def run_to(self, when_s):
        """Let everything happen up to a time."""
        while self._scheduled and self._scheduled[0]._when <= when_s:
            self.now_s = max(self.now_s, self._scheduled[0]._when)
            self.run_until_complete(asyncio.sleep(0))
        self.now_s = when_s


@pytest.fixture
def loop():
    clock = Clock()
    yield clock
    clock.close()


def in_loop(loop, function, *args):
    async def call():
        return function(*args)

    return loop.run_until_complete(call())


@pytest.mark.parametrize("seed", range(20))
def test_each_is_called_once_after_its_delay_and_hardly_later(loop, seed):
    rng, alarms, called = random.Random(seed), Alarms(), {}
    wanted = {}
    for number in range(300):
        delay_s = rng.choice([0.0, 0.001, 0.1, 1.0, 5.0, 30.0, 300.0]) * rng.uniform(0.5, 1.5)
        loop.run_to(loop.now_s + rng.uniform(0, 0.5))
        wanted[number] = loop.now_s, delay_s
        in_loop(loop, alarms.after, delay_s, lambda number=number: called.setdefault(number, []).append(loop.now_s))
    loop.run_to(loop.now_s + 1000)
    assert {number: len(times) for number, times in called.items()} == dict.fromkeys(wanted, 1)
    for number, (set_s, delay_s) in wanted.items():
        late_s = called[number][0] - set_s - delay_s
        assert -1e-9 <= late_s <= max(0.002, delay_s * 0.004), (delay_s, late_s)


def test_what_is_cancelled_is_not_called_also_by_one_that_is_due_with_it(loop):
    alarms, called = Alarms(), []
    kept = in_loop(loop, alarms.after, 10, lambda: called.append("kept"))
    gone = in_loop(loop, alarms.after, 10, lambda: called.append("gone"))
    gone.cancel()
    gone.cancel()
    pair = []
    for name in ("first", "second"):

        def fire(name=name):
            called.append(name)
            for alarm in pair:
                alarm.cancel()

        pair.append(in_loop(loop, alarms.after, 10, fire))
    loop.run_to(loop.now_s + 20)
    kept.cancel()
    assert sorted(called) in (["first", "kept"], ["kept", "second"])


def test_thousands_of_runs_take_hundreds_of_timers_and_cancelled_ones_none(loop):
    alarms = Alarms()
    for _ in range(20_000):
        loop.now_s += 0.003
        in_loop(loop, alarms.after, 300.0, list).cancel()
    assert loop.timers < 100, "a minute has some sixty steps of a second"
    assert sum(map(len, alarms._due.values())) == 0, "nothing is kept of what was cancelled"


def test_an_infinite_delay_never_ends(loop):
    alarms = Alarms()
    in_loop(loop, alarms.after, math.inf, list).cancel()
    assert not loop.timers


def test_one_that_raises_keeps_no_other_from_its_turn(loop):
    alarms, called, told = Alarms(), [], []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))

    def wrong():
        raise ValueError("wrong")

    for number in range(5):
        in_loop(loop, alarms.after, 10, lambda number=number: called.append(number))
        in_loop(loop, alarms.after, 10, wrong)
    loop.run_to(loop.now_s + 20)
    for _ in range(10):
        loop.run_until_complete(asyncio.sleep(0))
    assert sorted(called) == list(range(5))
    assert list(map(str, told)) == ["wrong"] * 5


async def test_they_are_called_by_a_real_loop():
    alarms, called = Alarms(), []
    alarms.after(0.01, lambda: called.append(asyncio.get_running_loop().time()))
    began_s = asyncio.get_running_loop().time()
    await until(lambda: called)
    assert called[0] - began_s >= 0.01
