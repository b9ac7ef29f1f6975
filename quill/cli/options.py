"""Options that several subcommands share."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[str, typer.Option(help="The server: http(s):// speaks Connect, grpc(s):// speaks gRPC.")]
TimeoutMs = Annotated[int, typer.Option(help="How long to wait for the answer, or for a stream's first message.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Http2 = Annotated[bool, typer.Option("--http2", help="Speak HTTP/2 over http://, as `quill serve --http2` takes it.")]
