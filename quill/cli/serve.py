"""``quill serve``: LLMService in front of a backend, and TensorService, on a gRPC port and an HTTP port."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quill.cli.options import Json
from quill.cli.process import allow_descriptors, signalled
from quill.cli.tensor_models import load_models
from quill.cli.terminal import OutputClosed, OutputError, write, write_json
from quill.config import BACKEND_OPTIONS, Config
from quill.errors import InvalidUsage
from quill.garbage import collect_seldom
from quill.lanes.memory import keep_all

if TYPE_CHECKING:
    from quill.llm.backend import Backend, ModelInfo
    from quill.server.auth import Auth
    from quill.server.server import Server
    from quill.server.tls import Tls

STOP_GRACE_S = 0.5
"""How long calls may take to end once all runs have."""
READINESS_PERIOD_S = 0.5
"""How often the backend is asked which of its models can answer."""


def serve(
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT or unix:PATH for gRPC; port 0 picks a free one.")] = None,
    http: Annotated[
        str | None, typer.Option(help="HOST:PORT or unix:PATH for Connect and gRPC-Web; port 0 picks a free one.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="What runs the models: ngram, shard, or one installed.")] = None,
    router_url: Annotated[
        str | None, typer.Option(help="Of the backend shard: the sidecar; http://127.0.0.1:9091 by default.")
    ] = None,
    websocket_url: Annotated[
        str | None, typer.Option(help="Of the backend shard: its WebSocket, if not ws://HOST:PORT/ws/generate.")
    ] = None,
    transport: Annotated[
        str | None, typer.Option(help="Of the backend shard: how tokens come: http_poll, websocket or auto.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="Of the backend shard: what the sidecar speaks: A, B, C or auto.")
    ] = None,
    shard_model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of the backend shard: a model on offer; repeatable.")
    ] = None,
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
    tensor_models: Annotated[
        str | None, typer.Option(metavar="MODULE_OR_FILE", help="Python whose TensorModels are served as well.")
    ] = None,
    large_tensors: Annotated[
        bool | None, typer.Option(help="Keep memory that tensors took for the next ones (mallopt; glibc).")
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
        "--router-url": ("backend_options.router_url", router_url),
        "--websocket-url": ("backend_options.websocket_url", websocket_url),
        "--transport": ("backend_options.transport", transport),
        "--dialect": ("backend_options.dialect", dialect),
        "--shard-model": ("backend_options.models", tuple(shard_model) if shard_model else None),
        "--grace-s": ("grace_s", grace_s),
        "--http2": ("http2", http2),
        "--compression": ("compression", compression),
        "--reflection": ("reflection", reflection),
        "--cors": ("cors", tuple(cors) if cors else None),
        "--tensor-models": ("tensor_models", tensor_models),
        "--large-tensors": ("large_tensors", large_tensors),
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
    if effective["large_tensors"]:
        keep_all()
    allow_descriptors(2 * effective.limits().max_connections)
    asyncio.run(_serve(effective, json=json))


async def _serve(config: Config, *, json: bool) -> None:
    from quill import adapters
    from quill.llm import LLMServicer
    from quill.proto import add_LLMServiceServicer_to_server
    from quill.server.server import Server
    from quill.server.tls import TlsFiles
    from quill.tensors import TensorServicer, add_to_server

    limits = config.limits()
    tls = _tls(config)
    server = Server(
        grpc=config["grpc"],
        http=config["http"],
        limits=limits,
        reflection=config["reflection"],
        cors=config["cors"],
        compression=config["compression"],
        http2=config["http2"],
        tls=tls,
        auth=_auth(config),
        quota=config.quota(),
    )
    engine = await asyncio.to_thread(adapters.load, config["backend"], **config.table(BACKEND_OPTIONS))
    servicer = LLMServicer(engine, limits=limits)
    add_LLMServiceServicer_to_server(servicer, server)
    tensors = TensorServicer(
        await asyncio.to_thread(load_models, config["tensor_models"]),
        limits=limits,
        socket_host=_host(config["grpc"] or config["http"]),
        socket_tls=None if tls is None else TlsFiles(tls).context,
    )
    add_to_server(tensors, server)
    stopped = signalled()
    tending: asyncio.Task[None] | None = None
    watching: asyncio.Task[None] | None = None
    try:
        await server.start()
        tending = asyncio.create_task(collect_seldom(), name="garbage")
        try:
            _announce(server, engine.models()[0], json=json)
        except OutputClosed:
            raise OutputError("nobody reads standard output, where the addresses are told") from None
        _warn(server, config)
        watching = asyncio.create_task(_tell_readiness(engine, server), name="readiness")
        await stopped.wait()
    finally:
        if watching is not None:
            watching.cancel()
        # Runs first: a stream that does not end within the grace is told UNAVAILABLE with its position.
        server.drain()
        await servicer.aclose(config["grace_s"])
        if tending is not None:
            tending.cancel()  # not before: streams go on until here
        await server.stop(STOP_GRACE_S)
        await tensors.aclose()
        await engine.aclose()


async def _tell_readiness(engine: Backend, server: Server) -> None:
    """Let health follow the models, for as long as the task runs: SERVING while one of them can answer."""
    while True:
        server.set_serving(any(model.ready for model in engine.models()))
        await asyncio.sleep(READINESS_PERIOD_S)


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
    host = _host(address.rpartition("/")[2])
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def _host(address: str | None) -> str | None:
    """The host of HOST:PORT; None of a Unix socket."""
    if address is None or address.startswith("unix:"):
        return None
    return address.rpartition(":")[0].strip("[]")
