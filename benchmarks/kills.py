"""Peers that die: from SIGKILL of a client to its backend that is told, and of a server to its client that knows.

usage: python benchmarks/kills.py [--clients 200] [--servers 200] [--json]

Each victim is a process of its own, forked from one that has loaded what it needs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from told import PROTOCOLS, TOKEN, Backend, quantile, served, until

import quill

AT_ONCE = 4
READ_TOKENS = 5
_context = multiprocessing.get_context("forkserver")


def be_client(url: str, protocol: str, request_id: str) -> None:
    """Read a stream until killed."""
    with quill.QuillClient(url, protocol=protocol) as client:
        for _ in client.llm.stream("paced", max_tokens=1_000_000, request_id=request_id):
            pass


def be_server(tell: Connection) -> None:
    """Serve until killed."""

    async def serve() -> None:
        async with served(Backend()) as where:
            tell.send(where)
            await asyncio.Event().wait()

    asyncio.run(serve())


async def kill_client(backend: Backend, where: dict[str, str], protocol: str, number: int) -> float:
    """The seconds from the client's end to the backend that is told."""
    request_id = f"client-{number}"
    process = _context.Process(target=be_client, args=(where[protocol], protocol, request_id), daemon=True)
    with running(process):
        await until(lambda: request_id in backend.starts and backend.starts[request_id].tokens >= READ_TOKENS)
        start = backend.starts.pop(request_id)
        killed_s = kill(process)
        async with asyncio.timeout(30):
            await start.changed.wait()
        return start.told_s - killed_s


async def kill_server(protocol: str) -> float:
    """The seconds from the server's end to the client that is told UNAVAILABLE, with what it had.

    Raises:
        ValueError: The client was told something else, or that this was all.
    """
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=be_server, args=(theirs,), daemon=True)
    with ours, theirs, running(process):
        where = await asyncio.to_thread(ours.recv)
        client = quill.AsyncQuillClient(where[protocol], protocol=protocol)
        async with client, client.llm.stream("paced", max_tokens=1_000_000) as stream:
            seen = killed_s = 0.0
            try:
                async for delta in stream:
                    seen += len(delta.tokens)
                    if seen >= READ_TOKENS and not killed_s:
                        killed_s = kill(process)
            except quill.StreamInterrupted as error:
                took_s = time.monotonic() - killed_s
                if error.code is not quill.Code.UNAVAILABLE or error.text != TOKEN.decode() * int(seen):
                    raise ValueError(f"{protocol}: {error.code.name} with {len(error.text)} characters") from error
                return took_s
            raise ValueError(f"{protocol}: the stream ended without an error")


def kill(process: BaseProcess) -> float:
    """Kill a process; when that was."""
    assert process.pid is not None  # noqa: S101 - it was started
    now_s = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    return now_s


@contextlib.contextmanager
def running(process: BaseProcess) -> Iterator[None]:
    """Start a process; it does not outlive this."""
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join(30)


async def measure_clients(kills: int) -> dict[str, float]:
    """Kill so many clients; the figures."""
    backend = Backend()
    async with served(backend) as where:
        took_s = await at_once(kills, lambda protocol, number: kill_client(backend, where, protocol, number))
    return {**figures("client", took_s), "backends_left": backend.live}


async def measure_servers(kills: int) -> dict[str, float]:
    """Kill so many servers; the figures."""
    return figures("server", await at_once(kills, lambda protocol, _: kill_server(protocol)))


async def at_once(count: int, victim: Callable[[str, int], Awaitable[float]]) -> list[float]:
    """Kill all of them, some at a time, over all protocols."""
    left = enumerate(itertools.islice(itertools.cycle(PROTOCOLS), count))
    took_s: list[float] = []

    async def worker() -> None:
        for number, protocol in left:
            took_s.append(await victim(protocol, number))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
    return took_s


def figures(victim: str, took_s: list[float]) -> dict[str, float]:
    """The figures of one kind of victim."""
    return {
        f"{victim}_kills": len(took_s),
        f"{victim}_kill_noticed_p50_ms": quantile(took_s, 0.5) * 1000,
        f"{victim}_kill_noticed_p99_ms": quantile(took_s, 0.99) * 1000,
        f"{victim}_kill_noticed_max_ms": max(took_s) * 1000,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="How fast the end of a process is noticed at the other end.")
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--servers", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.clients and not options.servers:
        options.clients = options.servers = 200
    sys.path.insert(0, str(Path(__file__).parent))
    _context.set_forkserver_preload(["told", "quill.client.sync_client", "quill.client.llm.sync_llm"])
    seen: dict[str, Any] = {}
    if options.clients:
        seen |= asyncio.run(measure_clients(options.clients))
    if options.servers:
        seen |= asyncio.run(measure_servers(options.servers))
    if options.json:
        print(json.dumps(seen))
    else:
        for name, value in seen.items():
            print(f"{name.replace('_', ' '):<32} {value:g}")


if __name__ == "__main__":
    main()
