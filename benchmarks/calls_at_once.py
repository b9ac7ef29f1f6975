"""Thousands of calls opened at once: how many are lost, how long all of them take, what is left behind.

    python benchmarks/calls_at_once.py --calls 5000 --json

One process serves, with the default limits; this one calls. The handler of a call waits until all calls of the round
are inside their handlers, so that they truly run at once; then each returns the bytes that it was sent, and each is
compared. Blocking clients call from a pool of threads; of them as many run at once as there are threads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import grpc

import quill
from quill.server.server import Server

SERVICE = "bench.v1.Meeting"
STREAM_MESSAGES = 3
TIMEOUT_MS = 120_000


class Meeting:
    """Calls wait for each other. A request is JSON: which round, how many meet, and what to say."""

    def __init__(self) -> None:
        self.running = 0
        self.peak = 0
        self._arrived: Counter[str] = Counter()
        self._all_here: dict[str, asyncio.Event] = {}

    async def unary(self, request: bytes, context: object) -> bytes:
        """The request, when all are here."""
        with self._inside():
            await self._meet(request)
            return request

    async def stream(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        """The request a few times, numbered; all but the first when all are here."""
        with self._inside():
            for index in range(STREAM_MESSAGES):
                if index == 1:
                    await self._meet(request)
                yield bytes([index]) + request

    async def look(self, request: bytes, context: object) -> bytes:
        """What is going on: for whoever asks between rounds."""
        seen = {
            "running": self.running,
            "peak": self.peak,
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }
        self.peak = 0
        return json.dumps(seen).encode()

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            yield
        finally:
            self.running -= 1

    async def _meet(self, request: bytes) -> None:
        asked = json.loads(request)
        event = self._all_here.setdefault(asked["round"], asyncio.Event())
        self._arrived[asked["round"]] += 1
        if self._arrived[asked["round"]] == asked["meet"]:
            event.set()
        await event.wait()


async def serve(*, http2: bool) -> None:
    """Serve until standard input ends."""
    allow_descriptors()
    meeting = Meeting()
    server = Server("127.0.0.1:0", "127.0.0.1:0", http2=http2)
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(meeting.unary),
        "Stream": grpc.unary_stream_rpc_method_handler(meeting.stream),
        "Look": grpc.unary_unary_rpc_method_handler(meeting.look),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    async with server:
        print(json.dumps({"grpc": f"grpc://{server.grpc_address}", "http": server.http_url}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


@dataclass
class Round:
    """What came of the calls of one round."""

    calls: int
    seconds: float = 0.0
    right: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def note(self, sent: bytes, got: object) -> None:
        """One call has ended."""
        if isinstance(got, BaseException):
            self.errors[f"{type(got).__name__}: {str(got)[:100]}"] += 1
        elif got in (sent, [bytes([index]) + sent for index in range(STREAM_MESSAGES)]):
            self.right += 1
        else:
            self.wrong += 1


def requests(name: str, calls: int, meet: int) -> list[bytes]:
    """One request for each call, no two alike; so many of them wait for each other, one group after the other.

    The leading space keeps clients from taking a request for a JSON message.
    """
    groups = [(call // meet, min(meet, calls - call // meet * meet)) for call in range(calls)]
    return [
        b" " + json.dumps({"round": f"{name} {group}", "meet": size, "call": call}).encode()
        for call, (group, size) in enumerate(groups)
    ]


async def by_async_client(
    url: str, protocol: str | None, method: str, sent: list[bytes], result: Round, *, http2: bool
) -> None:
    """AsyncQuillClient: a task for each call."""

    async def call(request: bytes) -> object:
        try:
            if method == "Unary":
                return await client.call(SERVICE, method, request)
            async with client.stream(SERVICE, method, request) as stream:
                return [message async for message in stream]
        except Exception as error:  # noqa: BLE001 - counted
            return error

    async with quill.AsyncQuillClient(url, timeout_ms=TIMEOUT_MS, protocol=protocol, http2=http2) as client:
        began = time.perf_counter()
        got = await asyncio.gather(*map(call, sent))
        result.seconds = time.perf_counter() - began
        for request, reply in zip(sent, got, strict=True):
            result.note(request, reply)


def by_threads(url: str, protocol: str | None, method: str, sent: list[bytes], result: Round, *, threads: int) -> None:
    """QuillClient, shared by a pool of threads."""

    def call(request: bytes) -> object:
        try:
            if method == "Unary":
                return client.call(SERVICE, method, request)
            with client.stream(SERVICE, method, request) as stream:
                return list(stream)
        except Exception as error:  # noqa: BLE001 - counted
            return error

    with (
        quill.QuillClient(url, timeout_ms=TIMEOUT_MS, protocol=protocol) as client,
        ThreadPoolExecutor(threads) as pool,
    ):
        began = time.perf_counter()
        got = list(pool.map(call, sent))
        result.seconds = time.perf_counter() - began
    for request, reply in zip(sent, got, strict=True):
        result.note(request, reply)


WAYS = {
    "grpc": ("grpc", None, False),
    "connect": ("http", None, False),
    "grpc_web": ("http", "grpc-web", False),
    "connect_http2_host": ("http", None, True),
    "h2c": ("http", None, True),
    "grpc_threads": ("grpc", None, False),
    "connect_threads": ("http", None, False),
    "grpc_web_threads": ("http", "grpc-web", False),
}
"""Port, protocol, and whether the HTTP port is that of ``http2``."""


def measure(way: str, method: str, calls: int, threads: int, ready: dict[str, str]) -> dict[str, object]:
    """One round, and what the server says afterwards."""
    port, protocol, _ = WAYS[way]
    url = ready[port]
    before = look(ready)
    result = Round(calls)
    by_pool = way.endswith("threads")
    sent = requests(f"{way} {method}", calls, threads if by_pool else calls)
    if by_pool:
        by_threads(url, protocol, method, sent, result, threads=threads)
    else:
        asyncio.run(by_async_client(url, protocol, method, sent, result, http2=way == "h2c"))
    peak, left = settled(ready, before)
    return {
        "calls": calls,
        "right": result.right,
        "wrong": result.wrong,
        "lost": sum(result.errors.values()),
        "errors": dict(result.errors.most_common(3)),
        "at_once": peak,
        "seconds": round(result.seconds, 2),
        "calls_per_s": round(calls / result.seconds),
        **left,
    }


def look(ready: dict[str, str]) -> dict[str, int]:
    """What the server says of itself."""
    with quill.QuillClient(ready["grpc"]) as client:
        seen: dict[str, int] = json.loads(client.call(SERVICE, "Look", b""))
        return seen


def settled(ready: dict[str, str], before: dict[str, int], wait_s: float = 10.0) -> tuple[int, dict[str, int]]:
    """The most calls that ran at once, and what the server still holds beyond what it held before."""
    deadline = time.monotonic() + wait_s
    peak = 0
    while True:
        now = look(ready)
        peak = max(peak, now["peak"])
        left = {f"{name}_left": now[name] - before[name] for name in ("running", "tasks", "descriptors")}
        if time.monotonic() > deadline or all(value <= 0 for value in left.values()):
            return peak, {name: max(value, 0) for name, value in left.items()}
        time.sleep(0.2)


@contextlib.contextmanager
def server_process(*, http2: bool) -> Iterator[dict[str, str]]:
    """A server in a process of its own: where it listens."""
    command = [sys.executable, __file__, "--serve", *(["--http2"] if http2 else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None  # noqa: PT018, S101 - Popen was given pipes
    try:
        yield json.loads(stdout.readline())
        stdin.close()
        process.wait(30)
    finally:
        process.kill()
        process.wait()


def allow_descriptors() -> None:
    """As many file descriptors as the system allows: a connection is one, and the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Measure, or serve for the other process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5000, help="how many at once")
    parser.add_argument("--threads", type=int, default=256, help="of the blocking clients")
    parser.add_argument("--ways", default=",".join(WAYS), help="which ones, joined with commas")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--http2", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(http2=arguments.http2))
        return
    allow_descriptors()
    ways = arguments.ways.split(",")
    if unknown := set(ways) - set(WAYS):
        parser.error(f"there is no way {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}")
    figures: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("grpcio", "uvicorn", "granian")},
    }
    for http2 in (False, True):
        chosen = [way for way in ways if WAYS[way][2] is http2]
        if not chosen:
            continue
        with server_process(http2=http2) as ready:
            for way in chosen:
                for method in ("Unary", "Stream"):
                    name = f"{way}_{method.lower()}"
                    figures[name] = figure = measure(way, method, arguments.calls, arguments.threads, ready)
                    if not arguments.json:
                        print(f"{name:28}", json.dumps(figure), flush=True)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
