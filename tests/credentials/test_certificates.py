"""Client certificates that are missing, foreign, expired, not yet valid, unknown, or known and not for this method."""

import http.client
import ssl

import grpc
import pytest

from credentials.conftest import GOOD, UNKNOWN, Served
from credentials.test_denials import DENIED, WAYS, bearer, request
from quill.server.tls import Tls
from support.authority import DAY, NOW, Authority
from support.endings import ending

ALICE = ("alice", ("URI:spiffe://prod/alice",))


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def served(authority, auth, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    cert, private = authority.issue().write(folder)
    identities = {"URI:spiffe://prod/alice": "alice", "CN:bob": "bob", "CN:carol": "carol"}
    tls = Tls(cert=cert, key=private, client_ca=authority.write(folder), identities=identities)
    with Served(auth=auth, tls=tls) as served:
        yield served


CERTIFICATES = {
    "none": (lambda authority: None, None),
    "of another authority": (lambda authority: Authority("test CA").issue(*ALICE), None),
    "expired": (lambda authority: authority.issue(*ALICE, first=NOW - 2 * DAY, last=NOW - DAY / 24), None),
    "not yet valid": (lambda authority: authority.issue(*ALICE, first=NOW + DAY / 2, last=NOW + DAY), None),
    "of a name that is not known": (
        lambda authority: authority.issue("mallory", ("URI:spiffe://prod/alice2",)),
        "unauthenticated",
    ),
    "of two principals": (lambda authority: authority.issue("bob", ALICE[1]), "unauthenticated"),
    "of bob, who may call something else": (lambda authority: authority.issue("bob", ()), "permission_denied"),
    "of carol, whose key is no right of her certificate": (
        lambda authority: authority.issue("carol", ()),
        "permission_denied",
    ),
}
"""A client's certificate, and how its calls end; None where there is not even a connection."""


def over_http(served, authority, client, folder, calls):
    """The code of each of several calls on one connection; None where there is no connection."""
    connection = http.client.HTTPSConnection(
        "localhost", int(served.http.rpartition(":")[2]), timeout=20, context=authority.ssl(folder, client)
    )
    codes = []
    try:
        for method, path, headers, body in calls:
            connection.request(method, path, body, dict(headers))
            reply = connection.getresponse()
            told = {name.lower(): value for name, value in reply.getheaders()}
            codes.append(ending(told, reply.read())[0])
    except (ssl.SSLError, ConnectionError, http.client.BadStatusLine):
        return None
    finally:
        connection.close()
    return codes


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CERTIFICATES)
def test_bad_certificates_are_denied_over_http(served, authority, tmp_path, name, way):
    make, code = CERTIFICATES[name]
    client = make(authority)
    served.counted.calls.clear()
    codes = over_http(
        served, authority, client, tmp_path, [request(way, path, []) for path in (*served.paths, *UNKNOWN)]
    )
    if code is None:
        assert codes is None
    else:
        assert len(codes) == len(served.paths) + len(UNKNOWN)
        assert set(codes) <= set(DENIED[code])
    assert not served.counted.calls


@pytest.mark.parametrize("name", CERTIFICATES)
def test_bad_certificates_are_denied_over_grpc(served, authority, name):
    make, code = CERTIFICATES[name]
    client = make(authority)
    served.counted.calls.clear()
    with grpc.secure_channel(served.server.grpc_address, authority.grpc(client)) as channel:
        for path in (*served.paths, *UNKNOWN):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"", timeout=20)
            if code is None:
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                break  # there is no connection for the others either
            assert caught.value.code().name.lower() == code, path
    assert not served.counted.calls


def test_a_good_certificate_reaches_every_handler_and_a_wrong_secret_beside_it_none(served, authority, tmp_path):
    client = authority.issue(*ALICE)
    own = [path for path in served.paths if "reflection" not in path]
    for headers, reached in (([], True), ([bearer(GOOD)], True), ([bearer("wrong")], False)):
        served.counted.calls.clear()
        over_http(served, authority, client, tmp_path, [request("gRPC-Web", path, headers) for path in own])
        with grpc.secure_channel(served.server.grpc_address, authority.grpc(client)) as channel:
            for path in own:
                list(channel.stream_stream(path)(iter([b""]), metadata=headers, timeout=20) if reached else [])
        assert set(served.counted.calls) == (set(own) if reached else set())
