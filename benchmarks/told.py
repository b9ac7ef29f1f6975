"""A backend that knows when it was told to stop, how to wait for it, and how to tell what was seen."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quill.generation import Finish, FinishReason
from quill.llm import BackendEvent, Finished, ModelInfo, Tokens
from quill.proto import GenerateRequest

SLACK = "how many times its bound a time may take, on a machine that does other things"
TOKEN = b"token "
UNPACED = {"small": b"%019d " % 0, "bulky": b"x" * 32_768}
"""Tokens of a prompt that come as fast as they are taken."""


@dataclass(slots=True)
class Start:
    """One start of the backend."""

    live: bool = True
    tokens: int = 0
    told_s: float = 0.0
    """When it ended, by time.monotonic(), which is the same clock in all processes of the machine."""
    aborts: int = 0
    ends: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Backend:
    """Does what the prompt says, and keeps a `Start` for each request id.

    ``silent``: no token; ``paced``: a token every few milliseconds; ``small`` and ``bulky``: tokens as fast as they are
    taken; ``finished``: a token and the finish, and then it does not end.

    Args:
        gap_s: How long ``paced`` waits between two tokens.
    """

    name = "told"

    def __init__(self, gap_s: float = 0.002) -> None:
        self._gap_s = gap_s
        self.starts: dict[str, Start] = {}

    def models(self) -> Sequence[ModelInfo]:
        """One."""
        return [ModelInfo(name="told", weights_origin="none", default_max_tokens=1_000_000)]

    async def generate(self, request: GenerateRequest, *, model: ModelInfo) -> AsyncIterator[BackendEvent]:
        """Play a part until told to stop."""
        start = self.starts.setdefault(request.request_id, Start())
        token = UNPACED.get(request.prompt, TOKEN)
        gap_s = 0 if request.prompt in UNPACED else self._gap_s
        played = False
        try:
            if request.prompt == "silent":
                await asyncio.Event().wait()
            for _ in range(request.max_tokens):
                yield Tokens(data=[token])
                start.tokens += 1
                if request.prompt == "finished":
                    yield Finished(Finish(FinishReason.STOP))
                    await asyncio.Event().wait()
                await asyncio.sleep(gap_s)
            played = True
        finally:
            start.live, start.told_s = False, time.monotonic()
            start.aborts += not played
            start.ends += 1
            start.changed.set()

    async def aclose(self) -> None:
        """Nothing is held."""

    @property
    def live(self) -> int:
        """How many starts run."""
        return sum(start.live for start in self.starts.values())


async def until(condition: Any, limit_s: float = 30.0) -> None:
    """Wait for something that nothing announces.

    Raises:
        TimeoutError: It did not happen.
    """
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.001)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which such a share of the values lies; the largest where there are few."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def tell(figures: Mapping[str, float], *, as_json: bool) -> None:
    """Print figures: one JSON object, or a line for each."""
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):<44} {value:g}")


def missed(figures: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> int:
    """How many of the figures are out of their bounds, the least and the most; each is told on standard error."""
    count = 0
    for name, (least, most) in bounds.items():
        if name in figures and not least <= figures[name] <= most:
            count += 1
            print(f"{name} is {figures[name]:g}, wanted {least:g} to {most:g}", file=sys.stderr)
    return count
