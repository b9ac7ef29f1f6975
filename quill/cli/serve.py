"""``quill serve``: LLMService in front of a backend, on a gRPC port and an HTTP port."""

from __future__ import annotations

import asyncio
import ipaddress
import json as json_text
import signal
import sys
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from quill.cli.options import Json

if TYPE_CHECKING:
    from quill.llm.backend import ModelInfo
    from quill.server.server import Server

STOP_GRACE_S = 1.0
"""How long calls may take to end once all runs have."""


def serve(
    grpc: Annotated[
        str, typer.Option(help="HOST:PORT or unix:PATH for gRPC; port 0 picks a free one.")
    ] = "127.0.0.1:50051",
    http: Annotated[
        str, typer.Option(help="HOST:PORT or unix:PATH for Connect and gRPC-Web; port 0 picks a free one.")
    ] = "127.0.0.1:8080",
    backend: Annotated[str, typer.Option(help="What runs the models.")] = "ngram",
    grace_s: Annotated[float, typer.Option(help="How long running calls may take to end when the server stops.")] = 10,
    http2: Annotated[bool, typer.Option("--http2", help="HTTP/2 in clear text (h2c) beside HTTP/1.1.")] = False,
    reflection: Annotated[bool, typer.Option("--reflection", help="Tell everybody which services there are.")] = False,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A web origin whose pages may call; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; a second signal ends at once."""
    transport = _Transport(grpc=grpc, http=http, http2=http2, reflection=reflection, cors=tuple(cors or ()))
    asyncio.run(_serve(transport, backend, grace_s, json))


class _Transport(TypedDict):
    """The options that are quill.Server's own."""

    grpc: str
    http: str
    http2: bool
    reflection: bool
    cors: tuple[str, ...]


async def _serve(transport: _Transport, backend: str, grace_s: float, json: bool) -> None:
    from quill import adapters
    from quill.llm import LLMServicer
    from quill.proto import add_LLMServiceServicer_to_server
    from quill.server.server import Server

    engine = await asyncio.to_thread(adapters.load, backend)
    servicer = LLMServicer(engine)
    server = Server(**transport)
    add_LLMServiceServicer_to_server(servicer, server)
    stopped = _signalled()
    try:
        await server.start()
        _announce(server, engine.models()[0], json=json)
        await stopped.wait()
    finally:
        # Runs first: a stream that does not end within the grace is told UNAVAILABLE with its position.
        server.drain()
        await servicer.aclose(grace_s)
        await server.stop(STOP_GRACE_S)
        await engine.aclose()


def _signalled() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second signal has its default effect."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        event.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return event


def _announce(server: Server, model: ModelInfo, *, json: bool) -> None:
    """Say where the server listens: one JSON line for programs, a few lines for people."""
    if json:
        print(json_text.dumps({"grpc": server.grpc_address, "http": server.http_url, "model": model.name}), flush=True)
        return
    print(f"quill serves {model.name}: {model.weights_origin}")
    print(f"  gRPC     {server.grpc_address}")
    print(f"  Connect  {server.http_url}")
    if server.http_url is not None and server.http_url.startswith("http:"):
        print("  try      quill generate 'Alice was' --url " + server.http_url)
    print("Ctrl-C stops.", flush=True)
    for address in (server.grpc_address, server.http_url):
        if address is not None and not _is_loopback(address):
            print(f"quill: {address} is open to the network without authentication", file=sys.stderr)


def _is_loopback(address: str) -> bool:
    """Whether HOST:PORT, a URL or a Unix socket names this machine alone."""
    if address.startswith(("unix:", "http+unix:")):
        return True
    host = address.rpartition("/")[2].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
