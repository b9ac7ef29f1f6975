"""``quill generate``: a prompt goes in and text streams out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from quill.cli.options import DEFAULT_URL, Ca, Cert, Http2, Json, Key, TimeoutMs, Url, client_tls
from quill.cli.terminal import read, write, write_json
from quill.client.sync_client import QuillClient


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.")],
    url: Url = DEFAULT_URL,
    model: Annotated[str, typer.Option(help="The model; the server's only one where not given.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="How many tokens at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the most probable tokens up to this mass.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep this many of the most probable tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the output; may be repeated.")] = None,
    json: Json = False,
    timeout_ms: TimeoutMs = 30_000,
    http2: Http2 = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
) -> None:
    """Generate text; prints it as it comes, or the whole answer as one JSON object with --json."""
    given = {
        "model": model or None,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    text = read() if prompt == "-" else prompt
    with QuillClient(url, timeout_ms=timeout_ms, http2=http2, tls=client_tls(ca, cert, key)) as client:
        if json:
            request = {"prompt": text, **options}
            write_json(client.call_json("inference.v1.LLMService", "Generate", request))
            return
        with client.llm.stream(text, **options) as stream:
            for delta in stream:
                write(delta.text, end="")
        write()
