"""Options that several subcommands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from quill.errors import InvalidUsage

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[str, typer.Option(help="The server: http(s):// speaks Connect, grpc(s):// speaks gRPC.")]
TimeoutMs = Annotated[int, typer.Option(help="How long to wait for the answer, or for a stream's first message.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Header = Annotated[list[str] | None, typer.Option(help="NAME:VALUE, sent along; may be repeated.")]

ModelName = Annotated[str, typer.Option(help="The model; the server's only one where not given.")]
MaxTokens = Annotated[int | None, typer.Option(help="How many tokens at most.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Keep the most probable tokens up to this mass.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the most probable tokens.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the output; may be repeated.")]


def headers(lines: Sequence[str] | None) -> dict[str, str]:
    """NAME:VALUE lines as headers.

    Raises:
        InvalidUsage: One has no colon. The message shows no value.
    """
    pairs = [line.partition(":") for line in lines or ()]
    for name, colon, _ in pairs:
        if not colon:
            raise InvalidUsage(f"a header is written NAME:VALUE, got one without a colon that starts {name[:8]!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}
