"""Streams whose connections are cut again and again: is every token there, once and in order?

    python benchmarks/resume.py --streams 20 --tokens 1000 --cuts 1000 --json

A server with an engine that numbers its tokens, the asyncio client, and between them one proxy for each stream, which
resets connections. The cuts are spread over the streams: an engine stops at a part of its tokens until as many cuts were
made as belong to it, so that each of them meets a stream that runs. When it comes is left to chance: before the first
message, between messages, or right after a new connection was made. At the end each text is compared with the journal
of its run, as a new reader is told it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import quill
from quill import proto
from quill.llm import LLMServicer, ModelInfo, Tokens
from quill.testing import ChaosProxy

TTL_MS = 60_000
LIMIT_S = 300
GAP_S = 0.002
WAYS = {"grpc": "grpc", "connect": "connect", "grpc_web": "grpc-web"}


@dataclass
class Part:
    """One stream: how far its engine may go, and what came of it."""

    tokens: int
    cuts: int
    made: int = 0
    """Tokens that the engine has given."""
    cut: int = 0
    """How often the connection was cut."""
    ids: list[int] = field(default_factory=list)
    text: str = ""
    error: str = ""
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def allowed(self) -> int:
        """How many tokens the engine may have given after so many cuts."""
        return self.tokens if self.cut >= self.cuts else self.tokens * (self.cut + 1) // (self.cuts + 1)


class Numbers:
    """An engine whose tokens are numbers, and that counts its starts."""

    name = "numbers"

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self.starts = 0

    def models(self) -> list[ModelInfo]:
        """One model."""
        return [ModelInfo(name="numbers", weights_origin="none")]

    async def generate(self, request: proto.GenerateRequest, *, model: ModelInfo) -> AsyncIterator[Tokens]:
        """The numbers of a part, as far as its cuts allow."""
        self.starts += 1
        part = self.parts[request.prompt]
        for number in range(part.tokens):
            while part.made >= part.allowed:
                part.moved.clear()
                await part.moved.wait()
            part.made += 1
            yield Tokens(data=[b"%d " % number], ids=[number])
            await asyncio.sleep(GAP_S)

    async def aclose(self) -> None:
        """Nothing is held."""


async def read(url: str, protocol: str, name: str, part: Part) -> None:
    """One stream to its end, whatever happens to its connections."""
    async with quill.AsyncQuillClient(url, protocol=protocol) as client:
        stream = client.llm.stream(name, request_id=name, max_tokens=part.tokens, resume_ttl_ms=TTL_MS)
        try:
            async with stream:
                async for delta in stream:
                    part.ids += [token.id for token in delta.tokens]
                    part.text += delta.text
        except quill.QuillError as error:
            part.error = f"{type(error).__name__}: {error}"


async def cut(proxy: ChaosProxy, part: Part, chance: random.Random, reading: asyncio.Task[None]) -> None:
    """Cut the connection of a stream as often as it is to be cut, while the stream runs."""
    while part.cut < part.cuts and not reading.done():
        at = chance.randint(part.tokens * part.cut // (part.cuts + 1), part.allowed)
        while part.made < at and not reading.done():
            await asyncio.sleep(GAP_S)
        while not reading.done() and not await asyncio.to_thread(proxy.cut):
            await asyncio.sleep(GAP_S)
        part.cut += 1
        part.moved.set()


async def journal_text(url: str, protocol: str, name: str, part: Part) -> str:
    """The text of a run from its beginning, as a new reader of its journal is told it."""
    async with quill.AsyncQuillClient(url, protocol=protocol) as client:
        return (await client.llm.generate(name, request_id=name, max_tokens=part.tokens)).text


async def measure(way: str, streams: int, tokens: int, cuts: int, seed: int) -> dict[str, object]:
    """All streams over one protocol."""
    backend = Numbers()
    servicer = LLMServicer(backend)
    server = quill.Server(grpc="127.0.0.1:0", http="127.0.0.1:0")
    proto.add_LLMServiceServicer_to_server(servicer, server)
    shares = [cuts * (number + 1) // streams - cuts * number // streams for number in range(streams)]
    backend.parts = {f"stream-{number}": Part(tokens, share) for number, share in enumerate(shares)}
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        stack.push_async_callback(servicer.aclose)
        url = f"grpc://{server.grpc_address}" if way == "grpc" else str(server.http_url)
        proxies = {name: await stack.enter_async_context(ChaosProxy(url)) for name in backend.parts}
        began = time.perf_counter()
        tasks = []
        for number, (name, part) in enumerate(backend.parts.items()):
            reading = asyncio.create_task(read(proxies[name].url, WAYS[way], name, part))
            chance = random.Random(seed * streams + number)  # noqa: S311 - where to cut
            tasks += [reading, asyncio.create_task(cut(proxies[name], part, chance, reading))]
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*tasks)
        seconds = time.perf_counter() - began
        texts = {name: await journal_text(url, WAYS[way], name, part) for name, part in backend.parts.items()}
        connections = sum(proxy.counts.connections for proxy in proxies.values())
    parts = backend.parts.values()
    return {
        "streams": streams,
        "tokens": streams * tokens,
        "cuts": sum(part.cut for part in parts),
        "connections": connections,
        "backend_starts": backend.starts,
        "lost": sum(len(set(range(tokens)) - set(part.ids)) for part in parts),
        "duplicated": sum(len(part.ids) - len(set(part.ids)) for part in parts),
        "out_of_order": sum(a > b for part in parts for a, b in zip(part.ids, part.ids[1:], strict=False)),
        "texts_unlike_journal": sum(part.text != texts[name] for name, part in backend.parts.items()),
        "errors": [part.error for part in parts if part.error][:3],
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Measure each way in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=20, help="how many at once")
    parser.add_argument("--tokens", type=int, default=1000, help="of each stream")
    parser.add_argument("--cuts", type=int, default=1000, help="of all streams together, for each way")
    parser.add_argument("--seed", type=int, default=1, help="what chance begins with")
    parser.add_argument("--ways", default=",".join(WAYS), help="which ones, joined with commas")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    ways = arguments.ways.split(",")
    if unknown := set(ways) - set(WAYS):
        parser.error(f"there is no way {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}")
    figures: dict[str, object] = {"python": platform.python_version()}
    for way in ways:
        figures[way] = figure = asyncio.run(
            measure(way, arguments.streams, arguments.tokens, arguments.cuts, arguments.seed)
        )
        if not arguments.json:
            print(f"{way:9}", json.dumps(figure), flush=True)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
