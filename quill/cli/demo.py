"""``quill demo``: a server process and a client, one prompt over each protocol, and what it took.

The server is a process of its own on free ports; this process is the client.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Never

import typer

from quill.cli.terminal import write
from quill.client.sync_client import QuillClient
from quill.testing import started


@dataclass(frozen=True, slots=True)
class Figures:
    """What one streamed answer took."""

    protocol: str
    tokens: int
    first_token_ms: float
    total_ms: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first, over the time after the first."""
        return (self.tokens - 1) / max(self.total_ms - self.first_token_ms, 1e-3) * 1000


def demo(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")] = "Alice was beginning",
    max_tokens: Annotated[int, typer.Option(min=2, help="How many tokens each answer may have.")] = 48,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer on both protocols.")] = 7,
) -> None:
    """Start a server, stream an answer over gRPC and over Connect, show what it took, and stop."""
    signal.signal(signal.SIGTERM, _end)
    with _server() as ready:
        with QuillClient(ready["http"]) as client:
            origin = client.llm.models()[0].weights_origin
        write(f"{ready['model']}: {origin}\n")
        urls = {"gRPC": "grpc://" + ready["grpc"], "Connect": ready["http"]}
        rows = [_stream(name, url, prompt, max_tokens, seed) for name, url in urls.items()]
    for row in rows:
        write(
            f"{row.protocol:<8} {row.tokens:3d} tokens   first after {row.first_token_ms:6.1f} ms   "
            f"{row.tokens_per_s:8.0f} tokens/s"
        )


def _stream(protocol: str, url: str, prompt: str, max_tokens: int, seed: int) -> Figures:
    """Stream one answer to the terminal. The connection is opened before the clock starts."""
    with QuillClient(url) as client:
        client.health_check()
        write(f"{protocol} {url}\n  {prompt}", end="")
        tokens, first_ms = 0, 0.0
        start = time.perf_counter()
        with client.llm.stream(prompt, max_tokens=max_tokens, seed=seed) as stream:
            for delta in stream:
                if delta.tokens and not tokens:
                    first_ms = (time.perf_counter() - start) * 1000
                tokens += len(delta.tokens)
                write(delta.text.replace("\n", "\n  "), end="")
        total_ms = (time.perf_counter() - start) * 1000
        write("\n")
    return Figures(protocol, tokens, first_ms, total_ms)


def _end(number: int, _frame: object) -> Never:
    """End in order: the default of SIGTERM would leave the server behind."""
    sys.exit(128 + number)


@contextmanager
def _server() -> Iterator[dict[str, str]]:
    """A server process of our own, ready; what it said of itself; ended in any case."""
    command = [sys.executable, "-m", "quill", "serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"]
    process, line = started.start(command)
    try:
        yield json.loads(line)
    finally:
        started.stop(process)
