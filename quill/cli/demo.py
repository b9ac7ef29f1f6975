"""``quill demo``: a prompt through every hop, from a Shard sidecar to a client, and what each hop took.

The sidecar and the servers are processes of their own on free ports; this process is the client. Without
``quill-rpc[shard]`` there is no sidecar, and the server runs the embedded model itself.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, Never, TypeAlias

import typer

from quill import adapters
from quill.cli.paragraph import Paragraph
from quill.cli.terminal import write
from quill.client.sync_client import QuillClient
from quill.testing import started

_NEEDED = ("websockets",)
_TRANSPORTS: dict[Literal["http_poll", "websocket"], str] = {"http_poll": "polling", "websocket": "WebSocket"}


class Watch:
    """Times one answer."""

    def __init__(self) -> None:
        self._start_s = self._first_s = self._end_s = 0.0
        self._first_tokens = self._tokens = 0

    def start(self) -> None:
        """The request goes out now: the connection is open, and its ends know each other."""
        self._start_s = time.perf_counter()

    def take(self, tokens: int = 1) -> None:
        """Tokens have come."""
        self._end_s = time.perf_counter()
        if not self._tokens:
            self._first_s, self._first_tokens = self._end_s, tokens
        self._tokens += tokens

    def figures(self) -> str:
        """Columns: tokens, milliseconds until the first, tokens a second after the first message."""
        first_ms = max(self._first_s - self._start_s, 0.0) * 1000
        rate = (self._tokens - self._first_tokens) / max(self._end_s - self._first_s, 1e-6)
        return f"{self._tokens:>6}{first_ms:>13.1f} ms{rate:>12.0f}"


Run: TypeAlias = Callable[[str, int, Callable[[str], None], Watch], None]
"""Takes a prompt and how many tokens there may be. Generates twice on one connection: once to show what comes, which
also opens the connection, and once against the watch."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A way that an answer can take."""

    name: str
    run: Run
    is_shown: bool = False
    """Whether its text is shown: that of the others would be more of the same."""


def demo(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")] = "Alice was beginning",
    max_tokens: Annotated[int, typer.Option(min=2, help="How many tokens each answer may have.")] = 48,
) -> None:
    """Start a sidecar and servers, stream an answer over every hop, show what each took, and stop."""
    signal.signal(signal.SIGTERM, _end)
    has_shard = all(map(importlib.util.find_spec, _NEEDED))
    write("Starting a sidecar and two servers." if has_shard else "Starting a server.")
    rows = []
    with ExitStack() as stack:
        hops = _shard_hops(stack) if has_shard else _hops(stack)
        write("The model")
        paragraph = Paragraph()
        paragraph.add(adapters.load("ngram").models()[0].weights_origin.partition(":")[0] + ".")
        paragraph.end()
        for hop in hops:
            watch = Watch()
            if hop.is_shown:
                write(f"\n{hop.name}")
                paragraph.add(prompt)
                hop.run(prompt, max_tokens, paragraph.add, watch)
                paragraph.end()
            else:
                hop.run(prompt, max_tokens, lambda text: None, watch)
            rows.append((hop.name, watch.figures()))
    write(f"\n{'':<42}{'tokens':>6}{'first token':>16}{'tokens/s':>12}")
    for name, figures in rows:
        write(f"{name:<42}{figures}")
    if not has_shard:
        write("\nWith quill-rpc[shard] installed the demo goes through a Shard sidecar as well.")


def _shard_hops(stack: ExitStack) -> list[Hop]:
    """Client, LLMService, adapter and sidecar, by polling and over the WebSocket; each hop more than the one before."""
    sidecar = stack.enter_context(_started("sidecar", "--port", "0"))
    hops = []
    for transport, how in _TRANSPORTS.items():
        ready = stack.enter_context(
            _server("--backend", "shard", "--router-url", sidecar["url"], "--transport", transport)
        )
        hops += [
            Hop(f"sidecar, {how}", _direct(sidecar["url"], sidecar["websocket_url"], transport)),
            Hop(f"sidecar, {how} > Quill, gRPC", _through_quill("grpc://" + ready["grpc"]), is_shown=True),
            Hop(f"sidecar, {how} > Quill, Connect", _through_quill(ready["http"])),
        ]
    return hops


def _hops(stack: ExitStack) -> list[Hop]:
    """Client and LLMService, with the model in it."""
    ready = stack.enter_context(_server())
    return [
        Hop("Quill, gRPC", _through_quill("grpc://" + ready["grpc"]), is_shown=True),
        Hop("Quill, Connect", _through_quill(ready["http"])),
    ]


def _server(*arguments: str) -> AbstractContextManager[dict[str, str]]:
    return _started("serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", *arguments)


@contextmanager
def _started(*arguments: str) -> Iterator[dict[str, str]]:
    """A `quill` command as a process of its own, ready; what it said of itself; ended in any case."""
    process, line = started.start([sys.executable, "-m", "quill", *arguments, "--json"])
    try:
        yield json.loads(line)
    finally:
        started.stop(process)


def _through_quill(url: str) -> Run:
    def run(prompt: str, max_tokens: int, show: Callable[[str], None], watch: Watch) -> None:
        with QuillClient(url) as client:
            with client.llm.stream(prompt, max_tokens=max_tokens) as stream:
                for delta in stream:
                    show(delta.text)
            watch.start()
            with client.llm.stream(prompt, max_tokens=max_tokens) as stream:
                for delta in stream:
                    if delta.tokens:
                        watch.take(len(delta.tokens))

    return run


def _direct(url: str, websocket_url: str, transport: Literal["http_poll", "websocket"]) -> Run:
    from quill.shard import ShardDistributedModel

    async def stream(prompt: str, max_tokens: int, show: Callable[[str], None], watch: Watch) -> None:
        async with ShardDistributedModel.from_pretrained(
            "shard/network-default", router_url=url, websocket_url=websocket_url, transport=transport
        ) as model:
            show(await model.generate(prompt, max_new_tokens=max_tokens))
            watch.start()
            async with aclosing(model.stream_generate(prompt, max_new_tokens=max_tokens)) as pieces:
                async for _ in pieces:
                    watch.take()

    return lambda *arguments: asyncio.run(stream(*arguments))


def _end(number: int, _frame: object) -> Never:
    """End in order: the default of SIGTERM would leave the children behind."""
    sys.exit(128 + number)
