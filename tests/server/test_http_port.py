"""What the HTTP port says to those who do not speak Connect, or not well."""

import asyncio
import logging

import httpcore

from support.http1 import Connection, ask, enveloped, post
from support.probe import STREAM, UNARY, Answer, Ask, serving


async def echo(request, context):
    return Answer(text=request.text)


async def stream(request, context):
    yield Answer(text=request.text)


async def test_a_browser_at_an_unknown_path_gets_404():
    async with serving(unary=echo) as server:
        for method, path in (("GET", "/"), ("GET", "/favicon.ico"), ("POST", "/upload"), ("GET", "/a.B/C")):
            reply = await ask(server.http_url, method, path, b"", [("content-type", "text/plain")])
            assert (reply.status, reply["content-type"]) == (404, "text/plain; charset=utf-8"), path
            assert reply.body == b"not found\n"


async def test_another_method_than_post_gets_405():
    async with serving(unary=echo) as server:
        for method in ("GET", "PUT", "DELETE"):
            reply = await ask(server.http_url, method, UNARY)
            assert (reply.status, reply["allow"]) == (405, "POST")
            # A Connect client takes JSON for an error of its protocol, which has other members.
            assert (reply["content-type"], reply.body) == ("text/plain; charset=utf-8", b"use POST\n")
        reply = await ask(server.http_url, "POST", "/healthz")
        assert (reply.status, reply["allow"]) == (405, "GET, HEAD")


async def test_another_content_type_gets_415():
    async with serving(unary=echo, stream=stream) as server:
        for path, kinds in (
            (UNARY, ("text/plain", "application/xml", "application/connect+proto", "application/grpc")),
            (STREAM, ("text/plain", "application/proto", "application/json", "application/grpc-web+xml")),
        ):
            for kind in kinds:
                assert (await post(server.http_url, path, kind, b"")).status == 415, (path, kind)


async def test_another_protocol_version_is_refused():
    async with serving(unary=echo) as server:
        reply = await post(server.http_url, UNARY, "application/json", b"{}", [("connect-protocol-version", "2")])
        assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")


async def test_health_pages_answer_head():
    def head(url):
        with httpcore.ConnectionPool() as pool:
            return pool.request("HEAD", url + "/readyz").status

    async with serving(unary=echo) as server:
        assert await asyncio.to_thread(head, server.http_url) == 200


async def test_headers_outside_ascii_do_not_break_a_call():
    seen = []

    async def look(request, context):
        seen.append(dict(context.invocation_metadata()))
        return Answer()

    async with serving(unary=look) as server:
        reply = await post(server.http_url, UNARY, "application/json", b"{}", [("x-name", "caf\xe9"), ("x-fine", "1")])
        assert reply.status == 200
    assert seen[0]["x-fine"] == "1"
    assert "x-name" not in seen[0]


async def test_binary_metadata_that_is_no_base64_is_refused():
    async with serving(unary=echo) as server:
        reply = await post(server.http_url, UNARY, "application/json", b"{}", [("x-data-bin", "!")])
        assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")
        assert "x-data-bin" in reply.json()["message"]


async def test_secrets_in_headers_are_in_no_log_and_no_reply(caplog):
    caplog.set_level(logging.DEBUG)
    secret = "s3cr3t-token-value"  # noqa: S105 - one that opens nothing

    async def crash(request, context):
        raise RuntimeError("boom")

    headers = [("authorization", f"Bearer {secret}"), ("connect-timeout-ms", "5000")]
    async with serving(unary=crash) as server:
        for path, kind in ((UNARY, "application/json"), ("/no.Such/Thing", "application/json"), (UNARY, "text/plain")):
            reply = await post(server.http_url, path, kind, b"{}", headers)
            assert secret not in repr(reply)
    assert secret not in caplog.text


async def test_replies_say_nothing_about_the_software():
    async with serving(unary=echo) as server:
        for reply in (await ask(server.http_url, "GET", "/"), await post(server.http_url, UNARY, "application/proto")):
            assert reply["server"] is None
            assert reply["date"] is not None


async def test_forwarded_headers_do_not_change_the_peer():
    async def peer(request, context):
        return Answer(text=context.peer())

    async with serving(unary=peer) as server:
        reply = await post(server.http_url, UNARY, "application/json", b"{}", [("x-forwarded-for", "203.0.113.9")])
        assert reply.json()["text"].startswith("ipv4:127.0.0.1:")


async def test_garbage_closes_the_connection_and_harms_nobody():
    async with serving(unary=echo) as server:
        for garbage in (b"\x16\x03\x01\x02\x00" * 20, b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            async with await Connection.open(server.http_url) as connection:
                await connection.send(garbage)
                async with asyncio.timeout(20):
                    await connection.reader.read()
        assert (await post(server.http_url, UNARY, "application/json", b"{}")).status == 200


async def test_requests_in_a_pipeline_are_answered_in_order():
    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        for text in (b"one", b"two", b"three"):
            await connection.ask("POST", UNARY, b'{"text":"%s"}' % text, [("content-type", "application/json")])
        replies = [(await connection.reply()).json()["text"] for _ in range(3)]
        assert replies == ["one", "two", "three"]


async def test_expect_100_continue_is_answered():
    async with serving(unary=echo) as server, await Connection.open(server.http_url) as connection:
        body = b'{"text":"x"}'
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("expect", "100-continue"),
        ]
        await connection.ask("POST", UNARY, b"", headers)
        assert (await connection.head())[0] == 100
        await connection.send(body)
        assert (await connection.reply()).json() == {"text": "x"}


async def test_a_stream_may_end_without_its_request_being_read():
    async with serving(stream=stream) as server:
        reply = await post(server.http_url, STREAM, "application/connect+json", enveloped(b'{"text": 1}'))
        assert (reply.status, reply.end()["error"]["code"]) == (200, "invalid_argument")
        assert "text" in reply.end()["error"]["message"]


async def test_a_message_that_is_no_utf8_is_refused():
    async with serving(unary=echo) as server:
        reply = await post(server.http_url, UNARY, "application/json", b'{"text": "\xff"}')
        assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")
        assert (
            await post(server.http_url, UNARY, "application/proto", Ask(text="ok").SerializeToString())
        ).status == 200
