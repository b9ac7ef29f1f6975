"""gRPC over several servers, which are real processes: calls spread, and go where somebody is well."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import pytest

from client.harness import LIMIT_S
from client.named_server import METHOD, SERVICE
from client.tls_scene import Scene, loop_in_a_thread
from quill import ClientTls, Unavailable
from quill.server.server import Server
from support.processes import first_line

ROUND = 30
"""Calls that are counted together."""


class Named:
    """A server process that answers with its name."""

    def __init__(self, name, address="127.0.0.1:0"):
        self.name = name
        script = Path(__file__).with_name("named_server.py")
        command = [sys.executable, str(script), address, name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self):
        self.address = first_line(self._process).strip()
        return self

    def drain(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert first_line(self._process) == "drained\n"

    def kill(self):
        self._process.kill()
        self._process.communicate(timeout=LIMIT_S)

    def come_back(self):
        return Named(self.name, self.address).ready()


@pytest.fixture
def servers():
    """Three server processes by name."""
    servers = {name: Named(name) for name in "abc"}
    try:
        for server in servers.values():
            server.ready()
        yield servers
    finally:
        for server in servers.values():
            server.kill()


def call(client):
    return client.call(SERVICE, METHOD, b"").decode()


def spread(client):
    """Who answers the calls of one round; each must succeed."""
    return Counter(call(client) for _ in range(ROUND))


def until_answered_by(client, names, *, may_fail=False):
    """Call until exactly these servers answer a round; calls that are on their way to a killed server may fail."""
    deadline = time.monotonic() + LIMIT_S
    answers = None
    while answers != set(names):
        assert time.monotonic() < deadline, answers
        try:
            answers = set(spread(client))
        except Unavailable:
            assert may_fail


def test_calls_follow_the_servers_that_are_well(servers, drive):
    """Of three one drains, without a call that fails, and one is killed; both come back."""
    client = drive("grpc+ipv4://" + ",".join(server.address for server in servers.values()))
    until_answered_by(client, "abc")
    counted = spread(client)
    assert max(counted.values()) - min(counted.values()) <= 1  # they take turns

    servers["a"].drain()
    until_answered_by(client, "bc")
    for _ in range(3):
        assert set(spread(client)) == {"b", "c"}

    servers["b"].kill()
    until_answered_by(client, "c", may_fail=True)
    assert client.health_check() is True

    servers["a"].kill()
    servers["a"], servers["b"] = servers["a"].come_back(), servers["b"].come_back()
    until_answered_by(client, "abc")


def test_when_no_server_is_well_the_error_says_so(servers, drive):
    places = ",".join(server.address for server in servers.values())
    client = drive(f"grpc+ipv4://{places}")
    until_answered_by(client, "abc")
    for server in servers.values():
        server.drain()
    until_refused(client, f"cannot reach {places}: no server says of itself that it is well (grpc.health.v1)")
    for server in servers.values():
        server.kill()
    until_refused(client, f"cannot reach {places}: connection refused")


def until_refused(client, message):
    """Call until a call fails with this message."""
    deadline = time.monotonic() + LIMIT_S
    told = None
    while told != message:
        assert time.monotonic() < deadline, told
        try:
            call(client)
        except Unavailable as error:
            told = error.message


@pytest.fixture(scope="module")
def loop():
    with loop_in_a_thread() as loop:
        yield loop


def test_a_name_is_resolved(loop, drive):
    """The name is localhost, which every machine resolves."""

    async def start():
        async def who(request, context):
            return b"here"

        server = Server("localhost:0", None)
        handlers = {METHOD: grpc.unary_unary_rpc_method_handler(who)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        await server.start()
        return server

    server = loop.run(start())
    try:
        client = drive(f"grpc+dns://localhost:{server.grpc_address.rpartition(':')[2]}")
        assert call(client) == "here"
        assert client.health_check() is True
    finally:
        loop.run(server.stop(None))


def test_a_name_over_tls_is_verified(loop, tmp_path, drive):
    scene = Scene(loop, "grpc", tmp_path, drive)
    with scene.serving(scene.authority.issue(names=("DNS:localhost",))) as running:
        url = running.url.replace("grpcs://127.0.0.1", "grpcs+dns://localhost")
        client = drive(url, tls=ClientTls(ca=scene.authority.pem))
        assert client.call("who.v1.Who", "Say", b"") == b"anonymous"


def test_servers_without_a_health_service_count_as_well(loop, drive):
    async def start():
        async def who(request, context):
            return b"plain"

        server = grpc.aio.server()
        handlers = {METHOD: grpc.unary_unary_rpc_method_handler(who)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = loop.run(start())
    try:
        assert call(drive(f"grpc+ipv4://127.0.0.1:{port}")) == "plain"
    finally:
        loop.run(server.stop(None))


def test_a_name_that_is_not_there_is_unavailable(drive):
    with pytest.raises(Unavailable) as caught:
        call(drive("grpc+dns://no-such-host.invalid:80"))
    assert caught.value.message == "cannot reach no-such-host.invalid:80: the name does not resolve"
