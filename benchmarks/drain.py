"""Servers that stop in order: what becomes of their streams, and what clients of a rolling restart notice.

usage: python benchmarks/drain.py [--streams 200] [--restarts 50] [--slack 1] [--json]

The servers are `quill serve` with a backend of the benchmark's own, stopped by SIGTERM. A restart takes some 3 s, and
three times as long on a busy machine: standard error tells how far it is. It fails where a figure is out of its bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import told
from ways import STREAMS, urls

import quill

HERE = Path(__file__).resolve().parent
GRACE_S = 3.0
GAP_S = 0.05
SHORT_TOKENS = 20
"""A stream of so many ends within the grace, on a busy machine too."""
CALLERS = 4
NONE = ("not_ended_within_the_grace", "ended_otherwise", "orphan_runs", "exit_status", "failed_idempotent_calls")
"""Figures that have to be 0."""
READY_S = 1.5
"""After a server is ready again, before the next one is stopped."""
START_S = 60.0
END_S = 30.0
"""How long is waited for what has to come, before the program fails."""


class PacedBackend(told.Backend):
    """A token every 50 ms; at its end it tells on standard error what became of its starts."""

    def __init__(self) -> None:
        super().__init__(GAP_S)

    async def aclose(self) -> None:
        """Tell."""
        every = self.starts.values()
        ends = Counter(start.ends for start in every)
        print(json.dumps({"starts": len(every), "live": self.live, "ended_once": ends[1]}), file=sys.stderr)


@contextlib.asynccontextmanager
async def serving(grpc: str, http: str, grace_s: float) -> AsyncIterator[tuple[Process, dict[str, str]]]:
    """`quill serve` with the backend, ready."""
    with tempfile.TemporaryDirectory() as folder:
        offered = Path(folder) / "paced-1.dist-info"
        offered.mkdir()
        (offered / "METADATA").write_text("Metadata-Version: 2.1\nName: paced\nVersion: 1\n")
        (offered / "entry_points.txt").write_text("[quill.backends]\npaced = drain:PacedBackend\n")
        path = os.pathsep.join([folder, str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quill", "serve", "--backend", "paced", "--json"),
            *("--grpc", grpc, "--http", http, "--grace-s", str(grace_s)),
            stdout=PIPE,
            stderr=PIPE,
            env=os.environ | {"PYTHONPATH": path},
        )
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            async with asyncio.timeout(START_S):
                ready = json.loads(await process.stdout.readline())
            yield process, urls(ready["grpc"], ready["http"])
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def read(stream: quill.AsyncGenerationStream, began: asyncio.Semaphore) -> str:
    """Read a stream to its end; what the end was."""
    seen = 0
    try:
        async for delta in stream:
            if not seen:
                began.release()
            seen += len(delta.tokens)
    except quill.StreamInterrupted as error:
        told_all = error.position > seen and error.text == told.TOKEN.decode() * seen
        return f"{error.code.name} {'with' if told_all else 'without'} its position"
    return "whole" if seen == SHORT_TOKENS else "short"


async def drain(streams: int) -> dict[str, float]:
    """Stop a server under live streams, half of which end within the grace."""
    async with serving("127.0.0.1:0", "127.0.0.1:0", GRACE_S) as (process, where), contextlib.AsyncExitStack() as stack:
        began = asyncio.Semaphore(0)
        clients = [await stack.enter_async_context(way.client(where[way.protocol])) for way in STREAMS.values()]
        tasks = {}
        for number in range(streams):
            tokens = SHORT_TOKENS if number % 2 else 1_000_000
            stream = clients[number % len(clients)].llm.stream("paced", max_tokens=tokens)
            tasks[asyncio.create_task(read(await stack.enter_async_context(stream), began))] = tokens
        async with asyncio.timeout(START_S):
            for _ in range(streams):
                await began.acquire()
        progress(f"{streams} streams began, the server is told to stop")
        stopped_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(GRACE_S + END_S):
            _, errors = await process.communicate()
        exit_s = time.monotonic() - stopped_s
        ends = {SHORT_TOKENS: Counter[str](), 1_000_000: Counter[str]()}
        async with asyncio.timeout(END_S):
            for task, tokens in tasks.items():
                ends[tokens][await task] += 1
    runs = json.loads(errors.decode().strip().splitlines()[-1])
    return {
        "streams": streams,
        "ended_within_the_grace": ends[SHORT_TOKENS]["whole"],
        "not_ended_within_the_grace": ends[SHORT_TOKENS].total() - ends[SHORT_TOKENS]["whole"],
        "unavailable_with_position": ends[1_000_000]["UNAVAILABLE with its position"],
        "ended_otherwise": ends[1_000_000].total() - ends[1_000_000]["UNAVAILABLE with its position"],
        "orphan_runs": runs["starts"] - runs["ended_once"],
        "exit_after_grace_s": exit_s - GRACE_S,
        "exit_status": process.returncode if process.returncode is not None else -1,
    }


async def stop_twice() -> dict[str, float]:
    """The seconds from a second SIGTERM to the end of a server with a long grace."""
    async with serving("127.0.0.1:0", "127.0.0.1:0", 60) as (process, where):
        client = quill.AsyncQuillClient(where["grpc"])
        async with client, client.llm.stream("paced", max_tokens=1_000_000) as stream:
            await anext(stream)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            await anext(stream)  # it goes on within the grace
            stopped_s = time.monotonic()
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(END_S):
                await process.wait()
            return {"exit_after_second_signal_s": time.monotonic() - stopped_s}


async def roll(restarts: int) -> dict[str, float]:
    """Restart two servers in turn, so many times in all, under calls that may run twice."""
    ports = free_ports(4)
    stop = asyncio.Event()
    calls = failures = 0
    kinds: Counter[str] = Counter()

    async def call(client: quill.AsyncQuillClient) -> None:
        nonlocal calls, failures
        while not stop.is_set():
            calls += 1
            try:
                await client.llm.models()
            except quill.QuillError as error:
                failures += 1
                kinds[str(error)] += 1
            await asyncio.sleep(0.01)

    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(contextlib.AsyncExitStack()) for _ in range(2)]
        addresses = [(f"127.0.0.1:{ports[n]}", f"127.0.0.1:{ports[n + 2]}") for n in range(2)]
        processes = [
            (await one.enter_async_context(serving(*address, GRACE_S)))[0]
            for one, address in zip(servers, addresses, strict=True)
        ]
        url = "grpc+ipv4://" + ",".join(grpc for grpc, _ in addresses)
        client = await stack.enter_async_context(quill.AsyncQuillClient(url))
        callers = [asyncio.create_task(call(client)) for _ in range(CALLERS)]
        for number in range(restarts):
            progress(f"restart {number + 1} of {restarts}, {failures} of {calls} calls failed")
            processes[number % 2].send_signal(signal.SIGTERM)
            async with asyncio.timeout(GRACE_S + END_S):
                await processes[number % 2].wait()
            await servers[number % 2].aclose()
            processes[number % 2], _ = await servers[number % 2].enter_async_context(
                serving(*addresses[number % 2], GRACE_S)
            )
            await asyncio.sleep(READY_S)
        stop.set()
        await asyncio.gather(*callers)
    for kind, count in kinds.items():
        print(f"{count} x {kind}", file=sys.stderr)
    return {"restarts": restarts, "idempotent_calls": calls, "failed_idempotent_calls": failures}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


def progress(what: str) -> None:
    """Tell how far it is."""
    print(what, file=sys.stderr, flush=True)


async def measure(streams: int, restarts: int) -> dict[str, float]:
    """The figures."""
    seen: dict[str, float] = {}
    if streams:
        seen |= await drain(streams) | await stop_twice()
    if restarts:
        seen |= await roll(restarts)
    return seen


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="Servers that stop in order.")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--slack", type=float, default=1, help=told.SLACK)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seen = asyncio.run(measure(options.streams, options.restarts))
    told.tell(seen, as_json=options.json)
    bounds = dict.fromkeys(NONE, (0.0, 0.0))
    bounds["exit_after_grace_s"] = (-GRACE_S, 2 * options.slack)
    bounds["exit_after_second_signal_s"] = (0, 1 * options.slack)
    sys.exit(told.missed(seen, bounds) > 0)


if __name__ == "__main__":
    main()
