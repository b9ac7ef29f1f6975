"""TLS on both ports, driven by grpcio, the ssl module, httpcore and curl, with an authority made here."""

import asyncio
import ssl
import subprocess

import grpc
import grpc.aio
import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import InvalidUsage
from quill.pem import validity
from quill.server.tls import Tls, TlsFiles
from support.authority import DAY, NOW, Authority
from support.http1 import Connection, ask, enveloped, post
from support.probe import STREAM, UNARY, Answer, Ask, Stub, outcome, serving

LIMIT_S = 30


async def echo(request, context):
    return Answer(text=request.text)


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def files(authority, tmp_path):
    """A server's certificate and key: the keyword arguments of Tls."""
    cert, key = authority.issue().write(tmp_path)
    return {"cert": cert, "key": key}


def serial(pem):
    return x509.load_pem_x509_certificate(pem).serial_number


async def served_serial(server, context):
    """The serial number of the certificate that the HTTP port shows to a new connection."""
    async with await Connection.open(server.http_url, context) as connection:
        der = connection.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).serial_number


async def grpc_serial(server, authority, client=None):
    """The same of the gRPC port, by the ssl module: a handshake is all it takes."""
    context = authority
    if isinstance(authority, Authority):
        context = authority.ssl()
    context.set_alpn_protocols(["h2"])
    async with await Connection.open("http://" + server.grpc_address, context) as connection:
        der = connection.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).serial_number


async def until(condition):
    """Wait until an asynchronous condition holds: the files are looked at once a second."""
    async with asyncio.timeout(LIMIT_S):
        while not await condition():
            await asyncio.sleep(0.1)


async def test_both_ports_speak_tls(authority, files):
    async with (
        serving(tls=Tls(**files), unary=echo) as server,
        Stub(server.grpc_address, credentials=authority.grpc()) as stub,
    ):
        assert server.http_url.startswith("https://")
        assert (await stub.unary(Ask(text="hi"))).text == "hi"
        reply = await post(server.http_url, UNARY, "application/json", b'{"text":"hi"}', tls=authority.ssl())
        assert reply.json() == {"text": "hi"}


async def test_clear_text_gets_nowhere(files):
    async with serving(tls=Tls(**files), unary=echo) as server, Stub(server.grpc_address) as stub:
        assert (await outcome(stub.unary(Ask(), timeout=LIMIT_S))).code() is grpc.StatusCode.UNAVAILABLE
        async with await Connection.open(server.http_url.replace("https", "http")) as connection:
            await connection.ask("GET", "/healthz")
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await connection.reply()


def test_httpcore_and_curl_are_served(authority, files, tmp_path):
    ca = authority.write(tmp_path)

    async def ask_both():
        async with serving(tls=Tls(**files), unary=echo) as server:
            url = server.http_url + "/healthz"
            return await asyncio.to_thread(by_httpcore, url), await asyncio.to_thread(by_curl, url)

    def by_httpcore(url):
        with httpcore.ConnectionPool(ssl_context=authority.ssl()) as pool:
            return pool.request("GET", url).status

    def by_curl(url):
        command = ["curl", "--silent", "--show-error", "--max-time", "20", "--cacert", ca, "--tlsv1.2", url]
        return subprocess.run(command, capture_output=True, check=True).stdout

    assert asyncio.run(ask_both()) == (200, b'{"status": "SERVING"}')


async def test_each_port_names_its_protocol_by_alpn(authority, files):
    async with serving(tls=Tls(**files), unary=echo) as server:
        for address, wanted in ((server.http_url, "http/1.1"), ("http://" + server.grpc_address, "h2")):
            context = authority.ssl()
            context.set_alpn_protocols(["h2", "http/1.1"])
            async with await Connection.open(address, context) as connection:
                assert connection.writer.get_extra_info("ssl_object").selected_alpn_protocol() == wanted


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_tls_1_1_is_refused_and_1_2_taken(authority, files):
    async with serving(tls=Tls(**files), unary=echo) as server:
        for address in (server.http_url, "http://" + server.grpc_address):
            for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2):
                context = authority.ssl()
                context.set_ciphers("DEFAULT:@SECLEVEL=0")
                context.set_alpn_protocols(["h2"] if address != server.http_url else ["http/1.1"])
                context.minimum_version = ssl.TLSVersion.TLSv1_1
                context.maximum_version = version
                if version is ssl.TLSVersion.TLSv1_2:
                    async with await Connection.open(address, context) as connection:
                        assert connection.writer.get_extra_info("ssl_object").version() == "TLSv1.2"
                else:
                    with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
                        await Connection.open(address, context)
                    # The server's refusal, with an alert or without, and not one of the client's own.
                    assert isinstance(caught.value, ConnectionError) or "ALERT" in str(caught.value).upper()


async def test_a_client_refuses_a_name_that_the_certificate_does_not_have(authority, tmp_path):
    cert, key = authority.issue(names=("DNS:elsewhere.example",)).write(tmp_path)
    async with (
        serving(tls=Tls(cert=cert, key=key), unary=echo) as server,
        Stub(server.grpc_address, credentials=authority.grpc()) as stub,
    ):
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            await Connection.open(server.http_url, authority.ssl())
        assert (await outcome(stub.unary(Ask(), timeout=LIMIT_S))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_refuses_an_authority_that_it_does_not_know(files):
    stranger = Authority()
    async with (
        serving(tls=Tls(**files), unary=echo) as server,
        Stub(server.grpc_address, credentials=stranger.grpc()) as stub,
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            await Connection.open(server.http_url, stranger.ssl())
        assert (await outcome(stub.unary(Ask(), timeout=LIMIT_S))).code() is grpc.StatusCode.UNAVAILABLE


async def test_connections_without_a_client_certificate_are_refused_where_one_is_asked_for(authority, files, tmp_path):
    tls = Tls(**files, client_ca=authority.write(tmp_path))
    theirs = Authority("another CA").issue("alice", ())
    late = authority.issue("alice", (), NOW - 2 * DAY, NOW - DAY)
    good = authority.issue("alice", ())
    async with serving(tls=tls, unary=echo) as server:
        for client, fits in ((None, False), (theirs, False), (late, False), (good, True)):
            context = authority.ssl(tmp_path, client)
            async with Stub(server.grpc_address, credentials=authority.grpc(client)) as stub:
                reached = await outcome(stub.unary(Ask(text="hi"), timeout=LIMIT_S))
            if fits:
                assert reached.text == "hi"
                assert (await ask(server.http_url, "GET", "/healthz", tls=context)).status == 200
            else:
                assert reached.code() is grpc.StatusCode.UNAVAILABLE
                with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                    await ask(server.http_url, "GET", "/healthz", tls=context)


async def test_new_files_serve_new_connections_and_old_streams_live_on(authority, files, tmp_path):
    going = asyncio.Event()

    async def stream(request, context):
        yield Answer(text="before")
        await going.wait()
        yield Answer(text="after")

    context = authority.ssl()
    async with (
        serving(tls=Tls(**files), stream=stream, unary=echo) as server,
        Stub(server.grpc_address, credentials=authority.grpc()) as stub,
        await Connection.open(server.http_url, context) as connection,
    ):
        old = serial(files["cert"].read_bytes())
        assert (await served_serial(server, context), await grpc_serial(server, authority)) == (old, old)
        call = stub.stream(Ask())
        assert (await call.read()).text == "before"
        await connection.ask("POST", STREAM, enveloped(b""), [("content-type", "application/connect+proto")])
        await connection.head()
        await connection.chunk()

        renewed = authority.issue()
        renewed.write(tmp_path)

        async def both_are_new():
            new = serial(renewed.cert)
            return (await served_serial(server, context), await grpc_serial(server, authority)) == (new, new)

        await until(both_are_new)
        going.set()
        assert (await call.read()).text == "after"
        assert await call.read() is grpc.aio.EOF
        assert await connection.chunk() == enveloped(Answer(text="after").SerializeToString())


async def test_broken_new_files_keep_the_old_certificate_and_say_so_in_one_line(authority, files, caplog):
    context = authority.ssl()
    old = serial(files["cert"].read_bytes())
    async with serving(tls=Tls(**files), unary=echo) as server:
        files["key"].write_bytes(authority.issue().key)

        async def was_noticed():
            assert await served_serial(server, context) == old
            assert await grpc_serial(server, authority) == old
            return bool(caplog.records)

        await until(was_noticed)
        for _ in range(15):
            await was_noticed()
            await asyncio.sleep(0.1)
    (record,) = [record for record in caplog.records if record.name == "quill.server"]
    assert record.exc_info is None
    assert f"the TLS key {files['key']} is not that of the certificate {files['cert']}" in record.message
    assert "stays in use" in record.message


async def test_a_new_client_authority_takes_the_place_of_the_old_one(authority, files, tmp_path):
    second = Authority("second")
    ca = authority.write(tmp_path, "clients")
    first_client, second_client = authority.issue("a", ()), second.issue("a", ())
    async with serving(tls=Tls(**files, client_ca=ca), unary=echo) as server:

        async def reach(client):
            context = authority.ssl(tmp_path, client)
            async with Stub(
                server.grpc_address, (("grpc.use_local_subchannel_pool", 1),), authority.grpc(client)
            ) as stub:
                by_grpc = not isinstance(await outcome(stub.unary(Ask(), timeout=LIMIT_S)), Exception)
            try:
                by_http = (await ask(server.http_url, "GET", "/healthz", tls=context)).status == 200
            except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
                by_http = False
            return by_grpc, by_http

        assert (await reach(first_client), await reach(second_client)) == ((True, True), (False, False))
        ca.write_bytes(second.pem)

        async def only_the_second():
            return (await reach(first_client), await reach(second_client)) == ((False, False), (True, True))

        await until(only_the_second)


def missing_cert(files, _authority):
    files["cert"].unlink()
    return f"certificate {files['cert']}: No such file"


def missing_key(files, _authority):
    files["key"].unlink()
    return f"key {files['key']}: No such file"


def other_key(files, authority):
    files["key"].write_bytes(authority.issue().key)
    return f"the TLS key {files['key']} is not that of the certificate {files['cert']}"


def swapped(files, _authority):
    files["cert"], files["key"] = files["key"], files["cert"]
    return "no PEM file of a certificate"


def damaged(files, _authority):
    files["cert"].write_text(files["cert"].read_text().replace("M", "!", 1))
    return "damaged"


def passphrase(files, _authority):
    key = serialization.load_pem_private_key(files["key"].read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"open sesame")
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files["key"].write_bytes(key.private_bytes(*form, encryption))
    return "passphrase"


def expired(files, authority):
    files["cert"].write_bytes(authority.issue(first=NOW - 2 * DAY, last=NOW - DAY).cert)
    return f"expired at {NOW - DAY:%Y-%m-%d %H:%M:%S} UTC"


def too_early(files, authority):
    files["cert"].write_bytes(authority.issue(first=NOW + DAY, last=NOW + 2 * DAY).cert)
    return f"not valid before {NOW + DAY:%Y-%m-%d %H:%M:%S} UTC"


def bad_client_ca(files, _authority):
    files["client_ca"] = files["cert"].with_name("ca")
    files["client_ca"].write_text("nothing")
    return f"client CA {files['client_ca']} is no PEM file"


@pytest.mark.parametrize(
    "spoil",
    [missing_cert, missing_key, other_key, swapped, damaged, passphrase, expired, too_early, bad_client_ca],
)
def test_files_that_cannot_be_used_are_said_at_the_start(authority, files, spoil):
    words = spoil(files, authority)
    with pytest.raises(InvalidUsage) as caught:
        TlsFiles(Tls(**files))
    assert words in str(caught.value)
    assert "BEGIN" not in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(first=st.integers(-7_000, 40_000), days=st.integers(1, 20_000))
def test_validity_is_read_as_the_cryptography_package_reads_it(first, days):
    authority = Authority()
    start = NOW.replace(year=1970) + first * DAY
    pair = authority.issue(first=start, last=start + days * DAY)
    loaded = x509.load_pem_x509_certificate(pair.cert)
    assert validity(pair.cert.decode()) == (loaded.not_valid_before_utc, loaded.not_valid_after_utc)


@pytest.mark.parametrize("identities", [{"alice": "a"}, {"CN:": "a"}, {"dns:x": "a"}])
def test_identities_name_their_kind(files, authority, tmp_path, identities):
    with pytest.raises(InvalidUsage, match="kind"):
        Tls(**files, client_ca=authority.write(tmp_path), identities=identities)
    with pytest.raises(InvalidUsage, match="client_ca"):
        Tls(**files, identities=identities)
