"""A reader that stops after one token: how far does the backend run ahead of it?

usage: python benchmarks/stopped_reader.py [--json]

Each way in turn, with tokens of 20 bytes and of 32 KiB, from a backend that gives them as fast as they are taken. It is
counted once it has given nothing more for a while. Then the reader goes on, and has to get what is next.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable

from told import UNPACED, Backend, tell
from ways import WAYS, Way, served

from quill.limits import Limits

STEADY_S = 0.5
"""A backend that gave nothing for so long is paused."""
SESSION_WINDOW = 256
"""Entries: what the contract lets a session be ahead."""
SLACK_BYTES = 4 * 1024 * 1024
"""What buffers on the way of a plain stream may hold beside the journal: HTTP/2's windows and the kernel's."""
GOES_ON = 300
"""Tokens that the reader takes afterwards."""


async def ahead(way: Way, prompt: str) -> int:
    """Tokens that the backend had given beyond the one that was read.

    Raises:
        ValueError: The reader that went on got something else.
    """
    backend = Backend()
    async with (
        served(backend, http2=way.http2) as where,
        way.client(where[way.protocol]) as client,
        way.streams(client) as start,
        start(prompt, max_tokens=10_000_000, request_id="one") as stream,
    ):
        delta = await anext(stream)
        read, text = len(delta.tokens), delta.text
        given = -1
        async with asyncio.timeout(60):
            while given != (given := backend.starts["one"].tokens):  # noqa: ASYNC110 - that nothing happens has no event
                await asyncio.sleep(STEADY_S)
        ahead_of_it = given - read
        async with asyncio.timeout(60):
            while read < GOES_ON:
                delta = await anext(stream)
                read, text = read + len(delta.tokens), text + delta.text
    if text != UNPACED[prompt].decode() * read:
        raise ValueError(f"{way}: {read} tokens of {prompt} are not what the backend gave")
    return ahead_of_it


async def measure(ways: Iterable[str]) -> dict[str, float]:
    """The figures of some ways."""
    seen: dict[str, float] = {}
    for name in ways:
        for prompt, token in UNPACED.items():
            tokens = await ahead(WAYS[name], prompt)
            seen |= {f"{name}_{prompt}_tokens_ahead": tokens, f"{name}_{prompt}_bytes_ahead": tokens * len(token)}
    return seen


def beyond(seen: dict[str, float]) -> list[str]:
    """The keys of what is out of bounds."""
    most_bytes = Limits().max_journal_bytes + SLACK_BYTES
    return [
        key
        for key, value in seen.items()
        if value > (SESSION_WINDOW if key.startswith("session") and key.endswith("tokens_ahead") else most_bytes)
    ]


def main() -> None:
    """Print the figures; exit with 1 where they are out of bounds."""
    parser = argparse.ArgumentParser(description="How far a backend runs ahead of a reader that stopped.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which ones")
    options = parser.parse_args()
    seen = asyncio.run(measure(options.ways))
    tell(seen, as_json=options.json)
    if wrong := beyond(seen):
        sys.exit(f"out of bounds: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
