"""Options that several subcommands share."""

from __future__ import annotations

from typing import Annotated

import typer

from quill.client.tls import ClientTls

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[
    str,
    typer.Option(help="The server: http(s):// and http+unix:/// speak Connect, grpc(s):// and unix:/// speak gRPC."),
]
Ca = Annotated[str | None, typer.Option(help="PEM file: who signed the server's certificate, if not the system's.")]
Cert = Annotated[str | None, typer.Option(help="PEM file: the certificate to show to a server that asks for one.")]
Key = Annotated[str | None, typer.Option(help="PEM file: the key of that certificate.")]
TimeoutMs = Annotated[int, typer.Option(help="How long to wait for the answer, or for a stream's first message.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Http2 = Annotated[bool, typer.Option("--http2", help="Speak HTTP/2 over http://, as `quill serve --http2` takes it.")]


def client_tls(ca: str | None, cert: str | None, key: str | None) -> ClientTls | None:
    """What the three options say together.

    Raises:
        InvalidUsage: Only one of certificate and key is given.
    """
    return None if ca is None and cert is None and key is None else ClientTls(ca=ca, cert=cert, key=key)
