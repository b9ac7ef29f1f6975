"""From a cancelled stream to the backend that is told: how long it takes, and what is left behind.

usage: python benchmarks/cancels.py [--cancels 10000] [--slack 1] [--json]

Server and clients share one process and one event loop, so that one clock sees both ends and all tasks can be counted.
It fails where a figure is out of its bounds.

Memory is read where it tells what is left, not who filled which buffers last, which is megabytes. All threads share
one arena of glibc's allocator: with an arena for each, what one has freed is not there for another. Writes are blocked
on connections of their own, which are closed before: behind bulky messages C-core keeps up to 4 MiB for the next ones,
for as long as a connection lives. All other cancels go over the same connections from beginning to end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import itertools
import sys
import time
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from told import SLACK, Backend, missed, quantile, tell, until
from ways import WAYS, Way, served

import quill

_C = ctypes.CDLL(None)
_M_ARENA_MAX = -8
"""Of malloc.h, for mallopt(3)."""
BOUNDS = {"tasks_left": (0, 0), "backends_left": (0, 0), "memory_ratio": (0.95, 1.05)}
Starts = Callable[..., quill.AsyncGenerationStream]
POINTS = {"token_0": "silent", "token_1": "paced", "token_25": "paced", "blocked": "bulky", "terminal": "finished"}
AT_ONCE = 4
STEADY_S = 0.05
"""A backend that gave nothing for so long is blocked."""
BLOCKED_SHARE = 10
"""One in so many of these: each fills every buffer on its way first."""


async def cancel_once(start_one: Starts, backend: Backend, point: str, request_id: str) -> float:
    """Start a generation, cancel it at a point; the seconds from the cancel until the backend was told.

    Raises:
        ValueError: The backend was aborted more than once, or not at all.
    """
    stream = start_one(POINTS[point], max_tokens=1_000_000, request_id=request_id)
    reader = asyncio.create_task(read(stream, {"token_25": 25}.get(point, 1)))
    await until(lambda: request_id in backend.starts)
    start = backend.starts[request_id]
    if point == "blocked":
        await reader
        told = -1
        while told != (told := start.tokens):  # noqa: ASYNC110 - that nothing happens has no event
            await asyncio.sleep(STEADY_S)
    elif point != "token_0":
        await reader
    cancelled_s = time.monotonic()
    reader.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reader
    await stream.aclose()
    async with asyncio.timeout(30):
        await start.changed.wait()
    del backend.starts[request_id]
    if (start.aborts, start.ends) != (1, 1):
        raise ValueError(f"{point}: {start.aborts} aborts and {start.ends} ends, wanted one of each")
    return start.told_s - cancelled_s


async def read(stream: quill.AsyncGenerationStream, tokens: int) -> None:
    """Read so many tokens."""
    seen = 0
    async for delta in stream:
        seen += len(delta.tokens)
        if seen >= tokens:
            return


@dataclass(frozen=True, slots=True)
class Memory:
    """What the process holds while nothing runs."""

    resident_bytes: int
    """Without what is free but still the allocator's."""
    malloc_bytes: int
    """What is allocated and not freed, but for Python's small objects."""
    python_blocks: int
    """Python's small objects."""

    @classmethod
    def now(cls) -> Memory:
        """Collect garbage, give back what is free, and look."""
        gc.collect()
        _C.malloc_trim(0)
        status = Path("/proc/self/status").read_text().splitlines()
        resident = next(line for line in status if line.startswith("VmRSS"))
        allocated = _C.mallinfo2()
        return cls(int(resident.split()[1]) * 1024, allocated.uordblks + allocated.hblkhd, sys.getallocatedblocks())


class _Mallinfo2(ctypes.Structure):
    """What mallinfo(3) tells."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


_C.mallinfo2.restype = _Mallinfo2


async def measure(cancels: int) -> dict[str, float]:
    """Cancel so often, over all protocols and at all points; the figures."""
    backend = Backend()
    async with in_all_ways(backend) as starts:
        warm_up = max(2 * BLOCKED_SHARE * len(WAYS) * len(POINTS), cancels // 5)
        await cancel_all(backend, starts, range(warm_up))
        tasks, before = await settled()
        seen = await cancel_all(backend, starts, range(warm_up, warm_up + cancels))
        left, after = await settled()
    every = list(itertools.chain.from_iterable(seen.values()))
    return {
        "cancels": len(every),
        "told_p50_ms": quantile(every, 0.5) * 1000,
        "told_p99_ms": quantile(every, 0.99) * 1000,
        "told_max_ms": max(every) * 1000,
        **{f"{cell}_p99_ms": quantile(values, 0.99) * 1000 for cell, values in sorted(seen.items())},
        "tasks_left": left - tasks,
        "backends_left": backend.live,
        "memory_ratio": after.resident_bytes / before.resident_bytes,
        "malloc_bytes_per_cancel": (after.malloc_bytes - before.malloc_bytes) / cancels,
        "python_blocks_per_cancel": (after.python_blocks - before.python_blocks) / cancels,
    }


async def cancel_all(backend: Backend, starts: Mapping[str, Starts], numbers: range) -> Mapping[str, Sequence[float]]:
    """Cancel once for each number; the seconds until the backend was told, of each way and point."""
    seen: dict[str, array[float]] = defaultdict(lambda: array("d"))  # not objects that count as memory
    async with in_all_ways(backend) as bulky_starts:
        cells = plan()

        async def work(number: int) -> None:
            way, point = next(cells)
            start_one = (bulky_starts if point == "blocked" else starts)[way]
            seen[f"{way}_{point}"].append(await cancel_once(start_one, backend, point, f"{number}"))

        await at_once(work, numbers)
    return seen


@contextlib.asynccontextmanager
async def in_all_ways(backend: Backend) -> AsyncIterator[dict[str, Starts]]:
    """What starts generations, for each way; the servers are their own."""
    async with contextlib.AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(opened(way, backend)) for name, way in WAYS.items()}


@contextlib.asynccontextmanager
async def opened(way: Way, backend: Backend) -> AsyncIterator[Starts]:
    """What starts generations in a way, on a server of its own."""
    async with (
        served(backend, http2=way.http2) as urls,
        way.client(urls[way.protocol]) as client,
        way.streams(client) as start_one,
    ):
        yield start_one


def plan() -> Iterator[tuple[str, str]]:
    """Which way and which point comes next, without end."""
    for turn in itertools.count():
        for point in POINTS:
            if point != "blocked" or turn % BLOCKED_SHARE == 0:
                for way in WAYS:
                    yield way, point


async def at_once(work: Callable[[int], Awaitable[None]], numbers: range) -> None:
    """Do all of it, some at a time."""
    left = iter(numbers)

    async def worker() -> None:
        for number in left:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


async def settled() -> tuple[int, Memory]:
    """How many tasks live and what memory is held, once what was closed is gone: when it shrinks no more."""
    least = Memory.now()
    while True:
        await asyncio.sleep(0.5)
        now = Memory.now()
        if now.resident_bytes >= least.resident_bytes:
            return len(asyncio.all_tasks()), least
        least = now


def main() -> None:
    """Print the figures; exit with 1 where they are out of bounds."""
    parser = argparse.ArgumentParser(description="From a cancelled stream to the backend that is told.")
    parser.add_argument("--cancels", type=int, default=10_000)
    parser.add_argument("--slack", type=float, default=1, help=SLACK)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    _C.mallopt(_M_ARENA_MAX, 1)
    figures = asyncio.run(measure(options.cancels))
    tell(figures, as_json=options.json)
    sys.exit(missed(figures, BOUNDS | {"told_p99_ms": (0, 50 * options.slack)}) > 0)


if __name__ == "__main__":
    main()
