"""``quill sidecar``: the Shard sidecar for development, with the embedded model behind it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from quill.cli.options import Json
from quill.cli.process import allow_descriptors, signalled
from quill.cli.terminal import OutputClosed, OutputError, write, write_json
from quill.errors import InvalidUsage

if TYPE_CHECKING:
    from quill.testing.sidecar.behaviour import Behaviour
    from quill.testing.sidecar.daemon import Daemon
    from quill.testing.sidecar.faults import Faults
    from quill.testing.sidecar.host import Host


def sidecar(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0 picks a free one.")] = 9091,
    dialect: Annotated[str, typer.Option(help="A as documented, B and C as released daemons speak.")] = "A",
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="How it behaves, as tokens_per_s=20; repeatable."),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="ON:KIND[,KEY=VALUE]...", help="What goes wrong, as pop:status,status=500,next=2."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which occasions a fault's probability hits.")] = 0,
    faults: Annotated[bool, typer.Option("--faults", help="Let clients switch faults, at /faults.")] = False,
    json: Json = False,
) -> None:
    """Serve Shard's sidecar protocol, for tests and demos, until Ctrl-C or SIGTERM."""
    from quill.testing.sidecar.behaviour import Behaviour, assignments
    from quill.testing.sidecar.faults import Fault, Faults
    from quill.testing.sidecar.requests import DIALECTS

    if dialect not in DIALECTS:
        raise InvalidUsage(f"dialect must be {' or '.join(DIALECTS)}, got {dialect!r}")
    behaviour = Behaviour.read(assignments(assign or []))
    switched = Faults(seed)
    switched.switch(Fault.read(_fault(text)) for text in fault or ())
    asyncio.run(_serve(dialect, port, behaviour, switched, with_faults=faults, json=json))


async def _serve(
    dialect: str, port: int, behaviour: Behaviour, switched: Faults, *, with_faults: bool, json: bool
) -> None:
    from quill.testing.sidecar.daemon import Daemon
    from quill.testing.sidecar.host import MAX_CONNECTIONS, Host
    from quill.testing.sidecar.writer import Writer

    allow_descriptors(2 * MAX_CONNECTIONS)
    stopped = signalled()
    writer = await asyncio.to_thread(Writer)
    daemon = Daemon(dialect, writer, behaviour, switched)
    try:
        async with Host(daemon, port, with_faults=with_faults) as host:
            try:
                _announce(host, daemon, json=json)
            except OutputClosed:
                raise OutputError("nobody reads standard output, where the addresses are told") from None
            await stopped.wait()
            await daemon.aclose()
    finally:
        await daemon.aclose()
        await writer.aclose()


def _announce(host: Host, daemon: Daemon, *, json: bool) -> None:
    """Say where the sidecar listens: one JSON line for programs, a few lines for people."""
    if json:
        write_json({"url": host.url, "websocket_url": host.websocket_url})
        return
    write(f"quill speaks dialect {daemon.dialect} of the Shard sidecar, for development")
    write(f"  model      {daemon.writer.model}: {daemon.writer.origin}")
    write(f"  HTTP       {host.url}")
    write(f"  WebSocket  {'none in this dialect' if daemon.dialect == 'B' else host.websocket_url}")
    write("Ctrl-C stops.")


def _fault(text: str) -> dict[str, object]:
    """The fault that ON:KIND,KEY=VALUE stands for."""
    from quill.testing.sidecar.behaviour import assignments

    what, *details = text.split(",")
    on, colon, kind = what.partition(":")
    if not colon:
        raise InvalidUsage(f"a fault is ON:KIND, as pop:status, got {text!r}")
    return {"on": on.strip(), "kind": kind.strip()} | assignments(details)
