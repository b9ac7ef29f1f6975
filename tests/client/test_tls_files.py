"""What a client is told of its certificates: the files, and what is wrong with them."""

import ssl

import pytest

from quill import ClientTls, InvalidType, InvalidUsage, QuillClient
from quill.client.tls import system_roots, tls_context
from support.authority import DAY, NOW, Authority


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(params=["connect", "grpc", "grpc-web"])
def protocol(request):
    return request.param


@pytest.mark.parametrize("url", ["http://localhost:1", "grpc://localhost:1", "unix:/q", "grpc+dns://h:1"])
def test_tls_for_clear_text_is_refused_when_the_client_is_made(url):
    with pytest.raises(InvalidUsage, match="clear text"):
        QuillClient(url, tls=ClientTls())


def test_tls_is_of_its_own_type():
    with pytest.raises(InvalidType, match="ClientTls, got bool"):
        QuillClient("https://localhost", tls=True)
    for wrong in ({"ca": 7}, {"cert": b"", "key": "k"}, {"cert": "c", "key": 7}):
        with pytest.raises(InvalidType):
            ClientTls(**wrong)


@pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
def test_a_certificate_and_its_key_belong_together(given, missing):
    with pytest.raises(InvalidUsage, match=f"has {given} and no {missing}"):
        ClientTls(**{given: "a.pem"})


def test_pem_text_is_not_taken_for_a_path(authority):
    with pytest.raises(InvalidUsage, match="as bytes"):
        ClientTls(ca=authority.pem.decode())


def test_nothing_turns_verification_off():
    assert set(ClientTls.__dataclass_fields__) == {"ca", "cert", "key"}
    context = tls_context(ClientTls())
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def missing_ca(folder, authority, given):
    given["ca"] = folder / "none.pem"
    return f"cannot read the TLS CA {folder / 'none.pem'}: No such file"


def empty_ca(folder, authority, given):
    given["ca"] = folder / "empty.pem"
    given["ca"].write_text("")
    return "empty.pem is no PEM file of a CA"


def damaged_ca(folder, authority, given):
    given["ca"] = folder / "damaged.pem"
    given["ca"].write_bytes(authority.pem.replace(b"M", b"!", 1))
    return "damaged.pem is damaged"


def damaged_bytes(folder, authority, given):
    given["ca"] = authority.pem.replace(b"M", b"!", 1)
    return "CA given as bytes is damaged"


def empty_bytes(folder, authority, given):
    given["ca"] = b""
    return "CA given as bytes is no PEM"


def missing_key(folder, authority, given):
    given["key"].unlink()
    return f"cannot read the TLS key {given['key']}: No such file"


def other_key(folder, authority, given):
    given["key"].write_bytes(authority.issue().key)
    return f"the TLS key {given['key']} is not that of the certificate {given['cert']}"


def swapped(folder, authority, given):
    given["cert"], given["key"] = given["key"], given["cert"]
    return f"the TLS certificate {given['cert']} is no PEM file of a certificate"


def expired(folder, authority, given):
    given["cert"].write_bytes(authority.issue(first=NOW - 2 * DAY, last=NOW - DAY).cert)
    return f"{given['cert']} expired at {NOW - DAY:%Y-%m-%d %H:%M:%S} UTC"


def folder_as_cert(folder, authority, given):
    given["cert"] = folder
    return f"cannot read the TLS certificate {folder}: Is a directory"


@pytest.mark.parametrize(
    "spoil",
    [
        *(missing_ca, empty_ca, damaged_ca, damaged_bytes, empty_bytes),
        *(missing_key, other_key, swapped, expired, folder_as_cert),
    ],
)
def test_files_that_cannot_be_used_are_said_at_the_first_call(authority, tmp_path, drive, protocol, spoil):
    cert, key = authority.issue("me", ()).write(tmp_path, "client")
    secret = key.read_text().splitlines()[1]
    given = {"ca": authority.pem, "cert": cert, "key": key}
    words = spoil(tmp_path, authority, given)
    url = f"{'grpcs' if protocol == 'grpc' else 'https'}://127.0.0.1:1"
    client = drive(url, protocol=protocol, tls=ClientTls(**given))
    for call in (client.call, client.stream):
        with pytest.raises(InvalidUsage) as caught:
            call("a.B", "C", b"")
        assert words in str(caught.value)
        assert "BEGIN" not in str(caught.value)
        assert secret not in repr(caught.value)


def test_the_authorities_of_the_system_are_those_of_openssl(authority, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path)))
    assert system_roots() == authority.pem + b"\n"
    assert len(tls_context(None).get_ca_certs()) == 1
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    hashed = tmp_path / "hashed"
    hashed.mkdir()
    (hashed / "0a1b2c3d.0").write_bytes(authority.pem)
    (hashed / "0a1b2c3d.1").symlink_to(tmp_path / "gone")
    (hashed / "notes.txt").write_text("not this")
    monkeypatch.setenv("SSL_CERT_DIR", str(hashed))
    assert system_roots() == authority.pem + b"\n"
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "no folder"))
    assert system_roots() is None
