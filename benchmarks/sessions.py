"""How many generations one server holds at 20 tokens/s each, and how fast tokens go through one session.

usage: python benchmarks/sessions.py [--generations N] [--seconds S] [--ticked] [--streams] [--tasks] [--json]
       python benchmarks/sessions.py --throughput [--generations 256] [--json]

No model runs: a scripted engine gives each generation 200 tokens, 20 in a second, and the client starts it anew when it
has ended. Client and server are processes of their own on the same cores. Held means: tokens come within 10% of their
pace and the 99th percentile of the time to the first token is below 100 ms, after the ramp-up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quill import AsyncGenerationStream, AsyncQuillClient
from quill.cli.serve import GC_THRESHOLD
from quill.generation import Finish, FinishReason
from quill.limits import Limits
from quill.llm import LLMServicer
from quill.llm.backend import BackendEvent, Finished, ModelInfo, Tokens
from quill.proto import GenerateRequest, add_LLMServiceServicer_to_server
from quill.server.server import Server

TOKENS = int(os.environ.get("SESSIONS_TOKENS", "200"))
"""Of a generation; fewer for a short run."""
INTERVAL_S = 0.05
_STEPS = [Tokens(data=(b" word%d" % (number % 10),), ids=(number,)) for number in range(TOKENS)]
_END = Finished(Finish(FinishReason.LENGTH))
_TICK_BYTES = os.sysconf("SC_CLK_TCK")


class PacedEngine:
    """One timer for each generation, or one tick for all; or no pace at all.

    Args:
        pace: ``"timers"``, ``"ticked"``, or ``"none"``, where each generation gets a token in each step of the engine.
    """

    name = "paced"

    def __init__(self, pace: str) -> None:
        self._pace = pace
        self._waiting: list[asyncio.Future[None]] = []
        self._ticking: asyncio.Task[None] | None = None

    def models(self) -> list[ModelInfo]:
        """One model, which has no limits."""
        return [ModelInfo(name="paced", options=frozenset({"max_tokens"}))]

    async def generate(self, request: GenerateRequest, *, model: ModelInfo) -> AsyncIterator[BackendEvent]:
        """The same tokens for everybody."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        for number in range(request.max_tokens):
            if self._pace == "ticked" and number:
                await self._tick()
            elif self._pace == "timers" and (wait_s := start_s + number * INTERVAL_S - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            elif self._pace == "none":
                await asyncio.sleep(0)
            yield _STEPS[number % TOKENS]
        yield _END

    async def aclose(self) -> None:
        """End the ticks."""
        if self._ticking is not None:
            self._ticking.cancel()

    def _tick(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        if self._ticking is None:
            self._ticking = loop.create_task(self._tick_all())
        self._waiting.append(future := loop.create_future())
        return future

    async def _tick_all(self) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            next_s += INTERVAL_S
            await asyncio.sleep(max(0, next_s - loop.time()))
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)


async def serve(pace: str) -> None:
    """Serve until standard input ends; say the address."""
    limits = Limits(max_runs=50_000, max_session_runs=50_000, max_live_streams=50_000, max_concurrent_calls=50_000)
    server, servicer = Server("127.0.0.1:0", None, limits=limits), LLMServicer(PacedEngine(pace), limits=limits)
    add_LLMServiceServicer_to_server(servicer, server)
    await server.start()
    settle_gc()
    print(server.grpc_address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await servicer.aclose()
    await server.stop(0)


def settle_gc() -> None:
    """As ``quill serve`` does it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


@contextlib.contextmanager
def served(pace: str) -> Iterator[tuple[int, str]]:
    """A server process: its number and address."""
    command = [sys.executable, __file__, "--serve", pace]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None  # noqa: S101  # for the type checker
        assert process.stdout is not None  # noqa: S101
        try:
            yield process.pid, process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(30)


def cpu_s(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK_BYTES


def rss_kib(pid: int) -> int:
    """How much memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


class Watch:
    """Times of tokens, counted from ``since_s`` on."""

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.tokens = 0
        self.first_ms: list[float] = []
        self.paces: list[float] = []
        """Of each generation that began and ended meanwhile: its time from token to token, over what was asked."""

    def first(self, asked_s: float, now_s: float) -> None:
        """A first token has come."""
        if asked_s >= self.since_s:
            self.first_ms.append((now_s - asked_s) * 1000)

    def ended(self, first_s: float, now_s: float) -> None:
        """A generation has ended."""
        if first_s >= self.since_s:
            self.paces.append((now_s - first_s) / ((TOKENS - 1) * INTERVAL_S))


async def hold_by_session(client: AsyncQuillClient, count: int, end_s: float, watch: Watch) -> None:
    """One session, one iterator over all of it."""
    loop = asyncio.get_running_loop()
    asked: dict[AsyncGenerationStream, float] = {}
    firsts: dict[AsyncGenerationStream, float] = {}
    async with client.llm.session() as session:

        def start() -> None:
            asked[session.stream("x", max_tokens=TOKENS)] = loop.time()

        async def ramp() -> None:
            for number in range(count):
                start()
                if number % 10 == 9:  # noqa: PLR2004  # together ten seconds
                    await asyncio.sleep(TOKENS * INTERVAL_S * 10 / count * 0.9)

        ramping = asyncio.create_task(ramp())
        await asyncio.sleep(0.01)
        async for stream, delta in session.deltas():
            now_s = loop.time()
            if delta is None:
                watch.ended(firsts.pop(stream), now_s)
                start()
            else:
                if now_s >= watch.since_s:
                    watch.tokens += len(delta.tokens)
                if stream in asked:
                    firsts[stream] = now_s
                    watch.first(asked.pop(stream), now_s)
            if now_s > end_s:
                break
        await ramping


async def hold_by_tasks(client: AsyncQuillClient, count: int, end_s: float, watch: Watch, *, session: bool) -> None:
    """One task for each generation, on one session or with a StreamGenerate of its own."""
    loop = asyncio.get_running_loop()

    async def one(open_stream: Any) -> None:
        while True:
            asked_s, first_s = loop.time(), 0.0
            async for delta in open_stream("x", max_tokens=TOKENS):
                now_s = loop.time()
                if not first_s:
                    first_s = now_s
                    watch.first(asked_s, now_s)
                if now_s >= watch.since_s:
                    watch.tokens += len(delta.tokens)
            watch.ended(first_s, loop.time())

    async with contextlib.AsyncExitStack() as stack:
        opener = (await stack.enter_async_context(client.llm.session())).stream if session else client.llm.stream
        tasks = []
        for _ in range(count):
            tasks.append(asyncio.create_task(one(opener)))
            await asyncio.sleep(TOKENS * INTERVAL_S / count * 0.9)
        await asyncio.sleep(max(0.0, end_s - loop.time()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def hold(count: int, seconds: float, pace: str, reader: str) -> dict[str, Any]:
    """Hold so many generations. The figures."""
    with served(pace) as (pid, address):
        before_kib = rss_kib(pid)
        loop = asyncio.get_running_loop()
        since_s = loop.time() + TOKENS * INTERVAL_S + 2
        watch = Watch(since_s)
        cpu: list[float] = []
        rss: list[int] = []

        def mark() -> None:
            cpu.extend((cpu_s(pid), cpu_s(os.getpid())))
            rss.append(rss_kib(pid))

        loop.call_at(since_s, mark)
        loop.call_at(since_s + seconds - 0.1, mark)
        async with AsyncQuillClient(f"grpc://{address}") as client:
            settle_gc()
            end_s = since_s + seconds
            if reader == "iterator":
                await hold_by_session(client, count, end_s, watch)
            else:
                await hold_by_tasks(client, count, end_s, watch, session=reader == "tasks")
    first_ms = statistics.quantiles(watch.first_ms, n=100) if len(watch.first_ms) > 1 else [0.0] * 99
    within = sum(pace <= 1.1 for pace in watch.paces) / len(watch.paces) if watch.paces else 0.0  # noqa: PLR2004
    return {
        "generations": count,
        "pace": pace,
        "reader": reader,
        "tokens_per_s": round(watch.tokens / seconds),
        "tokens_wanted_per_s": round(count / INTERVAL_S),
        "first_token_p50_ms": round(first_ms[49], 1),
        "first_token_p99_ms": round(first_ms[98], 1),
        "share_within_10_percent_of_pace": round(within, 4),
        "generations_measured": len(watch.paces),
        "held": within > 0.99 and first_ms[98] < 100,  # noqa: PLR2004
        "server_us_per_token": round((cpu[2] - cpu[0]) / max(1, watch.tokens) * 1e6, 1),
        "client_us_per_token": round((cpu[3] - cpu[1]) / max(1, watch.tokens) * 1e6, 1),
        "server_rss_kib_per_generation": round((rss[-1] - before_kib) / count, 1),
        "server_rss_growth_while_held_kib": rss[-1] - rss[0],
        "load_average": os.getloadavg()[0],
    }


async def throughput(count: int) -> dict[str, Any]:
    """Tokens/s with all generations at once, without a pace."""
    rates: dict[str, float] = {}
    with served("none") as (_, address):
        async with AsyncQuillClient(f"grpc://{address}") as client:
            settle_gc()
            for name in ("streams", "session", "iterator", "streams", "session", "iterator"):
                began_s = time.perf_counter()
                if name == "streams":
                    streams = [client.llm.stream("x", max_tokens=TOKENS) for _ in range(count)]
                    results = await asyncio.gather(*(stream.result() for stream in streams))
                    tokens = sum(len(result.tokens) for result in results)
                else:
                    async with client.llm.session() as session:
                        streams = [session.stream("x", max_tokens=TOKENS) for _ in range(count)]
                        if name == "session":
                            results = await asyncio.gather(*(stream.result() for stream in streams))
                            tokens = sum(len(result.tokens) for result in results)
                        else:
                            tokens = 0
                            async for _, delta in session.deltas():
                                tokens += len(delta.tokens) if delta else 0
                rate = tokens / (time.perf_counter() - began_s)
                rates[name] = max(rates.get(name, 0.0), rate)
    return {
        "generations": count,
        **{f"{name}_tokens_per_s": round(rate) for name, rate in rates.items()},
        "session_over_streams": round(rates["session"] / rates["streams"], 1),
        "iterator_over_streams": round(rates["iterator"] / rates["streams"], 1),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Parse arguments and print figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--generations", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=25.0, help="how long to measure, after the ramp-up")
    parser.add_argument("--ticked", action="store_true", help="one tick for all generations")
    parser.add_argument("--streams", action="store_true", help="one StreamGenerate for each generation")
    parser.add_argument("--tasks", action="store_true", help="one client task for each generation of the session")
    parser.add_argument("--throughput", action="store_true", help="tokens/s, 256 generations at once, no pace")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    if options.throughput:
        figures = asyncio.run(throughput(options.generations or 256))
    else:
        reader = "streams" if options.streams else "tasks" if options.tasks else "iterator"
        pace = "ticked" if options.ticked else "timers"
        figures = asyncio.run(hold(options.generations or 1000, options.seconds, pace, reader))
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:34} {value}")


if __name__ == "__main__":
    main()
