"""Options that several subcommands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

ModelName = Annotated[str, typer.Option(help="The model; the server's only one where not given.")]
MaxTokens = Annotated[int | None, typer.Option(help="How many tokens at most.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Keep the most probable tokens up to this mass.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the most probable tokens.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the output; may be repeated.")]
