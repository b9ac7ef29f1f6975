"""Generations whose connections are cut again and again: is every token there, once and in order?

    python benchmarks/resume.py --streams 20 --tokens 1000 --cuts 1000 --json

A server with an engine that numbers its tokens, the asyncio client, and between them a proxy that resets connections:
one for each stream, or one for the session that all generations share. An engine stops at a part of its tokens until
as many cuts were made as belong to that part, so that each of them meets generations that run. When it comes is left
to chance: before the first message, between messages, or right after a new connection was made. At the end each
text is compared with the journal of its run, as a new reader is told it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypedDict

from ways import WAYS, Way, served

import quill
from quill import proto
from quill.llm import ModelInfo, Tokens
from quill.testing import ChaosProxy

TTL_MS = 60_000
LIMIT_S = 300
GAP_S = 0.002


class Asked(TypedDict):
    """What a generation is asked, beside its prompt."""

    request_id: str
    max_tokens: int
    resume_ttl_ms: int


@dataclass
class Part:
    """One generation: how far its engine may go, and what came of it."""

    tokens: int
    allowed: int = 0
    """Tokens that the engine may have given so far."""
    ids: list[int] = field(default_factory=list)
    text: str = ""
    error: str = ""
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def allow(self, tokens: int) -> None:
        """Let the engine go on."""
        self.allowed = tokens
        self.moved.set()


class Line:
    """The way of some generations to the server, which is to be cut so many times.

    Args:
        parts: The generations by their names.
        cuts: How often it is to be cut.
        chance: When.
    """

    def __init__(self, parts: dict[str, Part], cuts: int, chance: random.Random) -> None:
        self.parts = parts
        self.cuts = cuts
        self.cut = 0
        """How often it was cut."""
        self._chance = chance
        self._let_go_on()

    async def cut_while(self, proxy: ChaosProxy, reading: asyncio.Future[Any]) -> None:
        """Cut it as often as it is to be cut, while it is read; return when it was read."""
        while self.cut < self.cuts and not reading.done():
            at = self._chance.randint(self._allowed(self.cut - 1), self._allowed(self.cut))
            while self._read < at and not reading.done():  # noqa: ASYNC110 - the stream sets no event for each token
                await asyncio.sleep(GAP_S)
            while not reading.done() and not await asyncio.to_thread(proxy.cut):  # noqa: ASYNC110 - nor does the proxy
                await asyncio.sleep(GAP_S)
            self.cut += not reading.done()
            self._let_go_on()
        await reading
        for part in self.parts.values():  # also where its reader has failed
            part.allow(part.tokens)

    @property
    def _read(self) -> int:
        """Tokens of all its generations that have arrived."""
        return sum(len(part.ids) for part in self.parts.values())

    def _let_go_on(self) -> None:
        for part in self.parts.values():
            part.allow(self._share(part, self.cut))

    def _allowed(self, cut: int) -> int:
        return sum(self._share(part, cut) for part in self.parts.values())

    def _share(self, part: Part, cut: int) -> int:
        return part.tokens * (cut + 1) // (self.cuts + 1)


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
        """The numbers of a part, as far as the cuts allow."""
        self.starts += 1
        part = self.parts[request.prompt]
        for number in range(part.tokens):
            while number >= part.allowed:
                part.moved.clear()
                await part.moved.wait()
            yield Tokens(data=[b"%d " % number], ids=[number])
            await asyncio.sleep(GAP_S)

    async def aclose(self) -> None:
        """Nothing is held."""


def asked(name: str, part: Part) -> Asked:
    """What a generation is asked."""
    return {"request_id": name, "max_tokens": part.tokens, "resume_ttl_ms": TTL_MS}


async def read(stream: quill.AsyncGenerationStream, part: Part) -> None:
    """One generation to its end, whatever happens to its connections."""
    try:
        async with stream:
            async for delta in stream:
                part.ids += [-1 if token.id is None else token.id for token in delta.tokens]
                part.text += delta.text
    except quill.QuillError as error:
        part.error = f"{type(error).__name__}: {error}"


async def cut_while_read(way: Way, url: str, line: Line) -> int:
    """Read the generations of a line to their ends while it is cut. How many connections it took."""
    async with ChaosProxy(url) as proxy, way.client(proxy.url) as client, way.streams(client) as stream:
        reads = [read(stream(name, **asked(name, part)), part) for name, part in line.parts.items()]
        await line.cut_while(proxy, asyncio.gather(*reads))
        return proxy.counts.connections


async def journal_text(client: quill.AsyncQuillClient, name: str, part: Part) -> str:
    """The text of a run from its beginning, as a new reader of its journal is told it."""
    return (await client.llm.generate(name, request_id=name, max_tokens=part.tokens)).text


def lines(parts: dict[str, Part], cuts: int, seed: int, *, shared: bool) -> list[Line]:
    """One line for all generations, or one for each of them; together they are cut so many times."""
    groups = [parts] if shared else [{name: part} for name, part in parts.items()]
    count = len(groups)
    return [
        Line(group, cuts * (number + 1) // count - cuts * number // count, random.Random(seed * count + number))  # noqa: S311 - where to cut
        for number, group in enumerate(groups)
    ]


async def measure(way: Way, streams: int, tokens: int, cuts: int, seed: int) -> dict[str, object]:
    """All generations in one way."""
    backend = Numbers()
    backend.parts = {f"stream-{number}": Part(tokens) for number in range(streams)}
    to_cut = lines(backend.parts, cuts, seed, shared=way.is_session)
    async with served(backend, http2=way.http2) as urls:
        url = urls[way.protocol]
        began = time.perf_counter()
        async with asyncio.timeout(LIMIT_S):
            connections = sum(await asyncio.gather(*(cut_while_read(way, url, line) for line in to_cut)))
        seconds = time.perf_counter() - began
        async with way.client(url) as fresh:
            texts = {name: await journal_text(fresh, name, part) for name, part in backend.parts.items()}
    parts = backend.parts.values()
    return {
        "streams": streams,
        "tokens": streams * tokens,
        "cuts": sum(line.cut for line in to_cut),
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
            measure(WAYS[way], arguments.streams, arguments.tokens, arguments.cuts, arguments.seed)
        )
        if not arguments.json:
            print(f"{way:12}", json.dumps(figure), flush=True)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
