"""How a command reaches a server: the options that all commands with a server share, in one place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from quill.client.tls import ClientTls
from quill.errors import InvalidUsage

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[
    str,
    typer.Option(help="The server: http(s):// and http+unix:/// speak Connect, grpc(s):// and unix:/// speak gRPC."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What a person says of the connection besides the URL."""

    header: Annotated[list[str] | None, typer.Option(help="NAME:VALUE, sent along; may be repeated.")] = None
    timeout_ms: Annotated[int, typer.Option(help="How long to wait for the answer; of a stream, for each message.")] = (
        30_000
    )
    http2: Annotated[
        bool, typer.Option("--http2", help="Speak HTTP/2 over http://, as `quill serve --http2` takes it.")
    ] = False
    ca: Annotated[
        str | None, typer.Option(help="PEM file: who signed the server's certificate, if not the system's.")
    ] = None
    cert: Annotated[str | None, typer.Option(help="PEM file: the certificate to show to a server that asks.")] = None
    key: Annotated[str | None, typer.Option(help="PEM file: the key of that certificate.")] = None

    def options(self) -> dict[str, Any]:
        """The keyword arguments of a client.

        Raises:
            InvalidUsage: A header has no colon, or only one of certificate and key is given.
        """
        has_tls = any(path is not None for path in (self.ca, self.cert, self.key))
        return {
            "headers": _headers(self.header or ()),
            "timeout_ms": self.timeout_ms,
            "idle_timeout_ms": self.timeout_ms,
            "http2": self.http2,
            "tls": ClientTls(ca=self.ca, cert=self.cert, key=self.key) if has_tls else None,
        }


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a Connection in the place of its parameter ``connection``."""
    options = inspect.signature(Connection, eval_str=True).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        connection = Connection(**{name: given.pop(name) for name in options})
        command(connection=connection, **given)

    own = inspect.signature(command, eval_str=True)
    kept = [one for name, one in own.parameters.items() if name != "connection"]
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*kept, *options.values())]
    # Typer reads the options from here.
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _headers(lines: Sequence[str]) -> dict[str, str]:
    """NAME:VALUE lines as headers. What is said of a wrong one shows no value."""
    pairs = [line.partition(":") for line in lines]
    for name, colon, _ in pairs:
        if not colon:
            raise InvalidUsage(f"a header is written NAME:VALUE, got one without a colon that starts {name[:8]!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}
