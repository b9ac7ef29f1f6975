"""The sidecar is killed and started again under load, again and again: what becomes of the generations?

usage: python benchmarks/sidecar_kills.py [--cycles N] [--json] [--seed N]

Each cycle kills the process of the sidecar for development at a random moment, while generations by polling and over
the WebSocket begin, wait and stream. Each of them has a deadline. What must never be is counted, and the exit status is
1 where it is not 0: a call that outlives its deadline, a text that is not the beginning of what the model writes, a
success that is not the whole of it, an error that is not one of Quill's, a request id that was started twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from contextlib import aclosing

from quill.errors import RpcError
from quill.shard.config import SidecarConfig
from quill.shard.sidecar import Ended, Piece, ShardRequest, Sidecar
from quill.testing.sidecar import SidecarProcess
from quill.testing.sidecar.writer import Writer

_WORKERS = 8
_TOKENS = 24
_TOKENS_PER_S = 80
_TIMEOUT_MS = 20_000
_SLACK_S = 10.0
"""A machine may be slow; a call that hangs is slower."""
_WAYS = (("A", "http_poll"), ("A", "websocket"), ("C", "http_poll"), ("C", "websocket"), ("B", "http_poll"))
_NEVER = ("hung", "wrong_text", "short_success", "foreign_errors", "started_twice")


async def kills(cycles: int, seed: int) -> Counter[str]:
    """So many cycles, shared among the dialects; what happened, by name."""
    counts: Counter[str] = Counter(dict.fromkeys(_NEVER, 0))
    moments = random.Random(seed)  # noqa: S311 - the same moments each time
    prompts = [f"Alice was number {number}" for number in range(_WORKERS)]
    expected = await _written(prompts)
    for dialect in sorted({dialect for dialect, _ in _WAYS}):
        transports = [transport for one, transport in _WAYS if one == dialect]
        share = cycles // 3 + (1 if "ABC".index(dialect) < cycles % 3 else 0)
        if share:
            await _killed(dialect, transports, expected, cycles=share, moments=moments, counts=counts)
    return counts


async def _killed(
    dialect: str,
    transports: list[str],
    expected: dict[str, list[str]],
    *,
    cycles: int,
    moments: random.Random,
    counts: Counter[str],
) -> None:
    with SidecarProcess(dialect, "--set", f"tokens_per_s={_TOKENS_PER_S}") as process:
        config = SidecarConfig(base_url=process.url, dialect=dialect, timeout_ms=_TIMEOUT_MS)  # type: ignore[arg-type]
        async with Sidecar(config) as sidecar:
            stop = asyncio.Event()
            workers = [
                asyncio.create_task(
                    _work(sidecar, prompt, pieces, transports[number % len(transports)], stop=stop, counts=counts)
                )
                for number, (prompt, pieces) in enumerate(expected.items())
            ]
            known: Counter[str] = Counter()
            for _ in range(cycles):
                await asyncio.sleep(moments.uniform(0.0, 0.8))
                known.update((await asyncio.to_thread(process.report))["request_ids"])
                await asyncio.to_thread(process.kill)
                counts["kills"] += 1
                await asyncio.to_thread(process.start)
            stop.set()
            await asyncio.gather(*workers)
            known.update((await asyncio.to_thread(process.report))["request_ids"])
            counts["started_twice"] += sum(times - 1 for times in known.values())
            counts["starts_seen"] += len(known)
            counts["resubmitted"] += sidecar.stats.resubmitted
            counts["restarts_seen"] += sidecar.stats.restarts


async def _work(
    sidecar: Sidecar, prompt: str, expected: list[str], transport: str, *, stop: asyncio.Event, counts: Counter[str]
) -> None:
    while not stop.is_set():
        pieces: list[str] = []
        end: Ended | None = None
        begun_s = time.monotonic()
        request = ShardRequest(prompt=prompt, max_tokens=_TOKENS, transport=transport)  # type: ignore[arg-type]
        try:
            async with aclosing(sidecar.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        pieces.append(event.text)
                    else:
                        end = event
            counts["succeeded"] += 1
        except RpcError as error:
            counts["failed_" + error.code.name.lower()] += 1
        except Exception as error:  # noqa: BLE001 - it is what is looked for
            counts["foreign_errors"] += 1
            print(f"not an error of Quill's: {error!r}", file=sys.stderr)
        counts["calls"] += 1
        counts["hung"] += time.monotonic() - begun_s > _TIMEOUT_MS / 1000 + _SLACK_S
        if end is not None and end.incomplete:
            counts["said_to_be_incomplete"] += 1
        else:
            counts["wrong_text"] += pieces != expected[: len(pieces)]
            counts["short_success"] += end is not None and len(pieces) != _TOKENS


async def _written(prompts: list[str]) -> dict[str, list[str]]:
    """What the model writes to each prompt."""
    writer = Writer()
    texts = {}
    for prompt in prompts:
        async with aclosing(writer.tokens(prompt)) as tokens:
            texts[prompt] = [await anext(tokens) for _ in range(_TOKENS)]
    await writer.aclose()
    return texts


def main() -> int:
    """Kill, and print a table or one JSON object. The exit status."""
    parser = argparse.ArgumentParser(description="Kills and restarts of a sidecar under load.")
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    given = parser.parse_args()
    counts = asyncio.run(kills(given.cycles, given.seed))
    if given.json:
        print(json.dumps(counts))
    else:
        for name, count in sorted(counts.items()):
            print(f"{name:<28} {count:>7}")
    return int(any(counts[name] for name in _NEVER))


if __name__ == "__main__":
    sys.exit(main())
