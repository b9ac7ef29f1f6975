"""Who may call: secrets in headers and names in certificates, on both ports, with foreign clients."""

import asyncio
import hashlib
import logging
import statistics
import time

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quill.errors import InvalidUsage
from quill.principal import current_principal
from quill.server.auth import Auth, Authenticator
from quill.server.keys import KeyTable, load_keys, new_secret
from quill.server.tls import Tls
from support.authority import Authority
from support.http1 import Connection, ask, enveloped, post
from support.probe import CHAT, COLLECT, SERVICE, STREAM, UNARY, Answer, Ask, Stub, Wrap, outcome, serving

SECRET = "canary-secret-3f9c1e"  # noqa: S105 - one that opens nothing
OTHER = "another-secret-77aa"
OLD = "expired-secret-0b1d"
JSON = "application/json"
CODES = grpc.StatusCode


def sha256(secret):
    return hashlib.sha256(secret.encode()).hexdigest()


def entry(name, secret, allow, expires=""):
    expires = f"expires = {expires}\n" if expires else ""
    return f'[[key]]\nname = "{name}"\nsha256 = "{sha256(secret)}"\nallow = {allow}\n{expires}'


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(
        entry("alice", SECRET, [f"{SERVICE}/*"])
        + entry("bob", OTHER, [f"{SERVICE}/Stream", "other.v1.Service/*"])
        + entry("carol", OLD, ["*"], "2020-01-01T00:00:00Z")
    )
    return path


@pytest.fixture
def auth(keys_file):
    return Auth(keys_file)


async def who(request, context):
    return Answer(text=current_principal.get().name)


async def who_stream(request, context):
    yield Answer(text=current_principal.get().name)


async def who_collect(requests, context):
    async for _ in requests:
        pass
    return Answer(text=current_principal.get().name)


async def who_chat(requests, context):
    async for request in requests:
        yield Answer(text=current_principal.get().name + request.text)


ALL = {"unary": who, "stream": who_stream, "collect": who_collect, "chat": who_chat}


def bearer(secret):
    return (("authorization", f"Bearer {secret}"),)


async def by_grpc(server, metadata, method="unary"):
    async with Stub(server.grpc_address) as stub:
        return await outcome(getattr(stub, method)(Ask(), metadata=metadata))


async def by_http(server, headers):
    return await post(server.http_url, UNARY, JSON, b"{}", headers)


@pytest.mark.parametrize(
    "headers", [bearer(SECRET), (("authorization", f"bearer  {SECRET} "[:-1]),), (("x-api-key", SECRET),)]
)
async def test_a_good_secret_makes_its_principal_on_both_ports(auth, headers):
    async with serving(auth=auth, **ALL) as server:
        assert (await by_grpc(server, headers)).text == "alice"
        assert (await by_grpc(server, headers, "stream"))[0].text == "alice"
        assert (await by_http(server, headers)).json() == {"text": "alice"}
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(b""), headers)
        assert Answer.FromString(reply.messages()[0]).text == "alice"


@pytest.mark.parametrize(
    "headers",
    [
        (),
        bearer("wrong"),
        bearer(SECRET[:-1]),
        bearer(OLD),
        bearer(sha256(SECRET)),
        bearer(""),
        (("authorization", SECRET),),
        (("authorization", f"Basic {SECRET}"),),
        (("x-api-key", f"Bearer {SECRET}"),),
        (("x-api-key", "wrong"), *bearer(SECRET)),
        (("x-other", SECRET),),
    ],
)
async def test_no_wrong_or_expired_credentials_are_unauthenticated_on_both_ports(auth, headers):
    async with serving(auth=auth, **ALL) as server:
        for method in ("unary", "stream"):
            assert (await by_grpc(server, headers, method)).code() is CODES.UNAUTHENTICATED
        reply = await by_http(server, headers)
        assert (reply.status, reply.json()["code"]) == (401, "unauthenticated")
        assert reply["www-authenticate"] == 'Bearer realm="quill"'
        reply = await post(server.http_url, STREAM, "application/connect+json", enveloped(b"{}"), headers)
        assert reply.end()["error"]["code"] == "unauthenticated"
        assert reply["www-authenticate"] == 'Bearer realm="quill"'


async def test_a_known_caller_without_the_right_is_denied_on_both_ports(auth):
    async with serving(auth=auth, **ALL) as server:
        headers = bearer(OTHER)
        assert (await by_grpc(server, headers, "stream"))[0].text == "bob"
        error = await by_grpc(server, headers)
        assert (error.code(), error.details()) == (CODES.PERMISSION_DENIED, f"'bob' may not call {UNARY[1:]}")
        reply = await by_http(server, headers)
        assert (reply.status, reply.json()["code"]) == (403, "permission_denied")


async def test_every_path_is_closed_whether_it_is_served_or_not(auth):
    async with serving(auth=auth, **ALL) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        for path in (UNARY, STREAM, COLLECT, CHAT, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/a/b"):
            error = await outcome(channel.unary_unary(path)(b""))
            assert error.code() is CODES.UNAUTHENTICATED, path
            reply = await post(server.http_url, path, JSON, b"{}")
            assert (reply.status, reply.json()["code"]) == (401, "unauthenticated"), path


async def test_a_stranger_does_not_learn_which_methods_there_are(auth):
    async with serving(auth=auth, **ALL) as server:
        for kind in (JSON, "application/connect+proto", "text/plain"):
            seen = set()
            for path in (UNARY, STREAM, f"/{SERVICE}/Nothing", "/a.B/C"):
                reply = await post(server.http_url, path, kind, b"")
                seen.add((reply.status, reply.body))
            assert len(seen) == 1, kind
        assert {(await ask(server.http_url, "GET", path)).status for path in (UNARY, "/a.B/C")} == {404}


async def test_health_is_open_and_says_only_the_status(auth):
    async with serving(auth=auth, **ALL) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving_now = health_pb2.HealthCheckResponse.SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == serving_now
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == serving_now
        watch.cancel()
        listed = await health.List(health_pb2.HealthListRequest())
        assert {name: found.status for name, found in listed.statuses.items()} == {"": serving_now}
        reply = await post(server.http_url, "/grpc.health.v1.Health/Check", JSON, b"{}")
        assert reply.json() == {"status": "SERVING"}
        for page in ("/healthz", "/readyz"):
            reply = await ask(server.http_url, "GET", page)
            assert (reply.status, reply.json()) == (200, {"status": "SERVING"})
        error = await outcome(channel.unary_unary("/grpc.health.v1.HealthX/Check")(b""))
        assert error.code() is CODES.UNAUTHENTICATED


async def test_nothing_of_the_users_runs_before_the_credentials_are_good(auth):
    ran = []

    async def note(continuation, details):
        ran.append(current_principal.get().name)
        return await continuation(details)

    async with serving(auth=auth, interceptors=[Wrap(note)], **ALL) as server:
        await by_grpc(server, ())
        await by_http(server, ())
        assert ran == []
        await by_grpc(server, bearer(SECRET))
        await by_http(server, bearer(SECRET))
    assert ran == ["alice", "alice"]


async def test_a_refusal_does_not_wait_for_the_body(auth):
    async with serving(auth=auth, **ALL) as server, await Connection.open(server.http_url) as connection:
        await connection.ask("POST", UNARY, b"", [("content-type", JSON), ("content-length", "1000000")])
        reply = await connection.reply()
        assert (reply.status, reply["connection"]) == (401, "close")


async def test_the_headers_that_carry_secrets_can_be_chosen(keys_file):
    async with serving(auth=Auth(keys_file, ("x-team-key",)), **ALL) as server:
        assert (await by_grpc(server, (("x-team-key", SECRET),))).text == "alice"
        for headers in (bearer(SECRET), (("x-api-key", SECRET),)):
            assert (await by_http(server, headers)).status == 401


@pytest.mark.parametrize("headers", [(), ("X-Key",), ("content-type",), ("x y",), ("x-key-bin",)])
def test_headers_that_cannot_carry_a_secret_are_refused(keys_file, headers):
    with pytest.raises(InvalidUsage, match=r"header|key"):
        Auth(keys_file, headers)


async def test_a_changed_file_is_in_effect_without_a_restart(auth, keys_file, caplog):
    fresh = "a-secret-made-later"

    async def becomes(secret, code):
        async with asyncio.timeout(20):
            while (await by_http(server, bearer(secret))).status != code:
                await asyncio.sleep(0.1)

    async with serving(auth=auth, **ALL) as server:
        assert (await by_http(server, bearer(SECRET))).status == 200
        keys_file.write_text(entry("alice", fresh, [f"{SERVICE}/*"]))
        await becomes(SECRET, 401)
        assert (await by_http(server, bearer(fresh))).json() == {"text": "alice"}
        assert caplog.text == ""
        keys_file.write_text("this is [ no TOML")
        async with asyncio.timeout(20):
            while not caplog.records:
                assert (await by_http(server, bearer(fresh))).status == 200
                await asyncio.sleep(0.1)
        assert "stays in use" in caplog.text
        keys_file.write_text("")
        await becomes(fresh, 401)


async def test_the_secret_is_in_no_log_no_error_and_no_repr(auth, keys_file, caplog):
    caplog.set_level(logging.DEBUG)

    async def crash(request, context):
        raise RuntimeError("boom")

    shown = []
    async with serving(auth=auth, unary=crash, stream=who_stream) as server:
        for headers in (bearer(SECRET), bearer(OTHER), bearer(OLD), (("authorization", SECRET),)):
            for path in (UNARY, STREAM, "/no.Such/Thing"):
                reply = await post(server.http_url, path, JSON, b"{}", headers)
                shown += [str(reply.headers), reply.body.decode()]
            shown.append(str(await by_grpc(server, headers)))
        shown.append(repr(vars(server)))
    table = load_keys(keys_file)
    shown += [repr(table), repr(auth), repr(table.find(SECRET)), caplog.text]
    for secret in (SECRET, OTHER, OLD):
        assert not [text for text in shown if secret in text or sha256(secret) in text]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[keys]]\nname = 'a'", "'keys'"),
        ("key = 1", "'key'"),
        ("[[key]]\nname = 'a'\nallow = ['*']", "number 1: sha256"),
        ("[[key]]\nname = 'a'\nallow = ['*']\nsha256 = 'ABC'", "64 hexadecimal digits"),
        (f"[[key]]\nname = 'a'\nsha256 = '{sha256('a')}'", "allow must be a list"),
        (f"[[key]]\nname = 'a'\nsha256 = '{sha256('a')}'\nallow = []", "allow must be a list"),
        (f"[[key]]\nname = 'a'\nsha256 = '{sha256('a')}'\nallow = ['inference.*']", "inference.*"),
        (f"[[key]]\nname = ''\nsha256 = '{sha256('a')}'\nallow = ['*']", "printable"),
        (f"[[key]]\nname = 'a'\nsha256 = '{sha256('a')}'\nallow = ['*']\nexpire = 1", "'expire'"),
        (f"[[key]]\nname = 'a'\nsha256 = '{sha256('a')}'\nallow = ['*']\nexpires = 'soon'", "expires must be"),
        (f"[[key]]\nname = 'a'\nsha256 = '{sha256('a')}'\nallow = ['*']\nexpires = 2027-01-01T00:00:00", "zone"),
        (entry("a", "s", ["*"]) + entry("b", "s", ["*"]), "one sha256 twice"),
        ("[[identity]]\nname='a'\nallow=['*']\n" * 2, "one identity twice"),
        ("[[identity]]\nname='a'\nallow=['*']\nsha256='x'", "'sha256'"),
        (f"\n{SECRET} ! 1\n", "no TOML at line 2"),
    ],
)
def test_a_wrong_keys_file_is_said_at_the_start_by_its_place(tmp_path, text, words):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(InvalidUsage) as caught:
        Authenticator(Auth(path), None)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_missing_keys_file_is_said_at_the_start(tmp_path):
    with pytest.raises(InvalidUsage, match=r"keys\.toml: No such file"):
        Authenticator(Auth(tmp_path / "keys.toml"), None)


def test_two_keys_of_one_name_let_a_secret_be_replaced(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(entry("a", "old", ["*"], "2027-01-31") + entry("a", "new", ["*"]))
    table = load_keys(path)
    assert {table.find("old").name, table.find("new").name} == {"a"}
    assert table.find("old").expires.isoformat() == "2027-01-31T00:00:00+00:00"


def test_a_fresh_secret_has_256_bits_and_its_hash():
    secret, digest = new_secret()
    assert sha256(secret) == digest
    assert len(secret.removeprefix("quill_")) == 43  # 32 bytes in base64
    assert new_secret()[0] != secret


def test_finding_a_key_takes_as_long_for_the_first_as_for_none(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text("".join(entry(f"k{number}", f"s{number}", ["*"]) for number in range(2000)))
    table = load_keys(path)
    assert isinstance(table, KeyTable)

    def median_s(secret):
        times = []
        for _ in range(31):
            began = time.perf_counter()
            table.find(secret)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    # A search that stops at the first of 2000 keys would be some 1000 times as fast as one that finds none.
    assert median_s("s0") > median_s("none") / 5


AGENT = "URI:spiffe://prod/agent"


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def mutual(authority, tmp_path):
    """What Tls takes, but for the identities."""
    cert, key = authority.issue().write(tmp_path)
    return {"cert": cert, "key": key, "client_ca": authority.write(tmp_path)}


async def both(server, authority, client, folder, headers=()):
    """What the ports answer to a client certificate: texts or codes."""
    async with Stub(server.grpc_address, credentials=authority.grpc(client)) as stub:
        grpc_end = await outcome(stub.unary(Ask(), metadata=headers))
    reply = await post(server.http_url, UNARY, JSON, b"{}", headers, tls=authority.ssl(folder, client))
    document = reply.json()
    return (
        grpc_end.text if isinstance(grpc_end, Answer) else grpc_end.code().name.lower(),
        document.get("text", document.get("code")),
    )


async def test_a_certificate_is_its_principal_and_others_are_refused(authority, mutual, tmp_path):
    tls = Tls(**mutual, identities={AGENT: "agent", "CN:alice": "alice", "DNS:batch.example": "batch"})
    async with serving(tls=tls, **ALL) as server:
        for client, wanted in (
            (authority.issue("x", ("URI:spiffe://prod/agent",)), "agent"),
            (authority.issue("alice", ()), "alice"),
            (authority.issue("x", ("DNS:other.example", "DNS:batch.example")), "batch"),
            (authority.issue("x", ("DNS:alice",)), "unauthenticated"),
            (authority.issue("mallory", ("URI:spiffe://prod/agent2",)), "unauthenticated"),
            (authority.issue("alice", ("URI:spiffe://prod/agent",)), "unauthenticated"),
        ):
            assert await both(server, authority, client, tmp_path) == (wanted, wanted)


async def test_a_rule_may_name_all_other_certificates(authority, mutual, tmp_path):
    async with serving(tls=Tls(**mutual, identities={AGENT: "agent", "*": "guest"}), **ALL) as server:
        assert await both(server, authority, authority.issue("x", ()), tmp_path) == ("guest", "guest")


async def test_certificates_without_identities_open_connections_only(authority, mutual, tmp_path):
    async with serving(tls=Tls(**mutual), **ALL) as server:
        assert await both(server, authority, authority.issue("x", ()), tmp_path) == ("anonymous", "anonymous")


async def test_all_kinds_of_calls_work_with_certificates(authority, mutual):
    client = authority.issue("alice", ())

    async def ends(requests, context):
        context.set_trailing_metadata((("x-end", "1"),))
        await context.abort(CODES.ABORTED, "stop")

    tls = Tls(**mutual, identities={"CN:alice": "alice"})
    async with (
        serving(tls=tls, **ALL) as server,
        Stub(server.grpc_address, credentials=authority.grpc(client)) as stub,
    ):
        assert (await stub.unary(Ask())).text == "alice"
        assert [reply.text for reply in await outcome(stub.stream(Ask()))] == ["alice"]
        assert (await stub.collect(iter([Ask(), Ask()]))).text == "alice"
        replies = await outcome(stub.chat(iter([Ask(text="1"), Ask(text="2")])))
        assert [reply.text for reply in replies] == ["alice1", "alice2"]
        error = await outcome(stub.channel.unary_unary(UNARY)(b"\xff"))
        assert error.code() is CODES.INVALID_ARGUMENT
        error = await outcome(stub.channel.unary_unary("/a.B/C")(b""))
        assert error.code() is CODES.UNIMPLEMENTED
        health = health_pb2_grpc.HealthStub(stub.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    async with (
        serving(tls=tls, unary=ends, stream=ends) as server,
        Stub(server.grpc_address, credentials=authority.grpc(client)) as stub,
    ):
        for call in (stub.unary(Ask()), stub.stream(Ask())):
            error = await outcome(call)
            assert (error.code(), error.details()) == (CODES.ABORTED, "stop")
            assert ("x-end", "1") in tuple(error.trailing_metadata())


async def test_with_auth_a_certificate_may_call_what_the_file_says(authority, mutual, keys_file, tmp_path):
    with keys_file.open("a") as file:
        file.write(f'[[identity]]\nname = "agent"\nallow = ["{SERVICE}/*"]\n')
    tls = Tls(**mutual, identities={AGENT: "agent", "CN:alice": "alice"})
    async with serving(tls=tls, auth=Auth(keys_file), **ALL) as server:
        agent = authority.issue("x", ("URI:spiffe://prod/agent",))
        assert await both(server, authority, agent, tmp_path) == ("agent", "agent")
        # A key of the same name is not a right of the certificate.
        alice = authority.issue("alice", ())
        assert await both(server, authority, alice, tmp_path) == ("permission_denied", "permission_denied")
        # Credentials in the call count before the certificate.
        assert await both(server, authority, agent, tmp_path, bearer(SECRET)) == ("alice", "alice")
        assert await both(server, authority, agent, tmp_path, bearer("wrong")) == ("unauthenticated",) * 2


async def test_servicers_see_the_certificate_alike_on_both_ports(authority, mutual, tmp_path):
    seen = []

    async def look(request, context):
        shared = (
            "transport_security_type",
            "x509_common_name",
            "x509_subject_alternative_name",
            "peer_uri",
            "peer_dns",
        )
        properties = {key: list(context.auth_context()[key]) for key in shared}
        seen.append((properties, context.peer_identity_key(), list(context.peer_identities())))
        return Answer()

    client = authority.issue("alice", ("URI:spiffe://prod/agent", "DNS:a.example", "DNS:b.example"))
    async with serving(tls=Tls(**mutual, identities={"*": "all"}), unary=look) as server:
        await both(server, authority, client, tmp_path)
    assert seen[0] == seen[1]
    assert seen[0][2] == [b"spiffe://prod/agent", b"a.example", b"b.example"]
