"""The timeouts of a call on a clock that the test moves."""

import asyncio

import pytest

from quill.client.clock import CallClock
from quill.client.transport import Call
from quill.errors import Code, DeadlineExceeded, RpcError


class Now:
    def __init__(self):
        self.s = 1000.0

    def __call__(self):
        return self.s


@pytest.fixture
def now():
    return Now()


def clock(now, **timeouts):
    return CallClock(Call(service="a.B", method="C", **timeouts), now)


def test_a_call_without_timeouts_waits_for_ever(now):
    timer = clock(now)
    assert timer.begin_wait() is None
    assert timer.remaining_s() is None


def test_the_total_deadline_counts_from_the_first_wait(now):
    timer = clock(now, timeout_ms=500)
    now.s = 1010.0
    assert timer.begin_wait() == 1010.5
    now.s = 1010.25
    assert timer.remaining_s() == 0.25
    timer.received()
    assert timer.begin_wait() == 1010.5
    now.s = 1011.0
    assert timer.remaining_s() == 0.0
    assert timer.expired().message == "the call did not end within its timeout of 500 ms"


def test_the_first_message_and_the_gaps_have_their_own(now):
    timer = clock(now, first_message_timeout_ms=2000, idle_timeout_ms=300)
    assert timer.begin_wait() == 1002.0
    assert timer.expired().message == "the first message did not come within 2000 ms"
    timer.received()
    now.s = 1005.0
    assert timer.begin_wait() == 1005.3
    assert timer.expired().message == "no message came for 300 ms (idle_timeout_ms)"
    timer.idle_timeout_ms = None
    assert timer.begin_wait() is None


def test_the_nearer_deadline_counts_and_is_named(now):
    timer = clock(now, timeout_ms=1000, idle_timeout_ms=300)
    timer.begin_wait()
    timer.received()
    now.s = 1000.5
    assert timer.begin_wait() == 1000.8
    assert "300 ms" in timer.expired().message
    now.s = 1000.9
    assert timer.begin_wait() == 1001.0
    assert "1000 ms" in timer.expired().message


def test_only_a_deadline_that_has_passed_here_is_put_into_own_words(now):
    timer = clock(now, timeout_ms=1000)
    timer.begin_wait()
    told = RpcError.of(Code.DEADLINE_EXCEEDED, "theirs", trailers=(("a", "b"),))
    assert timer.explain(told) is told
    now.s = 1000.95
    explained = timer.explain(told)
    assert isinstance(explained, DeadlineExceeded)
    assert "1000 ms" in explained.message
    assert explained.trailers == (("a", "b"),)
    other = RpcError.of(Code.NOT_FOUND, "no")
    assert timer.explain(other) is other


async def test_a_wait_on_a_loop_can_be_interrupted_and_one_that_has_ended_not():
    timer = CallClock(Call(service="a.B", method="C", timeout_ms=60_000), asyncio.get_running_loop().time)
    timer.interrupt()

    async def wait():
        async with asyncio.timeout_at(timer.begin_wait()) as timer.wait:
            await asyncio.Event().wait()

    asyncio.get_running_loop().call_soon(timer.interrupt)
    with pytest.raises(TimeoutError):
        await wait()
    timer.interrupt()
