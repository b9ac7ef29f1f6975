"""Threads that a library starts are known by the name that they inherit, and waited for before the interpreter ends."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import httpcore
import pytest

from quill import Server
from quill.server.foreign_threads import ForeignThreads
from support.http1 import enveloped, post
from support.probe import STREAM, UNARY, Answer, serving

BURN = "while True: pass"


def threads():
    return {int(name) for name in os.listdir("/proc/self/task")}


@pytest.fixture
def busy_processor():
    """Every core has something to do that comes before what is idle."""
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(os.cpu_count())]
    yield
    for process in burning:
        process.kill()
        process.wait()


async def test_threads_that_are_started_inside_are_waited_for_and_no_others():
    let_go, other_let_go = threading.Event(), threading.Event()
    name = name_of(threading.get_native_id())
    known = ForeignThreads()
    other = threading.Thread(target=other_let_go.wait)
    other.start()

    def start_another():
        threading.Thread(target=let_go.wait).start()

    with known.started():
        threading.Thread(target=start_another).start()
    assert name_of(threading.get_native_id()) == name
    with pytest.raises(TimeoutError):
        await known.wait(0.05)
    assert known.alive() == 1
    let_go.set()
    await known.wait(10)
    assert known.alive() == 0
    assert other.is_alive()
    other_let_go.set()
    other.join()


async def test_no_thread_of_granian_outlives_a_server_that_stopped(busy_processor):
    for _ in range(3):
        before = threads()
        server = Server(grpc=None, http="127.0.0.1:0", http2=True)
        await server.start()
        await asyncio.to_thread(httpcore.request, "GET", server.http_url + "/healthz")
        mine = [thread for thread in threads() - before if name_of(thread).startswith("quill-")]
        assert mine
        for thread in mine:
            # They come last from here on, so that whoever does not wait for them is through first.
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        await server.stop(0.1)
        assert not threads() & set(mine)


async def test_an_object_of_a_request_that_is_left_in_a_cycle_does_not_keep_them(without_collections):
    async def keep(request, context):
        cycle = [context]
        cycle.append(cycle)
        return Answer()

    async with serving(options={"http2": True}, unary=keep) as server:
        assert (await post(server.http_url, UNARY, "application/proto", b"")).status == 200
        threads_of_granian = server._http_host._threads
        await server.stop(0)
        assert threads_of_granian.alive() == 0


async def test_what_outlives_a_request_does_not_keep_them(without_collections):
    """A timer holds the context of its call until it would have run, also when it was cancelled; so does a task."""
    let_go = asyncio.Event()
    outliving = []

    async def outlive(request, context):
        asyncio.get_running_loop().call_later(600, outlive).cancel()
        outliving.append(asyncio.create_task(let_go.wait()))
        yield Answer()

    async with serving(options={"http2": True}, stream=outlive) as server:
        assert (await post(server.http_url, STREAM, "application/connect+proto", enveloped(b""))).status == 200
        threads_of_granian = server._http_host._threads
        await server.stop(0)
        assert threads_of_granian.alive() == 0
    let_go.set()
    await asyncio.gather(*outliving)


@pytest.mark.parametrize("http2", [False, True])
async def test_calls_leave_nothing_of_theirs_to_the_garbage_collector(without_collections, http2):
    async def answer(request, context):
        return Answer()

    async def answers(request, context):
        yield Answer()

    async with serving(options={"http2": http2}, unary=answer, stream=answers) as server:
        for kind, path, body in (
            ("application/json", UNARY, b"{}"),
            ("application/connect+proto", STREAM, enveloped(b"")),
            ("application/grpc-web+proto", UNARY, enveloped(b"")),
        ):
            assert (await post(server.http_url, path, kind, body)).status == 200
        await asyncio.sleep(0.05)  # the last of them have ended, too
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
    assert [
        found for found in gc.garbage if type(found).__module__.startswith(("quill.server.connect", "granian"))
    ] == []


@pytest.fixture
def without_collections():
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def name_of(thread):
    return Path(f"/proc/self/task/{thread}/comm").read_text()
