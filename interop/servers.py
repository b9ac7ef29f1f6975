"""The servers that the programs call: real ``quill serve`` processes, proxies before them, an origin for pages."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from programs import ROOT, Host, started

from quill.server.keys import new_secret
from quill.testing import ChaosProxy, Faults, Way

WAYS: Mapping[str, tuple[str, bool]] = {
    "grpc": ("grpc", False),
    "connect": ("connect", False),
    "connect-h2c": ("connect", True),
    "grpc-web": ("grpc-web", False),
    "grpc-web-h2c": ("grpc-web", True),
}
"""The protocol of a way, and whether its HTTP port speaks HTTP/2 in clear text."""
CUT_AFTER_BYTES = (3000, 5000)
"""How much of replies a connection lives, where connections are cut."""
_BACKEND = str(ROOT / "backend")
_START_S = 60
_LOOK_S = 0.05
_STOP_S = 20


@dataclass(frozen=True, slots=True)
class Serving:
    """One ``quill serve``, and the proxies that cut."""

    url: str
    address: str
    cut_url: str
    cut_address: str


@dataclass(frozen=True, slots=True)
class Servers:
    """All that programs are told."""

    http1: Serving
    http2: Serving
    key: str
    page_url: str

    def arguments(self, way: str, *, page: bool) -> list[str]:
        """What a program is given to run over a way; one with a page also where that is."""
        protocol, http2 = WAYS[way]
        server = self.http2 if http2 else self.http1
        told = {
            "--protocol": protocol,
            "--url": server.url,
            "--grpc-address": server.address,
            "--key": self.key,
            "--cut-url": server.cut_url,
            "--cut-address": server.cut_address,
        }
        if page:
            told["--page-url"] = self.page_url
        arguments = [text for pair in told.items() for text in pair]
        return [*arguments, "--http2"] if http2 else arguments


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    """Start them all; end them when the block is left."""
    with contextlib.ExitStack() as stack:
        keys, secret = stack.enter_context(_keys())
        page_url = stack.enter_context(_pages(ROOT / "node" / ".tools" / "page"))
        shared = ["--keys-file", str(keys), "--cors", page_url]
        yield Servers(
            stack.enter_context(_serving(*shared)),
            stack.enter_context(_serving("--http2", *shared)),
            secret,
            page_url,
        )


@contextlib.contextmanager
def hosted(host: Host) -> Iterator[Servers]:
    """A host with one port for everything; it ends when the block is left."""
    with contextlib.ExitStack() as stack:
        keys, secret = stack.enter_context(_keys())
        # No page calls it: any origin will do.
        more = {"INTEROP_KEYS_FILE": str(keys), "INTEROP_ORIGIN": "http://127.0.0.1:1", "PYTHONPATH": _BACKEND}
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [part.replace("{port}", str(port)) for part in host.command]
        process = stack.enter_context(started(command, host.folder, more))
        _wait_for_port(process, port)
        server = stack.enter_context(_cut({"http": f"http://127.0.0.1:{port}", "grpc": f"127.0.0.1:{port}"}))
        yield Servers(server, server, secret, "")


def _wait_for_port(process: subprocess.Popen[str], port: int) -> None:
    """Return when a process listens.

    Raises:
        TimeoutError: It does not within the time, or has ended.
    """
    until = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), _START_S):
            return
        time.sleep(_LOOK_S)
    raise TimeoutError(f"nothing listens on port {port}; the process ended with {process.poll()}")


@contextlib.contextmanager
def _keys() -> Iterator[tuple[Path, str]]:
    """A file of keys, and the secret of the one in it."""
    with tempfile.TemporaryDirectory(prefix="quill-interop-") as folder:
        secret, sha256 = new_secret()
        keys = Path(folder) / "keys.toml"
        keys.write_text(f'[[key]]\nname = "interop"\nsha256 = "{sha256}"\nallow = ["*"]\n', "utf-8")
        yield keys, secret


@contextlib.contextmanager
def _serving(*arguments: str) -> Iterator[Serving]:
    with _quill_serve(*arguments) as told, _cut(told) as serving:
        yield serving


@contextlib.contextmanager
def _cut(told: Mapping[str, str]) -> Iterator[Serving]:
    """A server with proxies before it."""
    with contextlib.ExitStack() as stack:
        cutting = Faults(down=Way(cut_after_bytes=CUT_AFTER_BYTES))
        proxies = [stack.enter_context(ChaosProxy(told[at], faults=cutting)) for at in ("http", "grpc")]
        yield Serving(told["http"], told["grpc"], proxies[0].url, proxies[1].address)


@contextlib.contextmanager
def _quill_serve(*arguments: str) -> Iterator[dict[str, str]]:
    """A ready server: what its first line says. Its standard error is ours."""
    command = [sys.executable, "-m", "quill", "serve", "--json", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(
        [
            *command,
            *("--backend", "interop", "--set", "backend_options.token_delay_ms=10"),
            *("--set", "quota.live_streams=3", "--compression", "--reflection"),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": _BACKEND},
    )
    try:
        yield json.loads(first_line(process, _START_S))
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate(timeout=_STOP_S)


def first_line(process: subprocess.Popen[str], timeout_s: float) -> str:
    """The first line of a process's standard output; empty when it ended without one.

    Raises:
        TimeoutError: It did not come within the time.
    """
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            raise TimeoutError(f"no line within {timeout_s:g} s")
        return process.stdout.readline()


@contextlib.contextmanager
def _pages(folder: Path) -> Iterator[str]:
    """The origin of a folder's files: another than the servers', so that a browser asks them with CORS."""
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="pages")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
