"""``quill generate``: a prompt goes in and text streams out."""

from __future__ import annotations

from typing import Annotated

import typer

from quill.cli.connection import DEFAULT_URL, Connection, Url, connecting
from quill.cli.options import Json, MaxTokens, ModelName, Seed, Stop, Temperature, TopK, TopP
from quill.cli.terminal import read, write, write_json
from quill.client.llm.request import GenerateOptions
from quill.client.sync_client import QuillClient


@connecting
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.")],
    url: Url = DEFAULT_URL,
    model: ModelName = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    json: Json = False,
    *,
    connection: Connection,
) -> None:
    """Generate text; prints it as it comes, or the whole answer as one JSON object with --json."""
    options: GenerateOptions = {
        "model": model or None,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop,
    }
    text = read() if prompt == "-" else prompt
    with QuillClient(url, **connection.options()) as client:
        if json:
            given = {name: value for name, value in options.items() if value is not None}
            write_json(client.call_json("inference.v1.LLMService", "Generate", {"prompt": text, **given}))
            return
        with client.llm.stream(text, **options) as stream:
            for delta in stream:
                write(delta.text, end="")
        write()
