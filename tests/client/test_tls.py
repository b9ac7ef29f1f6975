"""TLS of both clients over every protocol, with an authority made here: trust, identity, and each error."""

import ssl

import pytest

from client.tls_scene import SERVICE, Scene, loop_in_a_thread, refusal
from support.authority import DAY, NOW

ASKS = "; if it asks for a client certificate, give cert and key (quill.ClientTls, --cert and --key)"
STRANGE = "its certificate is signed by nobody who is trusted here: give its authority as ca (quill.ClientTls, --ca)"


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


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_server_whose_authority_is_trusted_is_called(scene, as_bytes):
    ca = scene.authority.pem if as_bytes else str(scene.authority.write(scene.folder))
    with scene.serving() as running:
        client = scene.client(running.url, ca=ca)
        assert client.call(SERVICE, "Say", b"") == b"anonymous"
        assert client.health_check() is True
        scene.let_go(running)
        assert client.stream(SERVICE, "Hang", b"") == [b"before", b"after"]


def test_an_authority_that_the_system_trusts_is_trusted(scene, monkeypatch):
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)  # gRPC's own word counts before the system's
    monkeypatch.setenv("SSL_CERT_FILE", str(scene.authority.write(scene.folder)))
    with scene.serving() as running:
        for client in (scene.client(running.url, ca=None), scene.drive(running.url, protocol=scene.protocol)):
            assert client.call(SERVICE, "Say", b"") == b"anonymous"


def test_names_are_verified_as_well_as_addresses(scene):
    with scene.serving(scene.authority.issue(names=("DNS:localhost",))) as running:
        client = scene.client(running.url.replace("127.0.0.1", "localhost"))
        assert client.call(SERVICE, "Say", b"") == b"anonymous"


def test_a_client_certificate_says_who_calls(scene):
    ca = scene.authority.write(scene.folder)
    with scene.serving(client_ca=ca, identities={"DNS:agent.prod": "agent", "*": "guest"}) as running:
        for names, principal in ((("DNS:agent.prod",), b"agent"), ((), b"guest")):
            cert, key = scene.authority.issue("someone", names).write(scene.folder, "client")
            assert scene.client(running.url, cert=cert, key=key).call(SERVICE, "Say", b"") == principal


def test_an_unknown_authority_is_named_as_such(scene):
    with scene.bare(scene.authority.issue()) as url:
        for ca in (scene.stranger.pem, None):
            assert refusal(scene.client(url, ca=ca)) == f"cannot reach {url.partition('://')[2]}: {STRANGE}"


@pytest.mark.parametrize("asked", ["127.0.0.1", "localhost"])
def test_a_certificate_for_another_name_is_told_with_both(scene, shell, asked):
    pair = scene.authority.issue(names=("DNS:elsewhere.example", "IP:10.0.0.1"))
    with scene.bare(pair) as url:
        message = refusal(scene.client(url.replace("127.0.0.1", asked)))
    assert f": its certificate is not for '{asked}'" in message
    assert message.endswith(": use a name that it has, or have one issued for this name")
    if shell == "sync" and scene.protocol != "grpc":  # the others do not tell the names
        assert ", only for elsewhere.example, 10.0.0.1: use" in message


def test_an_expired_certificate_is_told(scene):
    with scene.bare(scene.authority.issue(first=NOW - 2 * DAY, last=NOW - DAY)) as url:
        assert refusal(scene.client(url)).endswith(": its certificate has expired: the server needs a new one")


def test_a_certificate_that_is_not_valid_yet_is_told(scene):
    with scene.bare(scene.authority.issue(first=NOW + DAY, last=NOW + 2 * DAY)) as url:
        message = refusal(scene.client(url))
    assert message.endswith(": its certificate is not valid yet: compare the clocks of both machines")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_missing_client_certificate_is_thought_of(scene, version):
    """Where the server closes the connection without a word, as asyncio does."""
    with scene.bare(scene.authority.issue(), asks=True, version=version) as url:
        assert refusal(scene.client(url)).endswith(ASKS)


def test_a_quill_server_that_asks_for_a_certificate_refuses_who_has_none(scene):
    with scene.serving(client_ca=scene.authority.write(scene.folder)) as running:
        client = scene.client(running.url)
        assert refusal(client).endswith(ASKS)
        assert client.health_check() is False


def test_a_client_certificate_that_a_quill_server_does_not_take_is_named(scene):
    cert, key = scene.stranger.issue("someone", ()).write(scene.folder, "client")
    with scene.serving(client_ca=scene.authority.write(scene.folder)) as running:
        message = refusal(scene.client(running.url, cert=cert, key=key))
    assert message.endswith(f"; it may not take the client certificate {cert}")


def test_what_a_server_says_of_a_client_certificate_is_told(scene):
    cert, key = scene.stranger.issue("someone", ()).write(scene.folder, "client")
    with scene.alerting(ssl.TLSVersion.TLSv1_2) as url:
        message = refusal(scene.client(url, cert=cert, key=key))
        assert message.endswith(f": it refuses the client certificate {cert}: it does not know who signed it")
        assert refusal(scene.client(url)).endswith(
            ": it may ask for a client certificate: give cert and key (quill.ClientTls, --cert and --key)"
        )


def test_an_alert_after_the_handshake_is_understood(scene):
    """TLS 1.3: the client has sent its request before the server judges its certificate."""
    with scene.alerting(ssl.TLSVersion.TLSv1_3) as url:
        message = refusal(scene.client(url))
    assert message.endswith((" for a client certificate: give cert and key (quill.ClientTls, --cert and --key)", ASKS))


def test_tls_to_a_clear_text_port_is_told(scene, host):
    server = host.server
    port = (server.grpc_address if scene.protocol == "grpc" else server.http_url).rpartition(":")[2]
    clear = {"connect": "http", "grpc": "grpc", "grpc-web": "http"}[scene.protocol]
    message = refusal(scene.client(scene.url(port)))
    assert message == f"cannot reach 127.0.0.1:{port}: it speaks no TLS there; clear text is {clear}://"


def test_clear_text_to_a_tls_port_is_told(scene):
    secure = {"connect": "https", "grpc": "grpcs", "grpc-web": "https"}[scene.protocol]
    with scene.serving() as running:
        client = scene.drive(running.url.replace("s://", "://"), protocol=scene.protocol, max_attempts=1)
        assert refusal(client).endswith(f"; if it expects TLS, use {secure}://")


def test_grpc_to_the_http_port_is_told(loop, tmp_path, drive):
    scene = Scene(loop, "grpc", tmp_path, drive)
    with scene.serving() as running:
        assert refusal(scene.client(running.server.http_url)).endswith(": it speaks no gRPC")
