"""The table turned round: Quill's clients against servers in other languages."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

from clients import judged
from programs import PROGRAM_TIMEOUT_S, ROOT, ForeignServer, Program, run, started
from servers import WAYS, first_line
from table import Cell

CASES = (
    "unary",
    "server_stream",
    "client_stream",
    "half_duplex",
    "full_duplex",
    "error_details",
    "metadata",
    "deadline",
    "cancel",
    "compression",
)
"""What quill_script.py runs."""
_START_S = 30
_NO_DUPLEX: Mapping[tuple[str, str], str] = {
    ("connect", "sync"): "HTTP/1.1 has no full duplex",
    ("connect", "async"): "HTTP/1.1 has no full duplex",
    ("connect-h2c", "sync"): "the blocking client reads when all is sent",
    ("grpc-web", "sync"): "gRPC-Web has no full duplex",
    ("grpc-web", "async"): "gRPC-Web has no full duplex",
    ("grpc-web-h2c", "sync"): "gRPC-Web has no full duplex",
    ("grpc-web-h2c", "async"): "gRPC-Web has no full duplex",
}
"""Why a dialogue is impossible, by way and client."""


def cells(server: ForeignServer) -> Iterator[Cell]:
    """Run Quill's clients over each way of a server."""
    with tempfile.TemporaryDirectory(prefix="quill-interop-") as folder:
        image = Path(folder) / "play.binpb"
        run(["buf", "build", "proto", "--as-file-descriptor-set", "--output", str(image)], ROOT, _START_S)
        with started(server.command, server.folder) as process:
            told = json.loads(first_line(process, _START_S))
            for way, client, form in product(server.ways, ("sync", "async"), ("messages", "dicts")):
                program = _program(server, way=way, client=client, form=form, told=told, image=image)
                done = run(program.command, ROOT, PROGRAM_TIMEOUT_S)
                yield from judged(program, way, done)


def _program(
    server: ForeignServer, *, way: str, client: str, form: str, told: Mapping[str, str], image: Path
) -> Program:
    """One run of quill_script.py, as a program like those of other languages."""
    protocol, http2 = WAYS[way]
    url = f"grpc://{told['grpc_address']}" if protocol == "grpc" else told["h2c_url" if http2 else "url"]
    command = [sys.executable, "quill_script.py", "--url", url, "--protocol", protocol]
    command += ["--client", client, "--form", form, *(["--http2"] if http2 else [])]
    # Without stubs a dict becomes protobuf by the server's reflection, or not at all.
    if form == "messages" or way not in server.reflects_over:
        command += ["--stubs", str(image)]
    impossible = {**server.impossible.get("*", {}), **server.impossible.get(way, {})}
    if (way, client) in _NO_DUPLEX:
        impossible["full_duplex"] = _NO_DUPLEX[way, client]
    for case in impossible:
        command += ["--without", case]
    return Program(
        ROOT, server.folder.name, f"{server.name} < {client}, {form}", command, (way,), CASES, {way: impossible}
    )
