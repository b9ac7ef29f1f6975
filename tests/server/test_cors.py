"""Cross-origin requests: listed origins may call and read, others are told nothing (Fetch, section 3.2)."""

import pytest

from quill.errors import InvalidType, InvalidUsage
from quill.server.server import Server
from support.http1 import ask, enveloped, post
from support.probe import LOOK, STREAM, UNARY, Answer, serving

APP, OTHER = "https://app.example", "https://evil.example"
LISTED = {"cors": (APP, "http://localhost:5173")}


async def unary(request, context):
    await context.send_initial_metadata((("x-first", "1"),))
    context.set_trailing_metadata((("x-last", "2"),))
    return Answer(text=request.text)


async def stream(request, context):
    yield Answer()


def cors_headers(reply):
    return {key: value for key, value in reply.headers if key.startswith("access-control-")}


async def preflight(url, path, origin, asked="content-type,connect-protocol-version,x-token"):
    headers = [("origin", origin), ("access-control-request-method", "POST")]
    if asked is not None:
        headers.append(("access-control-request-headers", asked))
    return await ask(url, "OPTIONS", path, b"", headers)


@pytest.mark.parametrize("path", [UNARY, STREAM, LOOK, "/healthz", "/no.such/Method"])
async def test_a_listed_origin_may_send_what_it_asks_for(path):
    async with serving(unary=unary, stream=stream, look=unary, options=LISTED) as server:
        reply = await preflight(server.http_url, path, APP)
        assert (reply.status, reply.body) == (204, b"")
        assert cors_headers(reply) == {
            "access-control-allow-origin": APP,
            "access-control-allow-credentials": "true",
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": "content-type,connect-protocol-version,x-token",
            "access-control-max-age": "7200",
        }
        assert "Origin" in reply["vary"]


async def test_a_preflight_that_asks_for_no_headers_is_told_those_of_the_protocols():
    async with serving(unary=unary, options=LISTED) as server:
        allowed = (await preflight(server.http_url, UNARY, APP, None))["access-control-allow-headers"]
        for name in ("content-type", "connect-protocol-version", "connect-timeout-ms", "x-grpc-web", "grpc-timeout"):
            assert name in allowed
        reply = await preflight(server.http_url, UNARY, APP, "x:y")
        assert reply["access-control-allow-headers"] == allowed


@pytest.mark.parametrize(
    "origin", [OTHER, "null", "https://app.example.evil.example", "http://app.example", "https://app.example:8443", "*"]
)
async def test_another_origin_is_told_nothing(origin):
    async with serving(unary=unary, options=LISTED) as server:
        reply = await preflight(server.http_url, UNARY, origin)
        assert (reply.status, cors_headers(reply)) == (403, {})
        assert "Origin" in reply["vary"]
        reply = await post(server.http_url, UNARY, "application/json", b"{}", [("origin", origin)])
        assert (cors_headers(reply), reply["vary"]) == ({}, "Accept-Encoding, Origin")


async def test_a_listed_origin_reads_every_header_of_the_reply():
    async with serving(unary=unary, stream=stream, options=LISTED) as server:
        reply = await post(server.http_url, UNARY, "application/json", b"{}", [("origin", APP)])
        assert (reply.status, reply["access-control-allow-origin"]) == (200, APP)
        assert reply["access-control-allow-credentials"] == "true"
        exposed = reply["access-control-expose-headers"].split(", ")
        assert {"x-first", "trailer-x-last", "content-type", "grpc-status", "grpc-message"} <= set(exposed)
        assert "*" not in exposed
        assert "Origin" in reply["vary"]
        for kind in ("application/grpc-web+proto", "application/grpc-web-text", "application/connect+proto"):
            reply = await post(server.http_url, STREAM, kind, enveloped(b""), [("origin", APP)])
            assert reply["access-control-allow-origin"] == APP
            assert "grpc-status" in reply["access-control-expose-headers"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/healthz", 200), ("GET", "/nowhere", 404), ("PUT", UNARY, 405), ("POST", UNARY, 415)],
)
async def test_replies_that_are_no_calls_can_be_read_too(method, path, status):
    async with serving(unary=unary, options=LISTED) as server:
        reply = await ask(server.http_url, method, path, b"", [("origin", APP)])
        assert (reply.status, reply["access-control-allow-origin"], reply["vary"]) == (status, APP, "Origin")


async def test_a_request_without_an_origin_is_answered_without_ceremony():
    async with serving(unary=unary, options=LISTED) as server:
        reply = await post(server.http_url, UNARY, "application/json", b"{}")
        assert (reply.status, cors_headers(reply)) == (200, {})
        assert "Origin" in reply["vary"]
        assert (await ask(server.http_url, "OPTIONS", UNARY)).status == 405


async def test_any_origin_is_allowed_only_when_told_so_and_without_credentials():
    async with serving(unary=unary, options={"cors": ("*",)}) as server:
        reply = await preflight(server.http_url, UNARY, OTHER)
        assert (reply.status, reply["access-control-allow-origin"]) == (204, "*")
        assert "access-control-allow-credentials" not in cors_headers(reply)
        reply = await post(server.http_url, UNARY, "application/json", b"{}", [("origin", OTHER)])
        assert reply["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in cors_headers(reply)
        assert "x-first" in reply["access-control-expose-headers"]


async def test_without_a_list_there_are_no_such_headers():
    async with serving(unary=unary) as server:
        reply = await preflight(server.http_url, UNARY, APP)
        assert (reply.status, cors_headers(reply)) == (405, {})
        reply = await post(server.http_url, UNARY, "application/json", b"{}", [("origin", APP)])
        assert (cors_headers(reply), reply["vary"]) == ({}, "Accept-Encoding")


async def test_a_preflight_reaches_neither_guard_nor_servicer():
    from support.probe import Wrap

    async def deny(continuation, details):
        raise AssertionError

    async with serving(interceptors=[Wrap(deny)], unary=unary, options=LISTED) as server:
        assert (await preflight(server.http_url, UNARY, APP)).status == 204


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/", "HTTPS://app.example", "null", "https://", ""]
)
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(InvalidUsage, match="origin"):
        Server(cors=(origin,))


def test_one_string_and_a_star_among_others_are_refused():
    with pytest.raises(InvalidType, match="cors="):
        Server(cors=APP)
    with pytest.raises(InvalidType, match="string"):
        Server(cors=(1,))
    with pytest.raises(InvalidUsage, match=r"\*"):
        Server(cors=("*", APP))


async def test_the_message_of_a_get_can_be_read_by_a_listed_page():
    async with serving(look=unary, options=LISTED) as server:
        path = f"{LOOK}?encoding=json&message=%7B%7D"
        reply = await ask(server.http_url, "GET", path, b"", [("origin", APP)])
        assert (reply.status, reply["access-control-allow-origin"], reply["cache-control"]) == (200, APP, "no-store")
        assert reply["vary"] == "Accept-Encoding, Origin"
