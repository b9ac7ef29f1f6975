"""How many generations one server holds at 20 tokens/s each, and how fast tokens go through one session.

usage: python benchmarks/sessions.py [--seconds 120] [--json] [--save FILE] [--plot PNG]       everything, 20 minutes
       python benchmarks/sessions.py --way stepped|tasks|streams --generations N [--seconds S] [--json]
       python benchmarks/sessions.py --paces|--throughput [--generations 256] [--json]
       python benchmarks/sessions.py --from FILE [--plot PNG]

No model runs: a scripted engine gives each generation 200 tokens, 20 in a second, and the client starts it anew when it
has ended. Client and server are processes of their own on the same cores. Three ways: ``stepped``, one session over an
engine that steps all generations at once; ``tasks``, one session over one task of the server for each generation; and
``streams``, the engine that steps all, with a StreamGenerate for each. Held means: 99% of the generations keep their
pace within 10%, every text is right, and the 99th percentile of the time to the first token is below 100 ms, after the
ramp-up.

``--paces`` looks for the highest pace at which one session holds 256 generations, and at which one stream for each
does, over the engine that steps all. ``--throughput`` takes the pace away: who falls behind the engine then gets more
tokens in a message, by a stream as by a session.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paced import TOKEN_LETTERS, SteppedEngine, TaskEngine, text_of
from rounds import cpu_s

from quill import AsyncGenerationStream, AsyncQuillClient
from quill.garbage import collect_seldom
from quill.limits import Limits
from quill.llm import LLMServicer
from quill.proto import add_LLMServiceServicer_to_server
from quill.server.server import Server

INTERVAL_S = 0.05
"""20 tokens in a second."""
TOKENS = int(os.environ.get("SESSIONS_TOKENS", "200"))
"""Of a generation; fewer for a short run."""
WAYS = ("stepped", "tasks", "streams")
GOALS = {"stepped": (8000, 10_000), "tasks": (4000, 5000)}
_FIRST_STREAMS, _MORE_STREAMS = 200, 100
_MIN_SEARCH_S = 6.0
_FIRST_PACES = {"streams": 20.0, "stepped": 250.0}
"""Tokens/s of a generation, where the search for the highest pace begins."""
_MORE_PACE = 1.25
_MAX_WARM_S = 40.0
"""Replies are kept for 30 s after their end, and memory is even only then."""
_MAX_FIRST_MS = 100.0
_MAX_PACE = 1.1
_TEXT = text_of(TOKENS)


async def serve(way: str, interval_s: float) -> None:
    """Serve until standard input ends; say the address."""
    limits = Limits(max_runs=50_000, max_session_runs=50_000, max_live_streams=50_000, max_concurrent_calls=50_000)
    engine = TaskEngine(interval_s) if way == "tasks" else SteppedEngine(interval_s)
    server, servicer = Server("127.0.0.1:0", None, limits=limits), LLMServicer(engine, limits=limits)
    add_LLMServiceServicer_to_server(servicer, server)
    await server.start()
    async with tended():  # as ``quill serve`` does it
        print(server.grpc_address, flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await servicer.aclose()
    await engine.aclose()
    await server.stop(0)


@contextlib.asynccontextmanager
async def tended() -> AsyncIterator[None]:
    """This process collects garbage seldom meanwhile."""
    tending = asyncio.create_task(collect_seldom())
    try:
        yield
    finally:
        tending.cancel()


@contextlib.contextmanager
def served(way: str, interval_s: float) -> Iterator[tuple[int, str]]:
    """A server process: its number and address."""
    command = [sys.executable, __file__, "--serve", f"{way} {interval_s}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None  # noqa: S101  # for the type checker
        assert process.stdout is not None  # noqa: S101
        try:
            yield process.pid, process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(30)


def rss_kib(pid: int) -> int:
    """How much memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


class Watch:
    """What was seen of the generations, counted from ``since_s`` to ``until_s``."""

    def __init__(self, since_s: float, until_s: float, interval_s: float) -> None:
        self.since_s = since_s
        self.until_s = until_s
        self.interval_s = interval_s
        """What was asked for from token to token."""
        self.tokens = 0
        self.wrong = 0
        """Generations whose text was another, or that ended early."""
        self.first_ms = array("d")
        self.paces = array("d")
        """Of each generation that began and ended meanwhile: its time from token to token, over what was asked."""

    @property
    def ramp_s(self) -> float:
        """Over which time the generations are to begin, so that they do not end at once."""
        return TOKENS * self.interval_s * 0.9

    def first(self, asked_s: float, now_s: float) -> None:
        """A first token has come."""
        if asked_s >= self.since_s:
            self.first_ms.append((now_s - asked_s) * 1000)

    def ended(self, first_s: float, now_s: float, text: str) -> None:
        """A generation has ended."""
        self.wrong += text != _TEXT
        if first_s >= self.since_s:
            self.paces.append((now_s - first_s) / ((TOKENS - 1) * self.interval_s))

    def figures(self, count: int) -> dict[str, Any]:
        """What came of so many generations."""
        first_ms = statistics.quantiles(self.first_ms, n=100) if len(self.first_ms) > 1 else [0.0] * 99
        within = sum(pace <= _MAX_PACE for pace in self.paces) / len(self.paces) if self.paces else 0.0
        wanted = count / self.interval_s
        rate = self.tokens / (self.until_s - self.since_s)
        is_held = within > 0.99 and rate > wanted / _MAX_PACE and first_ms[98] < _MAX_FIRST_MS  # noqa: PLR2004
        return {
            "tokens_per_s": round(rate),
            "tokens_wanted_per_s": round(wanted),
            "first_token_p50_ms": round(first_ms[49], 1),
            "first_token_p99_ms": round(first_ms[98], 1),
            "share_within_10_percent_of_pace": round(within, 4),
            "generations_measured": len(self.paces),
            "wrong": self.wrong,
            "held": is_held and not self.wrong,
        }


async def hold_by_session(client: AsyncQuillClient, count: int, watch: Watch) -> None:
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
                if number % 10 == 9:  # noqa: PLR2004
                    await asyncio.sleep(watch.ramp_s * 10 / count)

        ramping = asyncio.create_task(ramp())
        await asyncio.sleep(0.01)
        since_s, until_s = watch.since_s, watch.until_s
        async for stream, delta in session.deltas():
            now_s = time.monotonic()  # what loop.time() calls: this loop is measured with the client
            if delta is None:
                watch.ended(firsts.pop(stream, now_s), now_s, stream.text)
                start()
            else:
                if since_s <= now_s < until_s:
                    watch.tokens += len(delta.text) // TOKEN_LETTERS
                if stream in asked:
                    firsts[stream] = now_s
                    watch.first(asked.pop(stream), now_s)
            if now_s > until_s:
                break
        await ramping


async def hold_by_streams(client: AsyncQuillClient, count: int, watch: Watch) -> None:
    """A task and a StreamGenerate for each generation."""
    loop = asyncio.get_running_loop()

    async def one() -> None:
        while True:
            asked_s, first_s = loop.time(), 0.0
            stream = client.llm.stream("x", max_tokens=TOKENS)
            async for delta in stream:
                now_s = loop.time()
                if not first_s:
                    first_s = now_s
                    watch.first(asked_s, now_s)
                if watch.since_s <= now_s < watch.until_s:
                    watch.tokens += len(delta.text) // TOKEN_LETTERS
            watch.ended(first_s, loop.time(), stream.text)

    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(watch.ramp_s / count)
    await asyncio.sleep(max(0.0, watch.until_s - loop.time()))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def hold(way: str, count: int, seconds: float, interval_s: float) -> dict[str, Any]:
    """Hold so many generations. The figures."""
    with served(way, interval_s) as (pid, address):
        loop = asyncio.get_running_loop()
        warm_s = loop.time() + TOKENS * interval_s + min(_MAX_WARM_S, seconds / 3)
        watch = Watch(warm_s, warm_s + seconds, interval_s)
        marks: list[tuple[float, float, int, int]] = []
        before_kib = rss_kib(pid)

        def mark() -> None:
            own = os.getpid()
            marks.append((cpu_s(pid), cpu_s(own), rss_kib(pid), rss_kib(own)))

        loop.call_at(watch.since_s, mark)
        loop.call_at(watch.until_s - 0.05, mark)
        async with AsyncQuillClient(f"grpc://{address}") as client, tended():
            await (hold_by_streams if way == "streams" else hold_by_session)(client, count, watch)
    (server_s, client_s, warm_kib, client_warm_kib), (server_end_s, client_end_s, end_kib, client_end_kib) = marks
    return {
        "way": way,
        "generations": count,
        "pace": 1 / interval_s,
        "seconds": seconds,
        **watch.figures(count),
        "server_us_per_token": round((server_end_s - server_s) / max(1, watch.tokens) * 1e6, 2),
        "client_us_per_token": round((client_end_s - client_s) / max(1, watch.tokens) * 1e6, 2),
        "server_rss_mib": round(end_kib / 1024, 1),
        "server_rss_kib_per_generation": round((end_kib - before_kib) / count, 1),
        "server_rss_growth_percent": round((end_kib / warm_kib - 1) * 100, 2),
        "client_rss_growth_percent": round((client_end_kib / client_warm_kib - 1) * 100, 2),
        "load_average": os.getloadavg()[0],
    }


def highest_pace(way: str, count: int) -> dict[str, Any]:
    """The point with most tokens/s of each generation that was held."""
    pace = _FIRST_PACES[way]
    found = searched(way, count, pace)
    while not found["held"]:
        pace /= _MORE_PACE
        found = searched(way, count, pace)
    while (point := searched(way, count, pace * _MORE_PACE))["held"]:
        pace, found = pace * _MORE_PACE, point
    return found


def searched(way: str, count: int, pace: float = 1 / INTERVAL_S) -> dict[str, Any]:
    """A point on the way: no longer than it takes that each generation begins and ends."""
    return measured(way, count, max(_MIN_SEARCH_S, 2 * TOKENS / pace), pace)


def highest_paces(count: int) -> dict[str, Any]:
    """How many tokens/s so many generations have at the highest pace that is kept, by streams and by one session."""
    streams, session = highest_pace("streams", count), highest_pace("stepped", count)
    return {
        "generations": count,
        "streams_held_tokens_per_s": streams["tokens_per_s"],
        "session_held_tokens_per_s": session["tokens_per_s"],
        "session_over_streams_held": round(session["tokens_per_s"] / streams["tokens_per_s"], 1),
        "streams_held_us_per_token": streams["server_us_per_token"] + streams["client_us_per_token"],
        "session_held_us_per_token": session["server_us_per_token"] + session["client_us_per_token"],
        "load_average": os.getloadavg()[0],
    }


async def throughput(count: int) -> dict[str, Any]:
    """Tokens/s without a pace. Who falls behind the engine gets more tokens in a message, by streams and by a session.

    The ratios of CPU time, of the busier side, hardly depend on what else the machine does.
    """
    rounds: dict[str, list[tuple[float, float, float]]] = {"streams": [], "session": [], "iterator": []}
    tokens = count * TOKENS
    with served("stepped", 0.0) as (pid, address):
        async with AsyncQuillClient(f"grpc://{address}") as client, tended():
            for name in [*rounds, *reversed(rounds), *rounds, *reversed(rounds)]:
                began_s, server_s, client_s = time.perf_counter(), cpu_s(pid), cpu_s(os.getpid())
                await _read_all(client, name, count)
                took_s = time.perf_counter() - began_s
                rounds[name].append((tokens / took_s, cpu_s(pid) - server_s, cpu_s(os.getpid()) - client_s))
    figures: dict[str, Any] = {"generations": count}
    busier: dict[str, float] = {}
    for name, taken in rounds.items():
        rates, server, client_side = zip(*taken, strict=True)
        figures[f"{name}_tokens_per_s"] = round(statistics.median(rates))
        figures[f"{name}_server_us_per_token"] = round(statistics.median(server) / tokens * 1e6, 2)
        figures[f"{name}_client_us_per_token"] = round(statistics.median(client_side) / tokens * 1e6, 2)
        busier[name] = max(statistics.median(server), statistics.median(client_side))
    for name in ("session", "iterator"):
        ratio = figures[f"{name}_tokens_per_s"] / figures["streams_tokens_per_s"]
        figures[f"{name}_over_streams"] = round(ratio, 1)
        figures[f"{name}_over_streams_cpu"] = round(busier["streams"] / busier[name], 1)
    return figures | {"load_average": os.getloadavg()[0]}


async def _read_all(client: AsyncQuillClient, name: str, count: int) -> None:
    """Read so many generations to their ends, and make sure of their texts."""
    if name == "streams":
        streams = [client.llm.stream("x", max_tokens=TOKENS) for _ in range(count)]
        results = await asyncio.gather(*(stream.result() for stream in streams))
        texts = [result.text for result in results]
    else:
        async with client.llm.session() as session:
            streams = [session.stream("x", max_tokens=TOKENS) for _ in range(count)]
            if name == "session":
                results = await asyncio.gather(*(stream.result() for stream in streams))
                texts = [result.text for result in results]
            else:
                async for _ in session.deltas():
                    pass
                texts = [stream.text for stream in streams]
    if texts != [_TEXT] * count:
        raise RuntimeError(f"by {name}, {sum(text != _TEXT for text in texts)} of {count} texts are wrong")


def measured(way: str, count: int, seconds: float, pace: float = 1 / INTERVAL_S) -> dict[str, Any]:
    """One point, in a client process of its own."""
    arguments = ["--way", way, "--generations", f"{count}", "--seconds", f"{seconds}", "--pace", f"{pace}", "--json"]
    ended = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    point: dict[str, Any] = json.loads(ended.stdout)
    show(point)
    return point


def everything(seconds: float) -> dict[str, Any]:
    """The goals of each way, how far streams get beside them, and the throughput."""
    points = [measured(way, count, seconds) for way, counts in GOALS.items() for count in counts]
    count = _FIRST_STREAMS
    while (point := searched("streams", count))["held"]:
        points.append(point)
        count += _MORE_STREAMS
    points.append(point)
    points.append(measured("streams", max(_FIRST_STREAMS, count - _MORE_STREAMS), seconds))
    paces, figures = highest_paces(256), asyncio.run(throughput(256))
    show(paces)
    show(figures)
    return {"points": points, "highest_paces": paces, "throughput": figures}


def show(figures: dict[str, Any]) -> None:
    """Print figures for people, apart from the JSON."""
    for name, value in figures.items():
        print(f"{name:34} {value}", file=sys.stderr)
    print(file=sys.stderr)


def main() -> None:
    """Parse arguments and print figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--way", choices=WAYS, help="one point of one way")
    parser.add_argument("--generations", type=int, help="of the one point, or at once for --throughput")
    parser.add_argument("--pace", type=float, default=1 / INTERVAL_S, help="tokens/s of each generation of the point")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to measure, after ramp-up and warm-up")
    parser.add_argument("--paces", action="store_true", help="the highest pace that 256 generations keep, both ways")
    parser.add_argument("--throughput", action="store_true", help="tokens/s, 256 generations at once, no pace")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--save", type=Path, help="write the JSON of everything to a file")
    parser.add_argument("--from", dest="saved", type=Path, help="measure nothing: the JSON of everything, saved before")
    parser.add_argument("--plot", type=Path, help="draw everything to a PNG")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        way, interval_s = options.serve.split()
        asyncio.run(serve(way, float(interval_s)))
        return
    if options.paces:
        figures = highest_paces(options.generations or 256)
    elif options.throughput:
        figures = asyncio.run(throughput(options.generations or 256))
    elif options.way:
        figures = asyncio.run(
            hold(
                options.way, options.generations or GOALS.get(options.way, (500,))[0], options.seconds, 1 / options.pace
            )
        )
    else:
        figures = json.loads(options.saved.read_text()) if options.saved else everything(options.seconds)
        if options.save:
            options.save.write_text(json.dumps(figures, indent=2) + "\n")
        if options.plot:
            from sessions_plot import plot

            plot(figures["points"], options.plot)
    if options.json:
        print(json.dumps(figures))
    elif options.way or options.throughput or options.paces:
        show(figures)


if __name__ == "__main__":
    main()
