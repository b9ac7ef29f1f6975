"""Certificates that change while clients run: on the server, and the client's own."""

import asyncio
import contextlib
import gc
import threading

import pytest

from client.harness import DRIVERS, LIMIT_S
from client.tls_scene import SERVICE, Scene, loop_in_a_thread, refusal, serial, wait_until
from quill import Cancelled, Unavailable
from support.authority import Authority


@pytest.fixture(scope="module")
def loop():
    with loop_in_a_thread() as loop:
        yield loop


@pytest.fixture(params=["connect", "grpc", "grpc-web"])
def protocol(request):
    return request.param


@pytest.fixture
def scene(loop, protocol, tmp_path, drive):
    return Scene(loop, protocol, tmp_path, drive)


class Streaming(threading.Thread):
    """A stream that is read in a thread of its own."""

    def __init__(self, client):
        self.received = []
        super().__init__(target=client.stream, args=(SERVICE, "Hang", b""), kwargs={"received": self.received})
        self.start()


def test_a_server_renews_its_certificate_under_live_streams(scene):
    """The running streams go on to their end, and new connections see the new certificate, of a new authority even."""
    second, first_pair = Authority("second CA"), scene.authority.issue()
    with scene.serving(first_pair) as running:
        streams = [Streaming(scene.client(running.url)) for _ in range(3)]
        scene.loop.until(lambda: all(stream.received == [b"before"] for stream in streams))
        assert scene.shown_serial(running.url, scene.authority) == serial(first_pair)

        renewed = second.issue()
        renewed.write(scene.folder)
        wait_until(lambda: scene.shown_serial(running.url, second) == serial(renewed))
        assert scene.client(running.url, ca=second.pem).call(SERVICE, "Say", b"") == b"anonymous"
        assert "signed by nobody who is trusted here" in refusal(scene.client(running.url))

        assert [stream.received for stream in streams] == [[b"before"]] * 3
        scene.let_go(running)
        for stream in streams:
            stream.join(LIMIT_S)
        assert [stream.received for stream in streams] == [[b"before", b"after"]] * 3


def caller(client):
    """Who the server takes a client for; None where it does not take it."""
    try:
        return client.call(SERVICE, "Say", b"").decode()
    except Unavailable:
        return None


@pytest.fixture(params=[f"{shell}-{protocol}" for shell in DRIVERS for protocol in ("connect", "grpc", "grpc-web")])
def renewing(request, loop, tmp_path):
    """Of every kind of client."""
    shell, _, protocol = request.param.partition("-")
    clients = []

    def drive(*arguments, **options):
        clients.append(DRIVERS[shell](*arguments, **options))
        return clients[-1]

    yield Scene(loop, protocol, tmp_path, drive)
    for client in clients:
        client.close()


def test_a_client_shows_its_renewed_certificate_on_new_connections(renewing, caplog):
    """Files that do not fit each other, as between two writes, change nothing and are logged."""
    scene, authority = renewing, renewing.authority
    with mutual(scene) as (_, client):
        cert, key = scene.folder / "client.pem", scene.folder / "client.key"
        assert caller(client) == "first"
        renewed = authority.issue("second", ())
        cert.write_bytes(renewed.cert)
        wait_until(lambda: drop_connections(client) and caller(client) == "first" and client_log(caplog))
        assert client_log(caplog) == [
            f"the TLS key {key} is not that of the certificate {cert}; what was loaded before stays in use"
        ]
        key.write_bytes(renewed.key)
        wait_until(lambda: drop_connections(client) and caller(client) == "second")


@pytest.mark.parametrize("protocol", ["connect", "grpc"], indirect=True)
@pytest.mark.parametrize("shell", ["sync"], indirect=True)
def test_streams_go_on_while_the_client_renews_its_certificate(scene):
    with mutual(scene) as (running, client):
        stream = Streaming(client)
        scene.loop.until(lambda: stream.received == [b"before"])
        scene.authority.issue("second", ()).write(scene.folder, "client")
        wait_until(lambda: drop_connections(client) and caller(client) == "second")
        scene.let_go(running)
        stream.join(LIMIT_S)
        assert stream.received == [b"before", b"after"]


@pytest.mark.parametrize("protocol", ["grpc"], indirect=True)
@pytest.mark.parametrize("shell", ["async"], indirect=True)
def test_streams_of_an_event_loop_go_on_while_the_client_renews_its_certificate(scene):
    async def renew(client):
        async with client.stream(SERVICE, "Hang", b"") as stream:
            assert await anext(stream) == b"before"
            scene.authority.issue("second", ()).write(scene.folder, "client")
            async with asyncio.timeout(LIMIT_S):
                while await client.call(SERVICE, "Say", b"") != b"second":
                    await asyncio.sleep(0.1)
            gc.collect()  # nobody but the stream holds the old channel now
            scene.let_go(running)
            assert await anext(stream) == b"after"

    with mutual(scene) as (running, driver):
        driver._runner.run(renew(driver.client))


@pytest.mark.parametrize("protocol", ["grpc"], indirect=True)
@pytest.mark.parametrize("shell", ["sync"], indirect=True)
def test_closing_the_client_ends_streams_under_an_old_certificate(scene):
    with mutual(scene) as (_, client):
        stream = client.client.stream(SERVICE, "Hang", b"")
        assert next(stream) == b"before"
        scene.authority.issue("second", ()).write(scene.folder, "client")
        wait_until(lambda: caller(client) == "second")
        client.close()
        with pytest.raises(Cancelled):
            next(stream)


@contextlib.contextmanager
def mutual(scene):
    """A server that knows two clients, and a client that is the first."""
    identities = {"CN:first": "first", "CN:second": "second"}
    with scene.serving(client_ca=scene.authority.write(scene.folder), identities=identities) as running:
        cert, key = scene.authority.issue("first", ()).write(scene.folder, "client")
        yield running, scene.client(running.url, cert=cert, key=key)


def client_log(caplog):
    return [
        record.message for record in caplog.records if record.name == "quill.client" and record.levelname == "ERROR"
    ]


def drop_connections(client):
    """Close the idle connections of an HTTP client, which would serve further calls."""
    blocking, asynchronous = getattr(client.client, "_homes", {}), getattr(client.client, "_home", None)
    for home in (*blocking.values(), *([asynchronous] if asynchronous else [])):
        for _, connection in list(getattr(getattr(home.wire, "_pool", None), "_idle", ())):
            connection.close()
        for connection in getattr(getattr(home.wire, "_http", None), "_idle", ()):
            connection.close()
    return True
