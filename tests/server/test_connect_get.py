"""Connect GET: side-effect-free methods called by URL, cacheable only where the servicer says so."""

import asyncio
import base64
import gzip
import json
import subprocess
from urllib.parse import quote, quote_from_bytes

import grpc
import pytest
import zstandard

from quill.limits import Limits
from support.http1 import ask, post
from support.official import official
from support.probe import LOOK, STREAM, UNARY, Answer, Ask, Stub, Wrap, serving


async def echo(request, context):
    return Answer(text=request.text, count=request.count, blob=request.blob)


async def count(request, context):
    yield Answer()


def query(message, *, encoding="proto", **parameters):
    """A query as the specification writes it."""
    text = base64.urlsafe_b64encode(message).decode().rstrip("=")
    rest = "".join(f"&{key}={value}" for key, value in parameters.items())
    return f"{LOOK}?connect=v1&encoding={encoding}&base64=1&message={text}{rest}"


async def test_a_message_comes_by_url_in_base64_or_plainly():
    blob = bytes(range(256))
    request = Ask(text="grüße+&=", blob=blob).SerializeToString()
    async with serving(look=echo) as server:
        for path in (
            query(request),
            query(request) + "==",
            f"{LOOK}?encoding=proto&message={quote_from_bytes(request)}",
            f"{LOOK}?message={quote_from_bytes(request)}&base64=0&encoding=proto&connect=v1",
        ):
            reply = await ask(server.http_url, "GET", path)
            assert (reply.status, reply["content-type"]) == (200, "application/proto"), path
            assert Answer.FromString(reply.body) == Answer(text="grüße+&=", blob=blob)


async def test_json_comes_by_url():
    async with serving(look=echo) as server:
        document = quote(json.dumps({"text": "a b+c"}))
        reply = await ask(server.http_url, "GET", f"{LOOK}?encoding=json&message={document}")
        assert (reply.status, reply["content-type"], reply.json()) == (200, "application/json", {"text": "a b+c"})
        reply = await ask(server.http_url, "GET", f"{LOOK}?encoding=json&message=%7B%22text%22:%22a+b%22%7D")
        assert reply.json() == {"text": "a b"}


async def test_the_official_client_and_curl_call_by_get():
    async with serving(look=echo) as server:
        async with official(server.http_url) as client:
            assert (await client.look(Ask(text="hi", count=7))).count == 7
        process = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "-m", "20", "-G", "--data-urlencode", 'message={"text":"hi"}', "-d", "encoding=json"),
            server.http_url + LOOK,
            stdout=subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert json.loads(out) == {"text": "hi"}


async def test_the_same_method_still_takes_post():
    async with serving(look=echo) as server, Stub(server.grpc_address):
        reply = await post(server.http_url, LOOK, "application/json", b'{"text":"x"}')
        assert (reply.json(), reply["cache-control"]) == ({"text": "x"}, None)


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.ZstdCompressor().compress)]
)
async def test_compressed_messages_are_read_bounded_and_strictly(encoding, compress):
    async with serving(look=echo, limits=Limits(max_message_bytes=100_000)) as server:
        data = Ask(text="hello " * 100).SerializeToString()
        reply = await ask(server.http_url, "GET", query(compress(data), compression=encoding))
        assert Answer.FromString(reply.body).text == "hello " * 100
        for damaged in (compress(data)[:-3], compress(data) + b"\0"):
            assert (await ask(server.http_url, "GET", query(damaged, compression=encoding))).status == 400
        reply = await ask(server.http_url, "GET", query(compress(bytes(1_000_000)), compression=encoding))
        assert (reply.status, reply.json()["code"]) == (429, "resource_exhausted")
        reply = await ask(server.http_url, "GET", query(data, compression="br"))
        assert (reply.status, reply.json()["code"], reply["accept-encoding"]) == (501, "unimplemented", "zstd, gzip")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (LOOK, 415),
        (LOOK + "?message=%7B%7D", 415),
        (LOOK + "?encoding=xml&message=a", 415),
        (LOOK + "?encoding=proto%0d%0ax:y&message=a", 415),
        (LOOK + "?encoding=json", 400),
        (LOOK + "?encoding=json&message=%7B%7D&connect=v2", 400),
        (LOOK + "?encoding=proto&base64=1&message=a!", 400),
        (LOOK + "?encoding=proto&base64=1&message=a", 400),
        (LOOK + "?encoding=proto&message=%0a%ff", 400),
        (LOOK + "?encoding=json&message=%ff", 400),
        (LOOK + "?encoding=json&message=%7B%22nope%22:1", 400),
        (LOOK + "?encoding=json&message=%7B%7D&compression=%0a", 501),
    ],
)
async def test_a_query_that_is_no_call_is_refused(path, status):
    async with serving(look=echo) as server:
        reply = await ask(server.http_url, "GET", path)
        assert (reply.status, reply["cache-control"]) == (status, "no-store")
        assert b"codec can't" not in reply.body


async def test_only_methods_without_side_effects_take_get_and_others_say_what_they_take():
    async with serving(look=echo, unary=echo, stream=count) as server:
        for path in (UNARY, STREAM):
            for method in ("GET", "PUT"):
                reply = await ask(server.http_url, method, path + "?encoding=json&message=%7B%7D")
                assert (reply.status, reply["allow"]) == (405, "POST")
        reply = await ask(server.http_url, "PUT", LOOK)
        assert (reply.status, reply["allow"]) == (405, "GET, POST")


async def test_no_cache_keeps_a_reply_unless_the_servicer_allows_it():
    async def look(request, context):
        if request.count:
            await context.send_initial_metadata((("cache-control", "max-age=60"), ("etag", "x")))
        if request.text == "fail":
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return Answer()

    async with serving(look=look) as server:
        cases = ((Ask(), "no-store"), (Ask(count=1), "max-age=60"), (Ask(count=1, text="fail"), "no-store"))
        for request, expected in cases:
            reply = await ask(server.http_url, "GET", query(request.SerializeToString()))
            assert [value for key, value in reply.headers if key == "cache-control"] == [expected]
            assert "Accept-Encoding" in (reply["vary"] or "") or reply.status != 200


async def test_the_guard_denies_a_get_before_its_message_is_looked_at():
    async def deny(continuation, details):
        assert details.method == LOOK
        assert ("x-token", "t") in details.invocation_metadata

        async def refuse(request, context):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        return grpc.unary_unary_rpc_method_handler(refuse)

    async with serving(interceptors=[Wrap(deny)], look=echo) as server:
        path = f"{LOOK}?encoding=json&message=nonsense"
        reply = await ask(server.http_url, "GET", path, b"", [("x-token", "t")])
        assert (reply.status, reply["cache-control"]) == (401, "no-store")


async def test_a_url_counts_as_a_header():
    async with serving(look=echo, limits=Limits(max_metadata_bytes=4096)) as server:
        fits, over = Ask(text="x" * 2000).SerializeToString(), Ask(text="x" * 3200).SerializeToString()
        assert (await ask(server.http_url, "GET", query(fits))).status == 200
        reply = await ask(server.http_url, "GET", query(over))
        assert (reply.status, reply.json()["code"]) == (429, "resource_exhausted")
        assert "4096" in reply.json()["message"]
        reply = await ask(server.http_url, "GET", query(Ask(text="x" * 100_000).SerializeToString()))
        assert reply.status in (429, 431)


async def test_deadlines_hold_for_get():
    async def hang(request, context):
        await asyncio.Event().wait()

    async with serving(look=hang) as server:
        reply = await ask(server.http_url, "GET", query(b""), b"", [("connect-timeout-ms", "200")])
        assert (reply.status, reply.json()["code"]) == (504, "deadline_exceeded")


async def test_a_client_that_leaves_cancels_a_get():
    from support.http1 import Connection

    started, ended = asyncio.Event(), asyncio.Event()

    async def hang(request, context):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(look=hang) as server, asyncio.timeout(20):
        async with await Connection.open(server.http_url) as connection:
            await connection.ask("GET", query(b""))
            await started.wait()
        await ended.wait()
