"""Servers of every service that Quill has, in a thread, whose handlers count: whoever is denied must not be counted."""

import asyncio
import collections
import datetime as dt
import hashlib
import http.client
import threading

import grpc
import pytest

from quill.server.auth import Auth
from quill.server.server import Server
from quill.wire.descriptors import find_method
from support import http2, probe

LIMIT_S = 20
GOOD, BOB, OLD, FOREIGN = "good-secret-1f", "bobs-secret-2e", "expired-secret-3d", "secret-of-another-server-4c"
ALICE, KNOWN_ELSEWHERE = "alice", "carol"
OWN = ("inference.v1.LLMService", "inference.v1.TensorService", probe.SERVICE)
BOBS = "other.v1.Service/*"
"""What bob may call: nothing of what is here."""


def sha256(secret):
    return hashlib.sha256(secret.encode()).hexdigest()


def key(name, secret, allow, expires=""):
    """An entry of the keys file."""
    expires = f"expires = {expires}\n" if expires else ""
    return f'[[key]]\nname = "{name}"\nsha256 = "{sha256(secret)}"\nallow = {allow}\n{expires}'


class Counted:
    """Handlers for every method of a service, which take and give empty messages and count their calls."""

    def __init__(self):
        self.calls = collections.Counter()

    def register(self, server, service):
        descriptor = find_method(
            service, "Unary" if service == probe.SERVICE else _a_method(service)
        ).containing_service
        handlers = {}
        for method in descriptor.methods:
            kind = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
            make = getattr(grpc, f"{'_'.join(kind)}_rpc_method_handler")
            handlers[method.name] = make(self._behaviour(f"/{service}/{method.name}", *kind))
        server.add_registered_method_handlers(service, handlers)
        return [f"/{service}/{method.name}" for method in descriptor.methods]

    def _behaviour(self, path, reads, writes):
        async def note(requests):
            self.calls[path] += 1
            if reads == "stream":
                async for _ in requests:
                    pass

        async def one(requests, context):
            await note(requests)
            return b""

        async def several(requests, context):
            await note(requests)
            yield b""

        return several if writes == "stream" else one


def _a_method(service):
    return {"LLMService": "Generate", "TensorService": "Infer"}[service.rpartition(".")[2]]


class Served:
    """A server on a loop of its own."""

    def __init__(self, **options):
        self.counted = Counted()
        self.paths = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._options = options

    def __enter__(self):
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, *_):
        self._run(self.server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.close()

    async def _start(self):
        self.server = Server("127.0.0.1:0", "127.0.0.1:0", reflection=True, **self._options)
        for service in OWN:
            self.paths += self.counted.register(self.server, service)
        await self.server.start()
        told = set(self.server._registry.services)
        assert told == {*OWN, *REFLECTION, "grpc.health.v1.Health"}, "a service that this table does not know"
        self.paths += [f"/{service}/ServerReflectionInfo" for service in REFLECTION]
        self.http = self.server.http_url.partition("://")[2]

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT_S)


REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
UNKNOWN = (f"/{probe.SERVICE}/Nothing", "/no.such.v1.Service/Method", "/grpc.health.v1.HealthX/Check")


@pytest.fixture(scope="session")
def auth(tmp_path_factory):
    path = tmp_path_factory.mktemp("auth") / "keys.toml"
    yesterday = (dt.datetime.now(dt.UTC) - dt.timedelta(days=1)).date()
    path.write_text(
        key(ALICE, GOOD, ["*"])
        + key("bob", BOB, [BOBS])
        + key(KNOWN_ELSEWHERE, OLD, ["*"], yesterday)
        + f'[[identity]]\nname = "alice"\nallow = ["*"]\n[[identity]]\nname = "bob"\nallow = ["{BOBS}"]\n'
    )
    return Auth(path)


@pytest.fixture(scope="session", params=["HTTP/1.1", "h2c"])
def version(request):
    return request.param


@pytest.fixture(scope="session")
def served(version, auth):
    with Served(auth=auth, http2=version == "h2c") as served:
        yield served


@pytest.fixture(scope="session")
def send(version, served):
    """Sends a request over HTTP as it is and tells the reply's headers and body."""
    if version == "h2c":
        yield lambda method, path, headers, body: http2.ask(served.http, path, headers, body, method)
        return
    connection = http.client.HTTPConnection(served.http, timeout=LIMIT_S)

    def send_http1(method, path, headers, body):
        connection.putrequest(method, path)
        for name, value in [*headers, ("content-length", str(len(body)))]:
            connection.putheader(name, value)
        connection.endheaders(body)
        reply = connection.getresponse()
        return {name.lower(): value for name, value in reply.getheaders()}, reply.read()

    yield send_http1
    connection.close()
