"""``quill serve``: LLMService in front of a backend, on a gRPC port and an HTTP port."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quill.cli.options import Json
from quill.cli.terminal import OutputClosed, OutputError, write, write_json
from quill.config import Config
from quill.errors import InvalidUsage

if TYPE_CHECKING:
    from quill.llm.backend import ModelInfo
    from quill.server.auth import Auth
    from quill.server.server import Server
    from quill.server.tls import Tls

STOP_GRACE_S = 0.5
"""How long calls may take to end once all runs have."""

GC_THRESHOLD = 100_000
"""New objects between collections. With it the slowest of a hundred first tokens came several times sooner."""


def serve(
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT or unix:PATH for gRPC; port 0 picks a free one.")] = None,
    http: Annotated[
        str | None, typer.Option(help="HOST:PORT or unix:PATH for Connect and gRPC-Web; port 0 picks a free one.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="What runs the models.")] = None,
    grace_s: Annotated[
        float | None, typer.Option(help="How long running calls may take to end when the server stops.")
    ] = None,
    http2: Annotated[bool | None, typer.Option(help="HTTP/2 in clear text (h2c) beside HTTP/1.1.")] = None,
    compression: Annotated[bool | None, typer.Option(help="Compress replies for clients that accept it.")] = None,
    reflection: Annotated[
        bool | None, typer.Option(help="Tell those who may ask which services there are (grpc.reflection).")
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A web origin whose pages may call; repeatable.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file: the certificate for both ports.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file: its private key.")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="PEM file: who signs the certificates of clients.")] = None,
    keys_file: Annotated[Path | None, typer.Option(help="TOML file: who may call what; see quill key new.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of this; flags win.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option(help="Print what would be in effect, and where from; then exit.")
    ] = False,
    json: Json = False,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; a second signal ends at once."""
    flags = {
        "--grpc": ("grpc", grpc),
        "--http": ("http", http),
        "--backend": ("backend", backend),
        "--grace-s": ("grace_s", grace_s),
        "--http2": ("http2", http2),
        "--compression": ("compression", compression),
        "--reflection": ("reflection", reflection),
        "--cors": ("cors", tuple(cors) if cors else None),
        "--tls-cert": ("tls.cert", tls_cert),
        "--tls-key": ("tls.key", tls_key),
        "--client-ca": ("tls.client_ca", client_ca),
        "--keys-file": ("auth.keys_file", keys_file),
    }
    effective = Config(config, os.environ, flags, assign or ())
    if print_config:
        print(effective.show())
        return
    if not (math.isfinite(effective["grace_s"]) and effective["grace_s"] >= 0):
        raise InvalidUsage(f"grace_s must be a finite number of seconds, at least 0, got {effective['grace_s']}")
    _allow_descriptors(2 * effective.limits().max_connections)
    asyncio.run(_serve(effective, json=json))


async def _serve(config: Config, *, json: bool) -> None:
    from quill import adapters
    from quill.llm import LLMServicer
    from quill.proto import add_LLMServiceServicer_to_server
    from quill.server.server import Server

    limits = config.limits()
    server = Server(
        grpc=config["grpc"],
        http=config["http"],
        limits=limits,
        reflection=config["reflection"],
        cors=config["cors"],
        compression=config["compression"],
        http2=config["http2"],
        tls=_tls(config),
        auth=_auth(config),
        quota=config.quota(),
    )
    engine = await asyncio.to_thread(adapters.load, config["backend"])
    servicer = LLMServicer(engine, limits=limits)
    add_LLMServiceServicer_to_server(servicer, server)
    stopped = _signalled()
    try:
        await server.start()
        _settle_garbage_collection()
        try:
            _announce(server, engine.models()[0], json=json)
        except OutputClosed:
            raise OutputError("nobody reads standard output, where the addresses are told") from None
        _warn(server, config)
        await stopped.wait()
    finally:
        # Runs first: a stream that does not end within the grace is told UNAVAILABLE with its position.
        server.drain()
        await servicer.aclose(config["grace_s"])
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


def _settle_garbage_collection() -> None:
    """What is there now stays: leave it out of collections, and collect seldom.

    A collection stops every stream for as long as it looks at all objects. Calls leave few cycles behind, so that the
    usual threshold of 700 new objects only costs.
    """
    import gc

    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


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
    if server.http_url is not None and server.http_url.startswith(("http:", "https:")):
        write("  try      quill generate 'Alice was' --url " + server.http_url)
    write("Ctrl-C stops.")


def _warn(server: Server, config: Config) -> None:
    """Say on standard error what of this the network should not see."""
    for address in (server.grpc_address, server.http_url):
        if address is None or _is_loopback(address):
            continue
        if config["auth.keys_file"] is None and config["tls.client_ca"] is None:
            print(f"quill: {address} is open to the network without authentication", file=sys.stderr)
        elif config["tls.cert"] is None:
            print(f"quill: {address} takes credentials over the network in clear text", file=sys.stderr)


def _tls(config: Config) -> Tls | None:
    """The certificates.

    Raises:
        InvalidUsage: Some of what belongs together is missing.
    """
    from quill.server.tls import Tls

    given = {name: value for name, value in config.table("tls").items() if value is not None}
    if not given:
        return None
    for name in ("cert", "key"):
        if name not in given:
            raise InvalidUsage(f"tls.{next(iter(given))} is set and tls.{name} is not: TLS needs cert and key")
    return Tls(**given)


def _auth(config: Config) -> Auth | None:
    from quill.server.auth import Auth

    keys_file = config["auth.keys_file"]
    return None if keys_file is None else Auth(keys_file, ("authorization", config["auth.api_key_header"]))


def _is_loopback(address: str) -> bool:
    """Whether HOST:PORT, a URL or a Unix socket names this machine alone."""
    if address.startswith(("unix:", "http+unix:", "https+unix:")):
        return True
    host = address.rpartition("/")[2].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
