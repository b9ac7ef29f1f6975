"""What breaks inside tells nothing outside, and can be found in the log by its reference."""

import logging
import re

import grpc
import grpc.aio
import pytest

from quill.errors import Code, ErrorDetail, InvalidUsage, NotFound, RpcError
from support.http1 import enveloped, post
from support.probe import CANARY, CHAT, STREAM, UNARY, Answer, Ask, Stub, outcome, serving

REFERENCE = re.compile(r"internal error; reference ([0-9a-f]{12})")


class OddError(Exception):
    """An exception whose own text cannot even be made."""

    def __str__(self):
        raise ValueError(CANARY)


async def unary_raises(request, context):
    raise RuntimeError(CANARY)


async def stream_raises(request, context):
    yield Answer(text="before")
    raise RuntimeError(CANARY)


async def unary_odd(request, context):
    raise OddError


async def stream_odd(request, context):
    yield Answer(text="before")
    raise OddError


async def unary_wrong_type(request, context):
    return CANARY


async def stream_wrong_type(request, context):
    yield Answer(text="before")
    yield CANARY


async def unary_misuses(request, context):
    raise InvalidUsage(CANARY)


async def stream_misuses(request, context):
    yield Answer(text="before")
    raise InvalidUsage(CANARY)


async def unary_foreign_status(request, context):
    raise grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), CANARY)


async def stream_foreign_status(request, context):
    yield Answer(text="before")
    raise grpc.aio.InternalError(CANARY)


async def unary_foreign_abort(request, context):
    raise grpc.aio.AbortError(CANARY)


async def stream_usage(request, context):
    yield Answer(text="before")
    raise grpc.aio.UsageError(CANARY)


def unary_blocking(request, context):
    raise RuntimeError(CANARY)


def stream_blocking(request, context):
    yield Answer(text="before")
    raise RuntimeError(CANARY)


PAIRS = [
    (unary_raises, stream_raises),
    (unary_odd, stream_odd),
    (unary_wrong_type, stream_wrong_type),
    (unary_misuses, stream_misuses),
    (unary_foreign_status, stream_foreign_status),
    (unary_foreign_abort, stream_usage),
    (unary_blocking, stream_blocking),
]


@pytest.mark.parametrize(("unary", "stream"), PAIRS, ids=lambda behaviour: behaviour.__name__)
async def test_an_internal_exception_is_a_reference_on_the_wire_and_a_traceback_in_the_log(unary, stream, caplog):
    caplog.set_level(logging.ERROR)
    told = []
    async with serving(unary=unary, stream=stream) as server, Stub(server.grpc_address) as stub:
        for call in (stub.unary(Ask()), stub.stream(Ask())):
            error = await outcome(call)
            assert error.code() is grpc.StatusCode.INTERNAL
            told.append(error.details())
            assert CANARY not in repr(error) + repr(error.trailing_metadata()) + repr(await call.initial_metadata())
        for content_type, body in (("application/proto", b""), ("application/json", b"{}")):
            reply = await post(server.http_url, UNARY, content_type, body)
            assert (reply.status, reply.json()["code"]) == (500, "internal")
            told.append(reply.json()["message"])
            assert CANARY not in repr(reply)
            reply = await post(
                server.http_url, STREAM, content_type.replace("application/", "application/connect+"), enveloped(body)
            )
            assert len(reply.messages()) == 1
            assert reply.end()["error"]["code"] == "internal"
            told.append(reply.end()["error"]["message"])
            assert CANARY not in repr(reply)
    references = [REFERENCE.fullmatch(text)[1] for text in told]
    assert len(set(references)) == len(references) == 6
    logged = {record.getMessage(): record.exc_info for record in caplog.records if record.name == "quill.server"}
    for reference in references:
        assert logged[f"internal error; reference {reference}"][1] is not None


async def test_a_deserializer_that_breaks_leaks_nothing():
    def of_value(data):
        raise ValueError(CANARY)

    def of_bug(data):
        raise KeyError(CANARY)

    async def unary(request, context):
        return Answer()

    for decode, code in ((of_value, "invalid_argument"), (of_bug, "internal")):
        async with serving(unary=unary, chat=unary, decode=decode) as server, Stub(server.grpc_address) as stub:
            error = await outcome(stub.unary(Ask()))
            assert error.code() is grpc.StatusCode[code.upper()]
            assert CANARY not in repr(error)
            reply = await post(server.http_url, UNARY, "application/proto")
            assert reply.json()["code"] == code
            assert CANARY not in repr(reply)


async def test_a_deserializer_that_breaks_within_a_client_stream_leaks_nothing():
    def decode(data):
        raise KeyError(CANARY)

    async def chat(requests, context):
        async for _ in requests:
            yield Answer()

    async with serving(chat=chat, decode=decode) as server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.chat(iter([Ask()])))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert CANARY not in repr(error)


async def test_a_generic_handler_that_breaks_leaks_nothing():
    class Broken(grpc.GenericRpcHandler):
        def service(self, details):
            raise RuntimeError(CANARY)

    from quill.server.server import Server

    server = Server("127.0.0.1:0", "127.0.0.1:0")
    server.add_generic_rpc_handlers((Broken(),))
    async with server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.unary(Ask()))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert CANARY not in repr(error)
        reply = await post(server.http_url, UNARY, "application/proto")
        assert (reply.status, reply.json()["code"]) == (500, "internal")
        assert CANARY not in repr(reply)


async def test_trailers_that_cannot_be_sent_do_not_leak_or_hang():
    async def bad_error(request, context):
        raise NotFound("gone", trailers=[("x-key", object())])

    async def bad_key(request, context):
        raise NotFound("gone", trailers=[("x key", CANARY)])

    async def bad_setting(request, context):
        context.set_trailing_metadata((("x-key", object()),))

    for unary in (bad_error, bad_key, bad_setting):
        async with serving(unary=unary) as server, Stub(server.grpc_address) as stub:
            error = await outcome(stub.unary(Ask(), timeout=20))
            assert error.code() is grpc.StatusCode.INTERNAL
            assert CANARY not in repr(error)
            reply = await post(server.http_url, UNARY, "application/proto")
            assert reply.json()["code"] == "internal"
            assert CANARY not in repr(reply)


async def test_a_status_set_before_an_exception_is_kept_without_its_text():
    async def unary(request, context):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("no such thing")
        raise RuntimeError(CANARY)

    async with serving(unary=unary) as server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.unary(Ask()))
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
        reply = await post(server.http_url, UNARY, "application/proto")
        assert reply.json() == {"code": "not_found", "message": "no such thing"}


async def test_an_exception_in_place_of_an_abort_changes_nothing():
    async def unary(request, context):
        try:
            await context.abort(grpc.StatusCode.ABORTED, "stop")
        finally:
            raise RuntimeError(CANARY)

    async def stream(request, context):
        yield Answer()
        await unary(request, context)

    async with serving(unary=unary, stream=stream) as server, Stub(server.grpc_address) as stub:
        for call in (stub.unary(Ask()), stub.stream(Ask())):
            error = await outcome(call)
            assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "stop")
        reply = await post(server.http_url, UNARY, "application/proto")
        assert reply.json() == {"code": "aborted", "message": "stop"}
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(b""))
        assert reply.end()["error"] == {"code": "aborted", "message": "stop"}


async def test_a_done_callback_that_breaks_changes_nothing():
    async def unary(request, context):
        context.add_done_callback(lambda _: 1 / 0)
        return Answer(text="fine")

    async with serving(unary=unary) as server:
        assert (await post(server.http_url, UNARY, "application/json", b"{}")).json() == {"text": "fine"}


async def test_unknown_services_and_methods_are_told_apart():
    async def unary(request, context):
        return Answer()

    async with serving(unary=unary) as server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.stream(Ask()))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error.details() == "service probe.v1.Probe has no method 'Stream'"
        other = server.http_url, "/other.v1.Other/Do"
        error = await outcome(stub.channel.unary_unary("/other.v1.Other/Do")(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error.details() == "this server has no service 'other.v1.Other'"
        reply = await post(*other, "application/json", b"{}")
        assert (reply.status, reply.json()) == (404, {"code": "unimplemented", "message": error.details()})
        reply = await post(*other, "application/connect+json", enveloped(b"{}"))
        assert (reply.status, reply.end()["error"]["code"]) == (200, "unimplemented")
        reply = await post(server.http_url, CHAT, "application/proto")
        assert "has no method 'Chat'" in reply.json()["message"]


@pytest.mark.parametrize("path", ["/alone", "/inference.v1.LLMService%2FGenerate", "//Do", "/"])
async def test_a_path_that_names_no_method_is_repeated(path):
    async def unary(request, context):
        return Answer()

    async with serving(unary=unary) as server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.channel.unary_unary(path)(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert repr(path) in error.details()
        reply = await post(server.http_url, "/alone", "application/json", b"{}")
        assert (reply.status, "'/alone'" in reply.json()["message"]) == (404, True)


async def test_names_are_told_apart_however_long_they_are():
    async def unary(request, context):
        return Answer()

    service = "test." * 60 + "Long"
    async with serving(unary=unary, service=service) as server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.channel.unary_unary(f"/{service}/{'x' * 5000}")(b""))
        assert error.details() == f"service {service} has no method '{'x' * 200}…'"
        error = await outcome(stub.channel.unary_unary(f"/{'y' * 5000}/Do")(b""))
        assert error.details() == f"this server has no service '{'y' * 200}…'"


@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "%" * 100_000])
async def test_a_message_of_any_length_leaves_the_status_whole(text):
    async def unary(request, context):
        raise NotFound(text, details=[ErrorDetail("test.v1.Detail", b"")])

    async with serving(unary=unary) as server, Stub(server.grpc_address) as stub:
        for _ in range(20):  # near its limit a client refuses at random
            error = await outcome(stub.unary(Ask()))
            assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details().endswith("…")
        assert text.startswith(error.details()[:-1])
        assert len(error.details()) > 300
        reply = await post(server.http_url, UNARY, "application/proto")
        assert (reply.status, reply.json()["message"]) == (404, error.details())


async def test_an_error_that_says_ok_is_an_internal_one():
    class FineError(RpcError):
        code = Code.OK

    async def unary(request, context):
        raise FineError(CANARY)

    try:
        async with serving(unary=unary) as server, Stub(server.grpc_address) as stub:
            assert (await outcome(stub.unary(Ask()))).code() is grpc.StatusCode.INTERNAL
            assert (await post(server.http_url, UNARY, "application/proto")).status == 500
    finally:
        del RpcError._classes[FineError.code]


async def test_a_message_that_fits_no_encoding_still_ends_the_call():
    async def unary(request, context):
        raise NotFound("half: \ud800")

    async with serving(unary=unary) as server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.unary(Ask(), timeout=20))
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "half: ?")
        reply = await post(server.http_url, UNARY, "application/proto")
        assert reply.json() == {"code": "not_found", "message": "half: ?"}


@pytest.mark.parametrize("status", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL])
async def test_a_method_that_a_generated_servicer_leaves_out_fills_no_log(status, caplog):
    def unary(request, context):  # as generated code does for methods that are not overridden
        context.set_code(status)
        context.set_details("Method not implemented!")
        raise NotImplementedError("Method not implemented!")

    async with serving(unary=unary) as server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.unary(Ask()))
        assert (error.code(), error.details()) == (status, "Method not implemented!")
        reply = await post(server.http_url, UNARY, "application/json", b"{}")
        assert reply.json()["message"] == "Method not implemented!"
    is_expected = status is grpc.StatusCode.UNIMPLEMENTED
    assert len(caplog.records) == (0 if is_expected else 2)
