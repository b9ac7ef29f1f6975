"""The processes under test and the peers that hurt them, one of each for all cells."""

import http.client
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from bombs.http1_peer import HttpPeer
from bombs.victim import Peak
from support import http2
from support.http2 import GrpcPeer
from support.processes import first_line

ROOT = Path(__file__).resolve().parents[2]
MAX_LOG_BYTES = 16 * 1024
"""What hundreds of bombs may write into a log, in all."""


@contextmanager
def _victim(kind, folder):
    log = folder / f"{kind}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, ROOT / "tests/bombs/victim.py", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        )
    try:
        yield process, first_line(process)
        assert process.poll() is None, log.read_text()[-2000:]
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert log.stat().st_size < MAX_LOG_BYTES, log.read_text()[:2000]


class Served:
    """A server process."""

    def __init__(self, process, addresses):
        self.grpc, self.http = addresses["grpc"], addresses["http"]
        self.peak = Peak(process.pid)


@pytest.fixture(scope="session", params=["uvicorn HTTP/1.1", "granian h2c"])
def way(request):
    """The host of the HTTP port, and the version of HTTP."""
    return request.param


@pytest.fixture(scope="session")
def served(way, tmp_path_factory):
    with _victim(way.partition(" ")[0], tmp_path_factory.mktemp("served")) as (process, line):
        yield Served(process, json.loads(line))


@pytest.fixture(scope="session")
def send(way, served):
    """Sends a request as it is and tells the reply's headers and body."""
    if way.endswith("h2c"):
        yield lambda method, path, headers, body: http2.ask(served.http, path, headers, body, method)
        return
    connection = http.client.HTTPConnection(served.http, timeout=30)

    def send_http1(method, path, headers, body):
        connection.request(method, path, body, dict(headers))
        reply = connection.getresponse()
        return {name.lower(): value for name, value in reply.getheaders()}, reply.read()

    yield send_http1
    connection.close()


@pytest.fixture(scope="session")
def grpc_served(tmp_path_factory):
    with _victim("uvicorn", tmp_path_factory.mktemp("grpc")) as (process, line):
        yield Served(process, json.loads(line))


@pytest.fixture(scope="session")
def clients(tmp_path_factory):
    """Makes a call in the client process; see `Clients.do`."""
    with _victim("clients", tmp_path_factory.mktemp("clients")) as (process, line):
        assert line == "ready\n"

        def do(*command):
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            return json.loads(first_line(process))

        yield do


@pytest.fixture(scope="session")
def http_peer():
    with HttpPeer() as peer:
        yield peer


@pytest.fixture(scope="session")
def grpc_peer():
    with GrpcPeer() as peer:
        yield peer
