"""Peers that die: from SIGKILL of a client to its backend that is told, and of a server to its client that knows.

usage: python benchmarks/kills.py [--clients 200] [--servers 200] [--json]

Each victim is a process of its own, forked from one that has loaded what it needs. So many servers are killed for each
of three ends: their generations have no TTL and are told at once; they have one, and nobody answers within it
(UNAVAILABLE); or another server answers in the same place, which knows nothing of them (ABORTED). An end without an
error, with another code or with another text than what had arrived, fails the program.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from told import TOKEN, Backend, quantile, tell, until
from ways import WAYS, Way, served

import quill

AT_ONCE = 4
READ_TOKENS = 5
IN_A_SESSION = 3
"""Generations of one session."""
TOLD_WITHIN_S = 30.0
LOADED = ["ways", "told", "quill.client.grpc_async", "quill.client.connect_async", "quill.client.llm.async_session"]
_context = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class End:
    """What becomes of generations whose server was killed."""

    resume_ttl_ms: int
    code: quill.Code
    is_replaced: bool = False
    """Whether another server takes the place."""


ENDS = {
    "": End(0, quill.Code.UNAVAILABLE),
    "unanswered_": End(1000, quill.Code.UNAVAILABLE),
    "replaced_": End(60_000, quill.Code.ABORTED, is_replaced=True),
}


def be_client(way: Way, url: str, request_id: str) -> None:
    """Read a generation until killed."""

    async def read() -> None:
        async with way.client(url) as client, way.streams(client) as start:
            async for _ in start("paced", max_tokens=1_000_000, request_id=request_id):
                pass

    asyncio.run(read())


def be_server(tell: Connection, way: Way, grpc: str, http: str) -> None:
    """Serve until killed."""

    async def serve() -> None:
        async with served(Backend(), grpc, http, http2=way.http2) as where:
            tell.send(where)
            await asyncio.Event().wait()

    asyncio.run(serve())


async def kill_client(backend: Backend, url: str, way: Way, number: int) -> float:
    """The seconds from the client's end to the backend that is told."""
    request_id = f"client-{number}"
    process = _context.Process(target=be_client, args=(way, url, request_id), daemon=True)
    with running(process):
        await until(lambda: request_id in backend.starts and backend.starts[request_id].tokens >= READ_TOKENS)
        start = backend.starts.pop(request_id)
        killed_s = kill(process)
        async with asyncio.timeout(TOLD_WITHIN_S):
            await start.changed.wait()
        return start.told_s - killed_s


async def kill_server(end: End, way: Way, number: int) -> float:
    """The seconds from the server's end to the last of its client's generations that is told.

    Raises:
        ValueError: One was told something else, or that this was all.
        TimeoutError: One was told nothing.
    """
    host = f"127.77.{number // 250}.{number % 250 + 1}"  # of its own: nobody else takes the port meanwhile
    async with contextlib.AsyncExitStack() as stack:
        process, where = await stack.enter_async_context(serving(way, f"{host}:0", f"{host}:0"))
        client = await stack.enter_async_context(way.client(where[way.protocol]))
        start = await stack.enter_async_context(way.streams(client))
        generations = [
            Generation(start("paced", max_tokens=1_000_000, resume_ttl_ms=end.resume_ttl_ms))
            for _ in range(IN_A_SESSION if way.is_session else 1)
        ]
        reads = [asyncio.create_task(generation.read()) for generation in generations]
        await until(lambda: all(one.tokens >= READ_TOKENS for one in generations) or any(one.done() for one in reads))
        killed_s = kill(process)
        if end.is_replaced:
            await asyncio.to_thread(process.join)  # else it may not have let go of its ports
            grpc, http = (where[protocol].partition("://")[2] for protocol in ("grpc", "connect"))
            await stack.enter_async_context(serving(way, grpc, http))
        async with asyncio.timeout(TOLD_WITHIN_S):
            errors = await asyncio.gather(*reads)
        for generation, error in zip(generations, errors, strict=True):
            if error.code is not end.code or error.text != TOKEN.decode() * generation.tokens:
                raise ValueError(f"{way}, {end}: {error!r} with {len(error.text)} characters") from error
        return max(generation.told_s for generation in generations) - killed_s


class Generation:
    """What comes of one."""

    def __init__(self, stream: quill.AsyncGenerationStream) -> None:
        self._stream = stream
        self.tokens = 0
        self.told_s = 0.0
        """When its end was told."""

    async def read(self) -> quill.StreamInterrupted:
        """Read it to its end, which is an error.

        Raises:
            ValueError: It is none.
        """
        try:
            async for delta in self._stream:
                self.tokens += len(delta.tokens)
        except quill.StreamInterrupted as error:
            self.told_s = time.monotonic()
            return error
        raise ValueError(f"a generation ended without an error after {self.tokens} tokens")


@contextlib.asynccontextmanager
async def serving(way: Way, grpc: str, http: str) -> AsyncIterator[tuple[BaseProcess, dict[str, str]]]:
    """A server in a process of its own, ready."""
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=be_server, args=(theirs, way, grpc, http), daemon=True)
    with ours, running(process):
        theirs.close()
        yield process, await asyncio.to_thread(ours.recv)


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
    async with served(backend) as where, served(backend, http2=True) as where_http2:

        async def victim(way: Way, number: int) -> float:
            return await kill_client(backend, (where_http2 if way.http2 else where)[way.protocol], way, number)

        took_s = await at_once(kills, victim)
    return {**figures("client", took_s), "backends_left": backend.live}


async def measure_servers(kills: int) -> dict[str, float]:
    """Kill so many servers for each end; the figures."""
    seen: dict[str, float] = {}
    for name, end in ENDS.items():
        took_s = await at_once(kills, functools.partial(kill_server, end))
        seen |= figures(f"{name}server", took_s)
    return seen


async def at_once(count: int, victim: Callable[[Way, int], Awaitable[float]]) -> list[float]:
    """Kill all of them, some at a time, in all ways."""
    left = enumerate(itertools.islice(itertools.cycle(WAYS.values()), count))
    took_s: list[float] = []

    async def worker() -> None:
        for number, way in left:
            took_s.append(await victim(way, number))

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
    # The process that is forked looks for what it loads by its environment alone.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    _context.set_forkserver_preload(LOADED)
    seen: dict[str, Any] = {}
    if options.clients:
        seen |= asyncio.run(measure_clients(options.clients))
    if options.servers:
        seen |= asyncio.run(measure_servers(options.servers))
    tell(seen, as_json=options.json)


if __name__ == "__main__":
    main()
