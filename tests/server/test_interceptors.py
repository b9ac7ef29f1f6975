"""Interceptors hold both doors: what they deny is denied on every port, in every style in which people deny."""

import asyncio

import grpc
import grpc.aio
import pytest

from quill.errors import InvalidType, PermissionDenied
from quill.server.server import Server
from support.http1 import enveloped, post
from support.probe import CANARY, CHAT, STREAM, UNARY, Answer, Ask, Stub, Wrap, outcome, serving

ran = []


async def unary(request, context):
    ran.append("unary")
    return Answer(text=request.text)


async def stream(request, context):
    ran.append("stream")
    yield Answer()


async def chat(requests, context):
    ran.append("chat")
    yield Answer()


async def refuse(request, context):
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")


async def refuse_as_generator(request, context):
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")
    yield Answer()


def refuse_blocking(request, context):
    context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")


async def by_raising(continuation, details):
    raise PermissionDenied("not for you")


def by_handler(make, behaviour):
    async def intercept(continuation, details):
        return make(behaviour)

    return intercept


async def by_replacing(continuation, details):
    handler = await continuation(details)
    if handler is None:
        return None
    return handler._replace(unary_unary=refuse, unary_stream=refuse, stream_stream=refuse)


DENIALS = {
    "raising": by_raising,
    "unary handler": by_handler(grpc.unary_unary_rpc_method_handler, refuse),
    "blocking unary handler": by_handler(grpc.unary_unary_rpc_method_handler, refuse_blocking),
    "stream handler": by_handler(grpc.unary_stream_rpc_method_handler, refuse),
    "generator handler": by_handler(grpc.unary_stream_rpc_method_handler, refuse_as_generator),
    "replacing": by_replacing,
}


@pytest.mark.parametrize("style", DENIALS)
async def test_a_denied_call_is_denied_on_both_ports(style):
    ran.clear()
    async with (
        serving(interceptors=[Wrap(DENIALS[style])], unary=unary, stream=stream, chat=chat) as server,
        Stub(server.grpc_address) as stub,
        asyncio.timeout(20),
    ):
        for call in (stub.unary(Ask()), stub.stream(Ask()), stub.chat(iter([Ask()]))):
            error = await outcome(call)
            assert (error.code(), error.details()) == (grpc.StatusCode.PERMISSION_DENIED, "not for you")
        for content_type, body in (("application/proto", b""), ("application/json", b"{}")):
            reply = await post(server.http_url, UNARY, content_type, body)
            assert (reply.status, reply.json()) == (403, {"code": "permission_denied", "message": "not for you"})
        for content_type, body in (("application/connect+proto", b""), ("application/connect+json", b"{}")):
            reply = await post(server.http_url, STREAM, content_type, enveloped(body))
            assert (reply.status, reply.end()["error"]["code"]) == (200, "permission_denied")
        reply = await post(server.http_url, CHAT, "application/connect+proto", enveloped(b""))
        assert reply.end()["error"]["code"] in ("permission_denied", "unimplemented")
    assert ran == []


@pytest.mark.parametrize("style", ["raising", "unary handler", "stream handler"])
async def test_a_denied_request_is_not_parsed(style):
    async with serving(interceptors=[Wrap(DENIALS[style])], unary=unary, stream=stream) as server:
        reply = await post(server.http_url, UNARY, "application/json", b"this is no JSON")
        assert reply.status == 403
        reply = await post(server.http_url, STREAM, "application/connect+json", enveloped(b"nor is this"))
        assert reply.end()["error"]["code"] == "permission_denied"


async def test_a_denial_does_not_tell_which_methods_there_are():
    async with serving(interceptors=[Wrap(by_raising)], unary=unary) as server, Stub(server.grpc_address) as stub:
        assert (await outcome(stub.stream(Ask()))).code() is grpc.StatusCode.PERMISSION_DENIED
        for path in (STREAM, "/other.v1.Service/Method"):
            assert (await post(server.http_url, path, "application/json", b"{}")).status == 403


async def test_a_refused_call_is_answered_before_its_body_is_sent():
    from support.http1 import Connection

    async with (
        serving(interceptors=[Wrap(by_raising)], unary=unary) as server,
        await Connection.open(server.http_url) as connection,
    ):
        await connection.ask("POST", UNARY, b"", [("content-type", "application/proto"), ("content-length", "1000000")])
        assert (await connection.reply()).status == 403


async def test_interceptors_see_the_same_call_on_both_ports_and_run_in_order():
    seen = []

    def note(name):
        async def intercept(continuation, details):
            keys = sorted(key for key, _ in details.invocation_metadata if key.startswith("x-"))
            seen.append((name, details.method, keys, dict(details.invocation_metadata)["x-data-bin"]))
            return await continuation(details)

        return Wrap(intercept)

    async with serving(interceptors=[note("outer"), note("inner")], unary=unary) as server:
        async with Stub(server.grpc_address) as stub:
            await stub.unary(Ask(), metadata=(("x-data-bin", b"\x00"), ("x-token", "t")))
        await post(server.http_url, UNARY, "application/proto", b"", [("x-data-bin", "AA=="), ("x-token", "t")])
    call = (UNARY, ["x-data-bin", "x-token"], b"\x00")
    assert seen == [("outer", *call), ("inner", *call)] * 2


async def test_an_interceptor_sees_and_may_wrap_the_original_handler():
    async def shout(continuation, details):
        handler = await continuation(details)
        assert handler.unary_unary is unary
        assert handler.request_deserializer(b"\x0a\x01a") == Ask(text="a")

        async def loud(request, context):
            reply = await handler.unary_unary(request, context)
            return Answer(text=reply.text.upper())

        return handler._replace(unary_unary=loud)

    async with serving(interceptors=[Wrap(shout)], unary=unary) as server, Stub(server.grpc_address) as stub:
        assert (await stub.unary(Ask(text="hi"))).text == "HI"
        assert (await post(server.http_url, UNARY, "application/json", b'{"text":"hi"}')).json() == {"text": "HI"}


async def test_an_interceptor_may_answer_for_a_method_that_is_not_registered():
    async def answer(continuation, details):
        return grpc.unary_unary_rpc_method_handler(unary, Ask.FromString, Answer.SerializeToString)

    async with serving(interceptors=[Wrap(answer)], stream=stream) as server, Stub(server.grpc_address) as stub:
        assert (await stub.unary(Ask(text="hi"))).text == "hi"
        reply = await post(server.http_url, UNARY, "application/proto", Ask(text="hi").SerializeToString())
        assert Answer.FromString(reply.body).text == "hi"


async def crash(continuation, details):
    raise RuntimeError(CANARY)


async def forget_to_await(continuation, details):
    return "no handler"


async def cancel(continuation, details):
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("intercept", "code"), [(crash, "INTERNAL"), (forget_to_await, "INTERNAL"), (cancel, "CANCELLED")]
)
async def test_an_interceptor_that_breaks_lets_nobody_through_and_tells_nothing(intercept, code):
    ran.clear()
    async with (
        serving(interceptors=[Wrap(intercept)], unary=unary, stream=stream) as server,
        Stub(server.grpc_address) as stub,
        asyncio.timeout(20),
    ):
        for call in (stub.unary(Ask()), stub.stream(Ask())):
            error = await outcome(call)
            assert error.code() is grpc.StatusCode[code]
            assert CANARY not in repr(error)
        reply = await post(server.http_url, UNARY, "application/proto")
        assert reply.json()["code"] in ("internal", "canceled")
        assert CANARY.encode() not in reply.body
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(b""))
        assert reply.end()["error"]["code"] in ("internal", "canceled")
        assert CANARY.encode() not in reply.body
    assert ran == []


async def test_what_one_request_sets_is_unknown_to_the_next_on_its_connection():
    from quill.principal import Principal, current_principal
    from support.http1 import Connection

    async def name_some(continuation, details):
        metadata = dict(details.invocation_metadata)
        if "x-name" in metadata:
            current_principal.set(Principal(metadata["x-name"]))
        return await continuation(details)

    async def who(request, context):
        return Answer(text=current_principal.get().name)

    kind = ("content-type", "application/json")
    large = b'{"text":"%s"}' % (b"x" * 1_000_000)
    async with (
        serving(interceptors=[Wrap(name_some)], unary=who) as server,
        await Connection.open(server.http_url) as connection,
    ):
        # A large body makes the host pause and resume reading within the first request; then two in a pipeline.
        await connection.ask("POST", UNARY, large, [kind, ("x-name", "ada")])
        assert (await connection.reply()).json() == {"text": "ada"}
        await connection.ask("POST", UNARY, b"{}", [kind])
        assert (await connection.reply()).json() == {"text": "anonymous"}
        await connection.ask("POST", UNARY, large, [kind, ("x-name", "ada")])
        await connection.ask("POST", UNARY, b"{}", [kind])
        assert [(await connection.reply()).json()["text"] for _ in range(2)] == ["ada", "anonymous"]


async def test_an_interceptor_of_another_kind_is_refused():
    with pytest.raises(InvalidType, match="object"):
        Server(interceptors=[object()])
