"""The peers behind the sidecar: what they write, how fast, and in which JSON objects it is told."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from quill.testing.sidecar.behaviour import MAX_PEERS, Behaviour
from quill.testing.sidecar.queues import Item
from quill.testing.sidecar.requests import Work
from quill.testing.sidecar.writer import Writer

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Network:
    """The peers, from one start of the sidecar to the next.

    Args:
        writer: Writes the answers.
        behaviour: The switches, which may be changed at any time.
    """

    def __init__(self, writer: Writer, behaviour: Behaviour) -> None:
        self._writer = writer
        self.behaviour = behaviour
        self._ids = [peer_id() for _ in range(MAX_PEERS)]
        self.latencies_ms: deque[int] = deque(maxlen=256)
        """What the last drafts took."""

    @property
    def peers(self) -> list[str]:
        """Who listens."""
        return self._ids[: self.behaviour.peers]

    async def written(self, work: Work) -> AsyncGenerator[tuple[int, str, bool], None]:
        """The tokens of an answer at the network's pace: number, text, and whether it is the last."""
        if not self.behaviour.peers:
            await asyncio.Event().wait()  # for whoever asked to leave
        wanted = self._wanted(work)
        number = 0
        async with aclosing(self._paced(work.prompt, wanted, peer=0)) as tokens:
            async for token in tokens:
                yield number, token, number + 1 == wanted
                number += 1

    async def objects(self, work: Work) -> AsyncGenerator[tuple[Item, bool], None]:
        """A: the JSON objects that tell an answer, and whether each is a token; the end alone is none."""
        behaviour = self.behaviour
        name = {"request_id": work.request_id} if behaviour.with_request_id else {}
        end = _end(behaviour.end)
        told = False
        async with aclosing(self.written(work)) as tokens:
            async for number, token, last in tokens:
                told = last and behaviour.end_with_token
                yield name | self.numbered(number) | {behaviour.text_field: token} | (end if told else {}), True
        if end and not told:
            yield name | end, False

    def numbered(self, number: int) -> Item:
        """What says which token of its request an object carries, if anything."""
        field = self.behaviour.number_field
        return {} if field == "none" else {field: number}

    async def draft(self, work: Work, peer: int) -> Item:
        """B and C: what one peer writes, as one result."""
        started_s = time.monotonic()
        async with aclosing(self._paced(work.prompt, self._wanted(work), peer)) as tokens:
            draft = [token async for token in tokens]
        latency_ms = int((time.monotonic() - started_s) * 1000)
        self.latencies_ms.append(latency_ms)
        return {
            "request_id": work.request_id,
            "peer_id": self._ids[peer],
            "draft_tokens": draft,
            "latency_ms": latency_ms,
            "created_at_ms": time.time_ns() // 1_000_000,
        }

    def _wanted(self, work: Work) -> int:
        return work.tokens if self.behaviour.tokens is None else self.behaviour.tokens

    async def _paced(self, prompt: str, count: int, peer: int) -> AsyncGenerator[str, None]:
        """So many tokens of a peer, each when it is due."""
        begun_s = time.monotonic() + self.behaviour.first_token_delay_ms / 1000
        await asyncio.sleep(begun_s - time.monotonic())
        async with aclosing(self._writer.tokens(prompt, peer=peer)) as tokens:
            for number in range(count):
                token = await anext(tokens)
                if self.behaviour.tokens_per_s is not None:
                    await asyncio.sleep(begun_s + number / self.behaviour.tokens_per_s - time.monotonic())
                yield token


def peer_id() -> str:
    """A name like those of libp2p."""
    return "12D3KooW" + "".join(secrets.choice(_BASE58) for _ in range(44))


def _end(form: str) -> Item:
    if form == "none":
        return {}
    event = form.removeprefix("event:")
    return {form: True} if event == form else {"event": event}
