"""How often a sidecar is polled: at once where something may be there, and seldom where nothing is."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import quill
from quill.shard.config import SidecarConfig
from quill.shard.sidecar import Sidecar
from support.generating import generate
from support.raw_sidecar import NOTHING, json_reply, raw_sidecar

ROOT = Path(quill.__file__).parent.parent


async def polls_in(sidecar, seconds):
    polls, begun_s = sidecar.stats.polls, time.monotonic()
    await asyncio.sleep(seconds)
    return (sidecar.stats.polls - polls) / (time.monotonic() - begun_s)


@pytest.mark.parametrize(("dialect", "most_per_s"), [("A", 55), ("C", 55), ("B", 25)])
async def test_a_hundred_that_wait_share_one_budget(dialect, most_per_s):
    """On B one poll serves all: with pauses of 250 ms on average, some four a second."""
    config = {"idle_polls_per_s": 50, "first_token_timeout_ms": 600_000}
    async with raw_sidecar() as raw:
        sidecar = Sidecar(SidecarConfig(base_url=raw.url, dialect=dialect, **config))
        running = [asyncio.create_task(generate(sidecar)) for _ in range(100)]
        async with asyncio.timeout(30):
            while len(raw.started) < 100:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert await polls_in(sidecar, 1) <= most_per_s
        await sidecar.aclose()
        await asyncio.gather(*running)


async def test_tokens_that_are_ready_are_fetched_without_a_pause():
    """With pauses of a minute, the first one would take all the time that there is."""
    items = [{"token": str(number)} for number in range(20)] + [{"event": "done"}]

    def pop(_):
        return json_reply({"result": items.pop(0)})

    config = {"poll_interval_s": 60, "max_poll_interval_s": 60, "dialect": "A"}
    async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, **config)) as sidecar:
        outcome = await generate(sidecar)
        assert len(outcome.pieces) == 20
        assert sidecar.stats.polls == 21


async def test_every_poll_names_a_request():
    ids = []

    def pop(request_id):
        ids.append(request_id)
        return NOTHING

    for dialect in ("auto", "A", "B", "C"):
        ids.clear()
        config = {"dialect": dialect, "first_token_timeout_ms": 150}
        async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, **config)) as sidecar:
            await asyncio.gather(*(generate(sidecar, request_id=f"ünïque & {n}") for n in range(1)))
        assert set(ids) == {"%C3%BCn%C3%AFque%20%26%200"}


async def test_nothing_is_polled_when_nobody_waits():
    pop = json_reply({"result": {"token": "x", "done": True}})
    async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, dialect="A")) as sidecar:
        await generate(sidecar)
        assert await polls_in(sidecar, 0.5) == 0


def test_kills_under_load_leave_no_call_hanging_and_no_text_wrong():
    """The short form of ``python benchmarks/sidecar_kills.py --cycles 200``."""
    command = [sys.executable, "benchmarks/sidecar_kills.py", "--cycles", "3", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] == 3
    assert counts["succeeded"] > 0
