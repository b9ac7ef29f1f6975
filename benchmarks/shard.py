"""What the sidecar client costs: the first token's added latency, and the CPU of generations that wait.

usage: python benchmarks/shard.py [--json] [--pairs N] [--waiting N] [--seconds S]

The peer is the sidecar for development in a process of its own. Latency is measured against httpx and websockets that
speak to it without Quill, in turn. CPU is this process's alone, as a share of one core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx
from websockets.asyncio.client import connect

from quill.shard.config import SidecarConfig
from quill.shard.request import new_request_id
from quill.shard.sidecar import Piece, ShardRequest, Sidecar
from quill.testing.sidecar import SidecarProcess

_WAITING = {"A_poll": "http_poll", "B_poll": "http_poll", "C_poll": "http_poll", "C_websocket": "websocket"}
_SETTLE_S = 3.0


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description="The cost of the sidecar client.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--pairs", type=int, default=100, help="of generations with and without Quill")
    parser.add_argument("--waiting", type=int, default=100, help="generations that wait for their first token")
    parser.add_argument("--seconds", type=float, default=10.0, help="for which they are watched")
    given = parser.parse_args()
    figures = asyncio.run(_latencies(given.pairs))
    for name, transport in _WAITING.items():
        figures |= asyncio.run(_waiting(name, transport, given.waiting, given.seconds))
    if given.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:<44} {value:>9.4f}")


async def _latencies(pairs: int) -> dict[str, float]:
    """The medians of the time to the first token, direct and through the client, when tokens are ready at once."""
    figures: dict[str, float] = {}
    with SidecarProcess("A") as process:
        async with (
            httpx.AsyncClient(base_url=process.url, trust_env=False) as client,
            Sidecar(SidecarConfig(base_url=process.url, dialect="A")) as sidecar,
        ):
            ways: dict[str, tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]] = {
                "poll": (lambda: _direct_poll(client), lambda: _first(sidecar, "http_poll")),
                "websocket": (lambda: _direct_websocket(process.websocket_url), lambda: _first(sidecar, "websocket")),
            }
            for name, (direct, through) in ways.items():
                times: tuple[list[float], list[float]] = ([], [])
                for turn in range(pairs + 10):
                    for call, into in zip((direct, through), times, strict=True):
                        begun_s = time.perf_counter()
                        await call()
                        if turn >= 10:  # noqa: PLR2004 - the first ones open connections
                            into.append((time.perf_counter() - begun_s) * 1000)
                bare, quill = map(statistics.median, times)
                figures[f"{name}_direct_first_token_ms"] = bare
                figures[f"{name}_first_token_ms"] = quill
                figures[f"{name}_added_first_token_ms"] = quill - bare
    return figures


async def _direct_poll(client: httpx.AsyncClient) -> None:
    request_id = new_request_id()
    body = {"request_id": request_id, "prompt_context": "Alice was", "max_new_tokens": 1, "min_tokens": 1}
    (await client.post("/broadcast-work", json=body)).raise_for_status()
    while True:
        reply = await client.get("/pop-result", params={"request_id": request_id})
        if reply.json()["result"] is not None:
            return


async def _direct_websocket(url: str) -> None:
    async with connect(url, proxy=None, compression=None) as socket:
        await socket.send(json.dumps({"request_id": new_request_id(), "prompt": "Alice was", "max_new_tokens": 1}))
        json.loads(await socket.recv())


async def _first(sidecar: Sidecar, transport: str) -> None:
    async for event in sidecar.generate(ShardRequest(prompt="Alice was", max_tokens=1, transport=transport)):  # type: ignore[arg-type]
        if isinstance(event, Piece):
            continue


async def _waiting(name: str, transport: str, count: int, seconds: float) -> dict[str, float]:
    """The CPU share while so many generations wait for a first token that does not come."""
    with SidecarProcess(name[0]) as process:
        process.behave(first_token_delay_ms=3_600_000)
        config = SidecarConfig(base_url=process.url, dialect=name[0], first_token_timeout_ms=600_000)  # type: ignore[arg-type]
        async with Sidecar(config) as sidecar:
            running = [asyncio.create_task(_first(sidecar, transport)) for _ in range(count)]
            while sidecar.stats.started < count:  # noqa: ASYNC110 - a counter tells nobody when it moves
                await asyncio.sleep(0.01)
            await asyncio.sleep(_SETTLE_S)
            polls, begun_s, cpu_s = sidecar.stats.polls, time.monotonic(), time.process_time()
            await asyncio.sleep(seconds)
            elapsed_s = time.monotonic() - begun_s
            figures = {
                f"{name}_{count}_waiting_cpu_share": (time.process_time() - cpu_s) / elapsed_s,
                f"{name}_{count}_waiting_polls_per_s": (sidecar.stats.polls - polls) / elapsed_s,
            }
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    return figures


if __name__ == "__main__":
    main()
