"""Credentials, quotas and what callers may know of: the same for every protocol of the HTTP port and over HTTP/2."""

import contextvars
import hashlib

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2 as reflection

from quill.errors import InvalidUsage
from quill.limits import Quota
from quill.principal import current_principal
from quill.server.auth import Auth
from quill.server.reflection import V1
from quill.server.server import Server
from quill.server.tls import Tls
from support.http1 import Connection, ask, enveloped, post
from support.official import ending, official, several
from support.probe import CHAT, COLLECT, LOOK, SERVICE, STREAM, UNARY, Answer, Ask, Wrap, serving

REFLECTION = f"/{V1}/ServerReflectionInfo"
UNKNOWN = "/no.such.Service/Method"
GET = "?encoding=json&message=%7B%7D&connect=v1"
TYPES = ("application/json", "application/connect+proto", "application/grpc-web+proto", "application/grpc-web-text")
APP = "https://app.example"
ALICE, BOB = {"authorization": "Bearer alice"}, {"x-api-key": "bob"}

on_each_host = pytest.mark.parametrize("http2", [False, True], ids=["uvicorn", "granian"])


@pytest.fixture
def auth(tmp_path):
    path = tmp_path / "keys.toml"
    for name, allow in (("alice", ["*"]), ("bob", [f"{SERVICE}/Stream"])):
        digest = hashlib.sha256(name.encode()).hexdigest()
        with path.open("a") as file:
            file.write(f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\nallow = {allow}\n')
    return Auth(path)


async def who(request, context):
    return Answer(text=current_principal.get().name)


async def who_stream(request, context):
    yield Answer(text=current_principal.get().name)


async def who_collect(requests, context):
    async for _ in requests:
        pass
    return Answer(text=current_principal.get().name)


async def who_chat(requests, context):
    async for _ in requests:
        yield Answer(text=current_principal.get().name)


ALL = {"unary": who, "look": who, "stream": who_stream, "collect": who_collect, "chat": who_chat}


def replies_alike(first, second):
    """Whether two replies tell the same, but for the path that was asked for and the date."""
    volatile = ("date", "content-length")
    heads = [sorted(header for header in reply.headers if header[0] not in volatile) for reply in (first, second)]
    return first.status == second.status and heads[0] == heads[1]


@on_each_host
@pytest.mark.parametrize("protocol", ["connect", "grpc-web"])
async def test_headers_make_the_principal_of_every_kind_of_call(auth, http2, protocol):
    async with (
        serving(auth=auth, options={"http2": http2}, **ALL) as server,
        official(server.http_url, protocol, http2=http2) as client,
    ):
        assert (await client.unary(Ask(), headers=ALICE)).text == "alice"
        assert (await client.collect(several(Ask()), headers=ALICE)).text == "alice"
        assert [reply.text for reply in await ending(client.stream(Ask(), headers=BOB))] == ["bob"]
        assert [reply.text for reply in await ending(client.chat(several(Ask()), headers=ALICE))] == ["alice"]
        assert (await ending(client.unary(Ask(), headers=BOB))).code.value == "permission_denied"
        for call in (client.unary(Ask()), client.collect(several(Ask())), client.chat(several(Ask()))):
            assert (await ending(call)).code.value == "unauthenticated"


@on_each_host
async def test_a_get_carries_credentials_as_every_call(auth, http2):
    async with serving(auth=auth, options={"http2": http2}, **ALL) as server:
        reply = await ask(server.http_url, "GET", LOOK + GET, b"", list(ALICE.items()))
        assert (reply.status, reply.json()) == (200, {"text": "alice"})
        reply = await ask(server.http_url, "GET", LOOK + GET)
        assert (reply.status, reply["www-authenticate"]) == (401, 'Bearer realm="quill"')
        assert (await ask(server.http_url, "GET", LOOK + GET, b"", list(BOB.items()))).status == 403


@on_each_host
@pytest.mark.parametrize("headers", [(), tuple(BOB.items())], ids=["a stranger", "bob"])
async def test_what_a_caller_may_not_call_cannot_be_told_from_what_is_not_there(auth, http2, headers):
    options = {"http2": http2, "reflection": True}
    async with serving(auth=auth, options=options, **ALL) as server:
        for kind in TYPES:
            body = b"{}" if kind == TYPES[0] else enveloped(b"")
            known = await post(server.http_url, UNKNOWN, kind, body, headers)
            for path in (UNARY, COLLECT, CHAT, LOOK, REFLECTION):
                assert replies_alike(await post(server.http_url, path, kind, body, headers), known), (kind, path)
        for method, query in (("GET", GET), ("GET", ""), ("PUT", ""), ("POST", "")):
            known = await ask(server.http_url, method, UNKNOWN + query, b"", headers)
            for path in (UNARY, COLLECT, CHAT, LOOK, REFLECTION):
                reply = await ask(server.http_url, method, path + query, b"", headers)
                assert replies_alike(reply, known), (method, path)


@on_each_host
async def test_no_interceptor_runs_for_a_stranger_and_health_and_preflights_are_open(auth, http2):
    ran = []

    async def note(continuation, details):
        ran.append(details.method)
        return await continuation(details)

    options = {"http2": http2, "cors": (APP,), "reflection": True}
    async with serving(auth=auth, interceptors=[Wrap(note)], options=options, **ALL) as server:
        for kind in TYPES:
            for path in (UNARY, STREAM, COLLECT, CHAT, REFLECTION):
                await post(server.http_url, path, kind, enveloped(b""))
        await ask(server.http_url, "GET", LOOK + GET)
        assert ran == []
        asked = [("origin", APP), ("access-control-request-method", "POST")]
        assert (await ask(server.http_url, "OPTIONS", UNARY, b"", asked)).status == 204
        assert (await ask(server.http_url, "GET", "/readyz")).status == 200
        health = await post(server.http_url, "/grpc.health.v1.Health/Check", "application/json", b"{}")
        assert health.json() == {"status": "SERVING"}


@on_each_host
async def test_a_page_reads_why_it_was_refused_and_when_to_come_back(auth, http2):
    options = {"http2": http2, "cors": (APP,)}
    async with serving(auth=auth, quota=Quota(requests_per_minute=1), options=options, **ALL) as server:
        origin = ("origin", APP)
        for kind in (TYPES[0], TYPES[2]):
            reply = await post(server.http_url, UNARY, kind, b"{}", [origin])
            assert reply["www-authenticate"]
            assert "www-authenticate" in reply["access-control-expose-headers"].split(", ")
        for _ in range(2):
            reply = await post(server.http_url, UNARY, TYPES[0], b"{}", [origin, *ALICE.items()])
        assert (reply.status, int(reply["retry-after"]) > 0) == (429, True)
        assert "retry-after" in reply["access-control-expose-headers"].split(", ")


@on_each_host
async def test_one_quota_counts_the_calls_of_all_protocols(auth, http2):
    quota = Quota(requests_per_minute=3)
    async with serving(auth=auth, quota=quota, options={"http2": http2}, **ALL) as server:
        headers = list(ALICE.items())
        assert (await post(server.http_url, UNARY, TYPES[0], b"{}", headers)).status == 200
        assert (await ask(server.http_url, "GET", LOOK + GET, b"", headers)).status == 200
        async with official(server.http_url, "grpc-web", http2=http2) as client:
            assert (await client.unary(Ask(), headers=ALICE)).text == "alice"
            assert (await ending(client.unary(Ask(), headers=ALICE))).code.value == "resource_exhausted"


@on_each_host
async def test_reflection_is_for_those_who_may_call_it(auth, http2):
    request = reflection.ServerReflectionRequest(list_services="").SerializeToString()
    async with serving(auth=auth, options={"http2": http2, "reflection": True}, **ALL) as server:
        reply = await post(server.http_url, REFLECTION, TYPES[1], enveloped(request), list(ALICE.items()))
        (told,) = map(reflection.ServerReflectionResponse.FromString, reply.messages())
        assert SERVICE in [service.name for service in told.list_services_response.service]
        reply = await post(server.http_url, REFLECTION, TYPES[1], enveloped(request), list(BOB.items()))
        assert (reply.messages(), reply.end()["error"]["code"]) == ([], "permission_denied")
        async with grpc.aio.insecure_channel(server.grpc_address) as channel:
            call = channel.stream_stream(REFLECTION)(iter([request]), metadata=tuple(BOB.items()))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


@on_each_host
async def test_nothing_of_one_request_is_left_for_the_next_of_its_connection(auth, http2):
    left = contextvars.ContextVar("left", default="nothing")

    async def look(continuation, details):
        left.set(left.get() + "+")
        return await continuation(details)

    async def tell(request, context):
        return Answer(text=f"{current_principal.get().name} {left.get()}")

    async with serving(auth=auth, interceptors=[Wrap(look)], unary=tell, options={"http2": http2}) as server:
        async with await Connection.open(server.http_url) as connection:
            for _ in range(2):
                await connection.ask("POST", UNARY, b"{}", [("content-type", TYPES[0]), *ALICE.items()])
                assert (await connection.reply()).json() == {"text": "alice nothing+"}
        if http2:
            async with official(server.http_url, http2=True) as client:
                for _ in range(2):
                    assert (await client.unary(Ask(), headers=ALICE)).text == "alice nothing+"


def test_http2_with_tls_is_refused_with_the_reason():
    with pytest.raises(InvalidUsage, match="clear text"):
        Server(http2=True, tls=Tls(cert="cert.pem", key="key.pem"))
