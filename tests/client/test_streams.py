"""Streams that are left early: the call ends at the server, and a reader that waits is woken."""

import asyncio
import gc
import threading
import time

import pytest

from client.harness import LIMIT_S, RAW, ask
from quill import AsyncQuillClient, Cancelled, InvalidUsage, QuillClient
from quill.errors import Code, RpcError

HANGS = ask(count=1, hang=True)


@pytest.fixture
def url(host, protocol):
    """A server on which no stream runs."""
    host.until(lambda: host.raw.live == 0)
    return host.url(protocol)


@pytest.fixture
def blocking(url):
    with QuillClient(url) as client:
        yield client


def test_closing_a_stream_cancels_the_call(blocking, host):
    stream = blocking.stream(RAW, "Stream", HANGS)
    assert next(stream) == b"\0"
    assert host.raw.live == 1
    stream.close()
    host.until(lambda: host.raw.live == 0)
    assert list(stream) == []
    stream.close()


def test_leaving_a_with_block_cancels_the_call(blocking, host):
    with blocking.stream(RAW, "Stream", HANGS) as stream:
        next(stream)
    host.until(lambda: host.raw.live == 0)


def test_leaving_a_loop_cancels_the_call(blocking, host):
    for message in blocking.stream(RAW, "Stream", HANGS):
        assert message == b"\0"
        break
    host.until(lambda: host.raw.live == 0)


def test_an_abandoned_stream_leaves_the_client_usable(blocking, host):
    stream = blocking.stream(RAW, "Stream", HANGS)
    next(stream)
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
    gc.collect()
    host.until(lambda: host.raw.live == 0)
    assert blocking.call(RAW, "Unary", ask(bytes=1)) == b"\0"


def test_a_stream_that_is_never_read_sends_nothing(blocking, host):
    calls = host.raw.calls
    stream = blocking.stream(RAW, "Stream", HANGS)
    stream.close()
    del stream
    blocking.stream(RAW, "Stream", HANGS)
    assert blocking.call(RAW, "Unary", ask()) == b""
    assert host.raw.calls == calls + 1


def in_thread(action):
    """Run in a thread; returns the thread and where its outcome will be."""
    outcome = []

    def run():
        try:
            outcome.append(action())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def test_closing_a_stream_wakes_its_reader(blocking, host):
    stream = blocking.stream(RAW, "Stream", HANGS)
    next(stream)
    thread, outcome = in_thread(lambda: next(stream))
    time.sleep(0.1)
    stream.close()
    thread.join(LIMIT_S)
    (error,) = outcome
    assert type(error) is Cancelled
    assert "closed" in error.message
    host.until(lambda: host.raw.live == 0)


def test_closing_the_client_wakes_everybody_who_waits(url, host):
    client = QuillClient(url)
    stream = client.stream(RAW, "Stream", HANGS)
    next(stream)
    idle = client.stream(RAW, "Stream", HANGS)
    next(idle)
    waits = [
        in_thread(lambda: next(stream)),
        in_thread(lambda: client.call(RAW, "Unary", ask(sleep_s=60))),
        in_thread(lambda: client.stream(RAW, "Stream", ask(count=1, gap_s=60)).__next__()),
    ]
    host.until(lambda: host.raw.live == 3)
    time.sleep(0.1)
    client.close()
    for thread, outcome in waits:
        thread.join(LIMIT_S)
        assert [type(error) for error in outcome] == [Cancelled], outcome
    host.until(lambda: host.raw.live == 0)
    with pytest.raises(RpcError):
        next(idle)
    with pytest.raises(InvalidUsage, match="closed"):
        client.call(RAW, "Unary", ask())
    with pytest.raises(InvalidUsage, match="closed"):
        client.stream(RAW, "Stream", ask())
    assert client.health_check() is False
    client.close()


def test_an_error_in_the_callers_loop_cancels_the_call(blocking, host):
    def consume():
        with blocking.stream(RAW, "Stream", HANGS) as stream:
            for _ in stream:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        consume()
    host.until(lambda: host.raw.live == 0)


def test_the_idle_timeout_can_be_changed_while_the_stream_runs(blocking):
    stream = blocking.stream(RAW, "Stream", HANGS)
    next(stream)
    assert stream.idle_timeout_ms == 300_000
    stream.idle_timeout_ms = 100
    with pytest.raises(RpcError, match="100 ms") as caught:
        next(stream)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    with pytest.raises(InvalidUsage):
        stream.idle_timeout_ms = 0


def test_a_connection_is_used_again_after_a_stream(host, drive):
    with host.relay(host.url("connect")) as (port, connections):
        client = drive(f"http://127.0.0.1:{port}")
        for _ in range(5):
            client.stream(RAW, "Stream", ask(count=2))
            client.call(RAW, "Unary", ask())
        assert len(connections) == 1


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_cancelling_a_task_cancels_the_call_and_stays_a_cancellation(url, host, kind):
    async with AsyncQuillClient(url) as client:

        async def run():
            if kind == "unary":
                await client.call(RAW, "Unary", ask(sleep_s=60))
            async for _ in client.stream(RAW, "Stream", HANGS):
                pass

        calls = host.raw.calls
        task = asyncio.create_task(run())
        await asyncio.to_thread(host.until, lambda: host.raw.calls > calls)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(host.until, lambda: host.raw.live == 0)
        assert await client.call(RAW, "Unary", ask(bytes=1)) == b"\0"


async def test_a_timeout_around_a_call_is_a_timeout(url):
    async with AsyncQuillClient(url) as client:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await client.call(RAW, "Unary", ask(sleep_s=60))
        assert not isinstance(caught.value, RpcError)


async def test_closing_an_async_stream_cancels_the_call(url, host):
    async with AsyncQuillClient(url) as client:
        stream = client.stream(RAW, "Stream", HANGS)
        assert await anext(stream) == b"\0"
        await stream.aclose()
        await asyncio.to_thread(host.until, lambda: host.raw.live == 0)
        assert [message async for message in stream] == []


async def test_leaving_an_async_loop_cancels_the_call(url, host):
    async with AsyncQuillClient(url) as client:
        async for _ in client.stream(RAW, "Stream", HANGS):
            break
        await asyncio.to_thread(host.until, lambda: host.raw.live == 0)


async def test_closing_an_async_stream_wakes_its_reader(url):
    async with AsyncQuillClient(url) as client:
        stream = client.stream(RAW, "Stream", HANGS)
        await anext(stream)
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        await stream.aclose()
        with pytest.raises(Cancelled, match="closed"):
            await asyncio.wait_for(task, LIMIT_S)


async def test_closing_an_async_client_wakes_everybody_who_waits(url, host):
    client = AsyncQuillClient(url)
    stream = client.stream(RAW, "Stream", HANGS)
    await anext(stream)
    tasks = [
        asyncio.ensure_future(anext(stream)),
        asyncio.ensure_future(client.call(RAW, "Unary", ask(sleep_s=60))),
        asyncio.ensure_future(anext(client.stream(RAW, "Stream", ask(gap_s=60)))),
    ]
    await asyncio.to_thread(host.until, lambda: host.raw.live == 2)
    await asyncio.sleep(0.05)
    await client.close()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT_S)
    assert [type(error) for error in outcomes] == [Cancelled] * 3
    await asyncio.to_thread(host.until, lambda: host.raw.live == 0)
    with pytest.raises(InvalidUsage, match="closed"):
        await client.call(RAW, "Unary", ask())
    assert await client.health_check() is False
    await client.close()


async def test_many_streams_at_once_on_one_async_client(url):
    async def read(client, count):
        return [message async for message in client.stream(RAW, "Stream", ask(count=count, gap_s=0.001))]

    async with AsyncQuillClient(url) as client:
        replies = await asyncio.gather(*(read(client, count) for count in range(1, 41)))
    assert [len(messages) for messages in replies] == list(range(1, 41))
