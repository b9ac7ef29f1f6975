"""``quill serve``: LLMService in front of a backend, on a gRPC port and an HTTP port."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from quill.cli.options import Json
from quill.cli.terminal import OutputClosed, OutputError, write, write_json
from quill.errors import InvalidUsage
from quill.limits import Limits

if TYPE_CHECKING:
    from quill.llm.backend import ModelInfo
    from quill.server.server import Server

STOP_GRACE_S = 0.5
"""How long calls may take to end once all runs have."""


def serve(
    grpc: Annotated[str, typer.Option(help="HOST:PORT for gRPC; port 0 picks a free one.")] = "127.0.0.1:50051",
    http: Annotated[str, typer.Option(help="HOST:PORT for Connect; port 0 picks a free one.")] = "127.0.0.1:8080",
    backend: Annotated[str, typer.Option(help="What runs the models.")] = "ngram",
    grace_s: Annotated[float, typer.Option(help="How long running calls may take to end when the server stops.")] = 10,
    json: Json = False,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; a second signal ends at once."""
    if not (math.isfinite(grace_s) and grace_s >= 0):
        raise InvalidUsage(f"grace_s must be a finite number of seconds, at least 0, got {grace_s}")
    _allow_descriptors(2 * Limits().max_connections)
    asyncio.run(_serve(grpc, http, backend, grace_s, json))


async def _serve(grpc: str, http: str, backend: str, grace_s: float, json: bool) -> None:
    from quill import adapters
    from quill.llm import LLMServicer
    from quill.proto import add_LLMServiceServicer_to_server
    from quill.server.server import Server

    engine = await asyncio.to_thread(adapters.load, backend)
    servicer = LLMServicer(engine)
    server = Server(grpc=grpc, http=http)
    add_LLMServiceServicer_to_server(servicer, server)
    stopped = _signalled()
    try:
        await server.start()
        try:
            _announce(server, engine.models()[0], json=json)
        except OutputClosed:
            raise OutputError("nobody reads standard output, where the addresses are told") from None
        await stopped.wait()
    finally:
        # Runs first: a stream that does not end within the grace is told UNAVAILABLE with its position.
        server.drain()
        await servicer.aclose(grace_s)
        await server.stop(STOP_GRACE_S)
        await engine.aclose()


def _allow_descriptors(wanted: int) -> None:
    """Let this process have so many file descriptors, one for each connection, or as many as the system allows.

    The usual soft limit of 1024 is for programs that call select(), as this one does not.
    """
    try:
        import resource
    except ImportError:  # no Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


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
        write_json({"grpc": server.grpc_address, "http": server.http_url, "model": model.name})
        return
    write(f"quill serves {model.name}: {model.weights_origin}")
    write(f"  gRPC     {server.grpc_address}")
    write(f"  Connect  {server.http_url}")
    write("  try      quill generate 'Alice was' --url " + str(server.http_url))
    write("Ctrl-C stops.")
    for address in (server.grpc_address, server.http_url):
        if address is not None and not _is_loopback(address):
            print(f"quill: {address} is open to the network without authentication", file=sys.stderr)


def _is_loopback(address: str) -> bool:
    """Whether HOST:PORT or a URL names this machine alone."""
    host = address.rpartition("/")[2].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
