"""Threads that a library starts are known by the name that they inherit, and waited for before the interpreter ends."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import httpcore
import pytest

from quill import Server
from quill.server.foreign_threads import ForeignThreads

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


def name_of(thread):
    return Path(f"/proc/self/task/{thread}/comm").read_text()
