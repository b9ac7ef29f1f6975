"""The sidecar is restarted under generations, in place and as a process."""

import asyncio
import socket

import pytest

from quill.errors import Code, Unavailable
from quill.shard.config import SidecarConfig
from quill.shard.sidecar import Sidecar
from quill.testing.sidecar import SidecarProcess
from support.generating import generate
from support.raw_sidecar import NOTHING, json_reply, raw_sidecar

FAST = {"health_interval_s": 0.2, "retry_budget_s": 30.0, "first_token_timeout_ms": 60_000}


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("dialect", ["A", "B", "C"])
async def test_a_waiting_generation_is_asked_once_more_under_a_new_id(dialect, sidecar_of):
    process = sidecar_of(dialect)
    process.behave(first_token_delay_ms=60_000)
    known = process.report()["request_ids"]
    async with Sidecar(SidecarConfig(base_url=process.url, dialect=dialect, **FAST)) as sidecar:
        running = [asyncio.create_task(generate(sidecar, f"Alice {n}", max_tokens=4)) for n in range(4)]
        await until(lambda: len(set(process.report()["request_ids"]) - set(known)) == 4)
        await asyncio.sleep(0.5)  # so that /health was asked before
        process.behave()
        process.restart()
        outcomes = await asyncio.gather(*running)
        assert [len(outcome.pieces) for outcome in outcomes] == [4] * 4
        assert sidecar.stats.resubmitted == 4
        assert sidecar.stats.restarts == 1
        ids = [one for one in process.report()["request_ids"] if one not in known]
        assert len(ids) == len(set(ids)) == 8


@pytest.mark.parametrize("transport", ["http_poll", "websocket"])
async def test_a_streaming_generation_fails_with_what_has_come(transport, sidecar_of):
    process = sidecar_of("A")
    process.behave(tokens_per_s=20)
    async with Sidecar(SidecarConfig(base_url=process.url, dialect="A", **FAST)) as sidecar:
        running = asyncio.create_task(generate(sidecar, max_tokens=1000, transport=transport))
        await until(lambda: sidecar._reach and any(live.text for live in sidecar._reach.everything))
        await asyncio.sleep(0.5)
        process.restart()
        outcome = await running
        assert outcome.code is Code.UNAVAILABLE
        assert outcome.pieces
        assert sidecar.stats.resubmitted == 0


async def test_a_second_restart_is_the_end(sidecar_of):
    process = sidecar_of("A")
    process.behave(first_token_delay_ms=60_000)
    async with Sidecar(SidecarConfig(base_url=process.url, dialect="A", **FAST)) as sidecar:
        running = asyncio.create_task(generate(sidecar))
        for restarts in (1, 2):
            await until(lambda n=restarts: sidecar.stats.started == n)
            await asyncio.sleep(0.5)
            process.restart()
            await until(lambda n=restarts: sidecar.stats.restarts == n)
        outcome = await running
        assert outcome.code is Code.UNAVAILABLE
        assert "restarted again" in str(outcome.error)


@pytest.mark.parametrize("dialect", ["A", "B"])
async def test_a_process_that_is_killed_and_started_again_is_a_restart(dialect):
    with SidecarProcess(dialect) as process:
        process.behave(first_token_delay_ms=60_000)
        async with Sidecar(SidecarConfig(base_url=process.url, dialect=dialect, **FAST)) as sidecar:
            running = [asyncio.create_task(generate(sidecar, f"Alice {n}", max_tokens=4)) for n in range(4)]
            await until(lambda: len(process.report()["request_ids"]) == 4)
            await asyncio.to_thread(process.kill)
            await asyncio.to_thread(process.start)
            outcomes = await asyncio.gather(*running)
            assert [len(outcome.pieces) for outcome in outcomes] == [4] * 4
            assert sidecar.stats.resubmitted == 4


async def test_a_process_that_stays_away_is_unavailable():
    with SidecarProcess("A") as process:
        process.behave(tokens_per_s=20)
        config = SidecarConfig(base_url=process.url, dialect="A", retry_budget_s=0.2)
        async with Sidecar(config) as sidecar:
            running = asyncio.create_task(generate(sidecar, max_tokens=1000))
            await until(lambda: sidecar._reach and any(live.text for live in sidecar._reach.everything))
            process.kill()
            outcome = await running
            assert outcome.code is Code.UNAVAILABLE
            assert outcome.pieces
            for transport in ("http_poll", "websocket", "auto"):
                refused = await generate(sidecar, transport=transport)
                assert refused.code is Code.UNAVAILABLE
                assert "connection refused" in str(refused.error)
            with pytest.raises(Unavailable, match="connection refused"):
                await sidecar.health()


async def test_a_request_waits_for_a_sidecar_that_comes_back():
    with SidecarProcess("A") as process:
        process.kill()
        async with Sidecar(SidecarConfig(base_url=process.url, **FAST)) as sidecar:
            running = [asyncio.create_task(generate(sidecar, transport=way)) for way in ("http_poll", "websocket")]
            await asyncio.to_thread(process.start)
            for outcome in await asyncio.gather(*running):
                assert outcome.code is None
            assert len(process.report()["request_ids"]) == 1


async def test_a_sidecar_without_health_that_refused_connections_was_restarted():
    """Only a raw peer closes its port for a moment and has no /health. A socket that does not listen keeps the port."""
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
        async with (
            raw_sidecar(port=port) as first,
            Sidecar(SidecarConfig(base_url=first.url, dialect="A", **FAST)) as sidecar,
        ):
            running = asyncio.create_task(generate(sidecar))
            await until(lambda: first.requests["pop"] and first.requests["health"])
            await first.stop()
            await until(lambda: sidecar.stats.failed_polls > 2)

            def pop(request_id):
                return json_reply({"result": {"token": "x", "done": True}}) if request_id in second.started else NOTHING

            async with raw_sidecar(port=port, pop=pop) as second:
                assert (await running).text == "x"
            assert len(second.started) == 1
            assert second.started != first.started


async def test_an_uptime_that_grows_is_no_restart():
    async with raw_sidecar(health=lambda _: json_reply({"uptime_ms": 10**9, "peer_id": "p"})) as raw:
        config = SidecarConfig(base_url=raw.url, **FAST | {"health_interval_s": 0.05, "first_token_timeout_ms": 1000})
        async with Sidecar(config) as sidecar:
            outcome = await generate(sidecar)
            assert outcome.code is Code.DEADLINE_EXCEEDED
            assert raw.requests["health"] > 3
            assert sidecar.stats.restarts == 0


@pytest.mark.parametrize("change", [{"uptime_ms": 5, "peer_id": "p"}, {"uptime_ms": 10**9 + 1, "peer_id": "q"}])
async def test_a_lower_uptime_or_another_peer_is_a_restart(change):
    def health(_):
        return json_reply({"uptime_ms": 10**9, "peer_id": "p"} if len(raw.started) < 1 or raw.calm else change)

    def pop(request_id):
        return json_reply({"result": {"token": "x", "done": True}}) if request_id in raw.started[1:] else NOTHING

    async with raw_sidecar(health=health, pop=pop) as raw:
        raw.calm = True
        async with Sidecar(SidecarConfig(base_url=raw.url, dialect="A", **FAST)) as sidecar:
            running = asyncio.create_task(generate(sidecar))
            await until(lambda: raw.requests["health"] > 1 and raw.requests["pop"])
            raw.calm = False
            assert (await running).text == "x"
            assert len(set(raw.started)) == 2


async def test_health_says_what_the_sidecar_says(sidecar_of):
    process = sidecar_of("B")
    async with Sidecar(SidecarConfig(base_url=process.url)) as sidecar:
        health = await sidecar.health()
        assert (health.status, health.connected_peers) == ("ok", 1)
        for nothing in ({"kind": "html"}, {"kind": "status", "status": 404}):
            process.set_faults({"on": "health", **nothing})
            assert await sidecar.health() is None
