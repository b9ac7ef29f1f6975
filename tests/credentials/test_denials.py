"""Secrets that are missing, wrong, malformed, expired, foreign or doubled: denied on every protocol and method.

And whoever is denied does not reach a handler; with the good secret the same request does.
"""

import datetime as dt
import time

import pytest

from credentials.conftest import BOB, FOREIGN, GOOD, OLD, UNKNOWN, Served, key, sha256
from quill.server.auth import Auth
from support.endings import ending
from support.http2 import ask_grpc, enveloped

DENIED = {"unauthenticated": ("unauthenticated", "16"), "permission_denied": ("permission_denied", "7")}


def bearer(secret):
    return ("authorization", f"Bearer {secret}")


def api_key(secret):
    return ("x-api-key", secret)


_EACH = {
    "wrong": lambda make: [make("wrong")],
    "almost right": lambda make: [make(GOOD[:-1])],
    "longer": lambda make: [make(GOOD + "x")],
    "its hash": lambda make: [make(sha256(GOOD))],
    "expired": lambda make: [make(OLD)],
    "of another server": lambda make: [make(FOREIGN)],
    "twice": lambda make: [make(GOOD), make(GOOD)],
    "wrong, then good": lambda make: [make("wrong"), make(GOOD)],
}
STRANGERS = {
    **{f"bearer {name}": make(bearer) for name, make in _EACH.items()},
    **{f"API key {name}": make(api_key) for name, make in _EACH.items()},
    "nothing": [],
    "both good": [bearer(GOOD), api_key(GOOD)],
    "two different": [bearer(GOOD), api_key(BOB)],
    "bearer without a secret": [("authorization", "Bearer")],
    "a bare secret for a bearer": [("authorization", GOOD)],
    "another scheme": [("authorization", f"Basic {GOOD}")],
    "two in one": [("authorization", f"Bearer {GOOD}, Bearer {GOOD}")],
    "an API key as a bearer": [api_key(f"Bearer {GOOD}")],
    "another header": [("x-auth", GOOD), ("cookie", f"authorization=Bearer {GOOD}")],
}
CREDENTIALS = {
    **{name: (headers, "unauthenticated") for name, headers in STRANGERS.items()},
    "bearer of bob, who may call something else": ([bearer(BOB)], "permission_denied"),
    "API key of bob, who may call something else": ([api_key(BOB)], "permission_denied"),
}
GET = "?connect=v1&encoding=proto&message="
WAYS = {
    "Connect": ("POST", "application/proto", b"", ""),
    "Connect, JSON": ("POST", "application/json", b"{}", ""),
    "Connect stream": ("POST", "application/connect+proto", enveloped(b""), ""),
    "Connect GET": ("GET", None, b"", GET),
    "gRPC-Web": ("POST", "application/grpc-web+proto", enveloped(b""), ""),
    "gRPC-Web text": ("POST", "application/grpc-web-text", b"AAAAAAA=", ""),
}


def request(way, path, headers):
    method, kind, body, query = WAYS[way]
    return method, path + query, [*([("content-type", kind)] if kind else []), *headers], body


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("credentials", CREDENTIALS)
def test_bad_credentials_are_denied_over_http(served, send, credentials, way):
    headers, code = CREDENTIALS[credentials]
    served.counted.calls.clear()
    for path in (*served.paths, *UNKNOWN):
        told, body = send(*request(way, path, headers))
        assert ending(told, body)[0] in DENIED[code], path
    assert not served.counted.calls


@pytest.mark.parametrize("credentials", CREDENTIALS)
@pytest.mark.parametrize("version", ["HTTP/1.1"], indirect=True, scope="session")
def test_bad_credentials_are_denied_over_grpc(served, credentials):
    headers, code = CREDENTIALS[credentials]
    served.counted.calls.clear()
    for path in (*served.paths, *UNKNOWN):
        status, _, body = ask_grpc(served.server.grpc_address, path, enveloped(b""), headers)
        assert (str(status), body) == (DENIED[code][1], b""), path
    assert not served.counted.calls


@pytest.mark.parametrize("headers", [[bearer(GOOD)], [api_key(GOOD)]], ids=["bearer", "API key"])
def test_with_the_good_secret_every_handler_is_reached(served, send, headers):
    served.counted.calls.clear()
    for path in served.paths:
        for way in ("Connect", "Connect stream", "gRPC-Web"):
            code = ending(*send(*request(way, path, headers)))[0]
            assert code not in (*DENIED["unauthenticated"], *DENIED["permission_denied"]), path
        status, _, _ = ask_grpc(served.server.grpc_address, path, enveloped(b""), headers)
        assert status == 0, path
    own = [path for path in served.paths if "reflection" not in path]
    assert all(served.counted.calls[path] >= 3 for path in own), served.counted.calls


def test_health_is_open_and_says_the_status_alone(served, send):
    ok = b"\x08\x01"
    for service, wanted in ((b"", ok), (b"inference.v1.LLMService", ok), (b"no.Such", None)):
        asked = b"\x0a" + bytes([len(service)]) + service if service else b""
        told, body = send("POST", "/grpc.health.v1.Health/Check", [("content-type", "application/proto")], asked)
        assert (body if wanted else ending(told, body)[0]) == (wanted or "not_found")
        status, _, body = ask_grpc(served.server.grpc_address, "/grpc.health.v1.Health/Check", enveloped(asked))
        assert (status, body) == ((0, enveloped(wanted)) if wanted else (5, b""))
    _, body = send("POST", "/grpc.health.v1.Health/List", [("content-type", "application/json")], b"{}")
    assert body == b'{"statuses":{"":{"status":"SERVING"}}}'
    for page in ("/healthz", "/readyz"):
        assert send("GET", page, [], b"")[1] == b'{"status": "SERVING"}'


def test_a_key_is_good_until_it_expires_and_then_only_that_is_said(tmp_path):
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=3)
    file = tmp_path / "keys.toml"
    file.write_text(key("carol", "short-lived", ["*"], f"{moment:%FT%T.%fZ}"))
    with Served(auth=Auth(file)) as served:

        def call():
            return ask_grpc(served.server.grpc_address, served.paths[0], enveloped(b""), [bearer("short-lived")])[:2]

        ended, seen = call(), set()
        deadline = time.monotonic() + 60
        while ended[0] == 0 and time.monotonic() < deadline:
            seen.add(ended)
            ended = call()
    assert dt.datetime.now(dt.UTC) >= moment
    assert seen == {(0, "")}
    assert ended == (16, "the credentials have expired")
