"""Unary calls on both ports: messages, metadata, trailers and errors agree."""

import asyncio
import json
import subprocess

import grpc
import httpcore
import pytest
from google.rpc import error_details_pb2, status_pb2

from quill.errors import Code, ErrorDetail, NotFound, RpcError
from support.http1 import post
from support.probe import UNARY, Answer, Ask, Stub, outcome, register, serving


async def echo(request, context):
    return Answer(text=request.text, count=request.count, blob=request.blob)


async def test_one_servicer_answers_grpc_proto_and_json():
    async with serving(unary=echo) as server, Stub(server.grpc_address) as stub:
        ask = Ask(text="Grüße", count=-3, blob=b"\xff\x00")
        assert await stub.unary(ask) == Answer(text="Grüße", count=-3, blob=b"\xff\x00")
        reply = await post(server.http_url, UNARY, "application/proto", ask.SerializeToString())
        assert (reply.status, reply["content-type"]) == (200, "application/proto")
        assert Answer.FromString(reply.body) == Answer(text="Grüße", count=-3, blob=b"\xff\x00")
        document = json.dumps({"text": "Grüße", "count": -3, "blob": "/wA="})
        reply = await post(server.http_url, UNARY, "application/json; charset=utf-8", document.encode())
        assert (reply.status, reply["content-type"]) == (200, "application/json")
        assert reply.json() == {"text": "Grüße", "count": -3, "blob": "/wA="}
        assert b'":"' in reply.body, "compact JSON"


async def test_empty_messages_are_messages():
    async with serving(unary=echo) as server:
        assert (await post(server.http_url, UNARY, "application/proto")).body == b""
        reply = await post(server.http_url, UNARY, "application/json", b"{}")
        assert (reply.status, reply.body) == (200, b"{}")


async def test_curl_calls_with_json():
    async with serving(unary=echo) as server:
        process = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "-m", "20", "-H", "content-type: application/json", "-d", '{"text": "hi"}'),
            server.http_url + UNARY,
            stdout=subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert json.loads(out) == {"text": "hi"}


async def test_a_kept_connection_carries_many_calls():
    def calls(url):
        with httpcore.ConnectionPool(max_connections=1) as pool:
            replies = [
                pool.request("POST", url + UNARY, headers={"content-type": "application/json"}, content=b'{"count":7}')
                for _ in range(20)
            ]
            return {reply.content for reply in replies}, len(pool.connections)

    async with serving(unary=echo) as server:
        assert await asyncio.to_thread(calls, server.http_url) == ({b'{"count":7}'}, 1)


async def test_metadata_reaches_the_handler_alike_on_both_ports():
    seen = []

    async def look(request, context):
        metadata = dict(context.invocation_metadata())
        seen.append({key: value for key, value in metadata.items() if key.startswith("x-")})
        assert "user-agent" in metadata
        assert not {"content-type", "content-length", "host", "connect-protocol-version"} & set(metadata)
        return Answer()

    async with serving(unary=look) as server, Stub(server.grpc_address) as stub:
        await stub.unary(Ask(), metadata=(("x-text", "a b"), ("x-raw-bin", b"\x00\xff")))
        headers = [("X-Text", "a b"), ("x-raw-bin", "AP8"), ("user-agent", "test"), ("connect-protocol-version", "1")]
        assert (await post(server.http_url, UNARY, "application/proto", b"", headers)).status == 200
    assert seen == [{"x-text": "a b", "x-raw-bin": b"\x00\xff"}] * 2


async def test_initial_and_trailing_metadata_come_back_on_both_ports():
    async def tell(request, context):
        await context.send_initial_metadata((("x-first", "1"), ("x-first-bin", b"\x01\xfe")))
        context.set_trailing_metadata((("x-last", "2"), ("x-last", "3"), ("x-last-bin", b"\x02\xfd")))
        return Answer()

    async with serving(unary=tell) as server, Stub(server.grpc_address) as stub:
        call = stub.unary(Ask())
        await call
        assert tuple(await call.initial_metadata()) == (("x-first", "1"), ("x-first-bin", b"\x01\xfe"))
        assert tuple(await call.trailing_metadata()) == (
            ("x-last", "2"),
            ("x-last", "3"),
            ("x-last-bin", b"\x02\xfd"),
        )
        reply = await post(server.http_url, UNARY, "application/proto")
        mine = [(key, value) for key, value in reply.headers if "x-" in key]
        assert mine == [
            ("x-first", "1"),
            ("x-first-bin", "Af4"),
            ("trailer-x-last", "2"),
            ("trailer-x-last", "3"),
            ("trailer-x-last-bin", "Av0"),
        ]


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_every_status_has_its_number_name_and_http_status(code):
    async def fail(request, context):
        raise RpcError.of(code, "no luck: ü")

    async with serving(unary=fail) as server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.unary(Ask()))
        assert (error.code().value[0], error.details()) == (code.grpc_number, "no luck: ü")
        reply = await post(server.http_url, UNARY, "application/proto")
        assert reply.status == code.http_status
        assert reply["content-type"] == "application/json"
        assert reply.json() == {"code": code.connect_name, "message": "no luck: ü"}


async def test_details_and_trailers_of_a_quill_error_travel_on_both_ports():
    detail = error_details_pb2.RetryInfo()
    detail.retry_delay.seconds = 3
    serialized = detail.SerializeToString()

    async def fail(request, context):
        context.set_trailing_metadata((("x-before", "kept"),))
        raise NotFound(
            "gone", details=[ErrorDetail("google.rpc.RetryInfo", serialized)], trailers=[("x-after", "added")]
        )

    async with serving(unary=fail) as server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.unary(Ask()))
        trailers = dict(error.trailing_metadata())
        assert (trailers["x-before"], trailers["x-after"]) == ("kept", "added")
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        assert (status.code, status.message) == (5, "gone")
        assert status.details[0].type_url == "type.googleapis.com/google.rpc.RetryInfo"
        assert status.details[0].value == serialized
        reply = await post(server.http_url, UNARY, "application/json", b"{}")
        assert reply.json()["details"] == [{"type": "google.rpc.RetryInfo", "value": "CgIIAw"}]
        assert (reply["trailer-x-before"], reply["trailer-x-after"]) == ("kept", "added")
        assert reply["trailer-grpc-status-details-bin"] is None


async def test_details_as_grpcio_status_writes_them_become_connect_details():
    status = status_pb2.Status(code=9, message="rich")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="R"))

    async def fail(request, context):
        trailers = (("grpc-status-details-bin", status.SerializeToString()), ("x-kept", "yes"))
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "rich", trailers)

    async with serving(unary=fail) as server:
        reply = await post(server.http_url, UNARY, "application/proto")
        assert reply.status == 400
        assert reply.json()["details"] == [{"type": "google.rpc.ErrorInfo", "value": "CgFS"}]
        assert reply["trailer-x-kept"] == "yes"


async def test_a_status_that_is_set_and_not_raised_ends_the_call():
    async def fail(request, context):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("looked everywhere")
        assert context.code() is grpc.StatusCode.NOT_FOUND
        assert context.details() in ("looked everywhere", b"looked everywhere")

    async with serving(unary=fail) as server, Stub(server.grpc_address) as stub:
        error = await outcome(stub.unary(Ask()))
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "looked everywhere")
        reply = await post(server.http_url, UNARY, "application/json", b"{}")
        assert (reply.status, reply.json()) == (404, {"code": "not_found", "message": "looked everywhere"})


async def test_an_abort_that_the_handler_swallows_still_ends_the_call():
    async def fail(request, context):
        try:
            await context.abort(grpc.StatusCode.ABORTED, "stop")
        except grpc.aio.AbortError:
            return Answer(text="went on")

    async with serving(unary=fail) as server, Stub(server.grpc_address) as stub:
        assert (await outcome(stub.unary(Ask()))).code() is grpc.StatusCode.ABORTED
        assert (await post(server.http_url, UNARY, "application/json", b"{}")).json()["code"] == "aborted"


async def test_peer_deadline_and_done_callback_are_there_on_both_ports():
    seen = []

    async def look(request, context):
        context.add_done_callback(lambda done: seen.append(done.done()))
        assert context.peer().startswith("ipv4:127.0.0.1:")
        assert (context.peer_identities(), context.peer_identity_key()) == (None, None)
        assert isinstance(dict(context.auth_context()), dict)
        assert not context.done()
        assert not context.cancelled()
        remaining_s = context.time_remaining()
        return Answer(text="none" if remaining_s is None else "some" if 5 < remaining_s < 61 else "wrong")

    async with serving(unary=look) as server, Stub(server.grpc_address) as stub:
        assert (await stub.unary(Ask())).text == "none"
        assert (await stub.unary(Ask(), timeout=60)).text == "some"
        assert (await post(server.http_url, UNARY, "application/json", b"{}")).json() == {"text": "none"}
        headers = [("connect-timeout-ms", "60000")]
        assert (await post(server.http_url, UNARY, "application/json", b"{}", headers)).json() == {"text": "some"}
        while len(seen) < 4:
            await asyncio.sleep(0.01)
    assert seen == [True] * 4


async def test_bad_request_bytes_are_refused_by_the_name_of_their_message():
    async with serving(unary=echo) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        error = await outcome(channel.unary_unary(UNARY)(b"\x0a\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "the request is not a valid probe.v1.Ask message"
        reply = await post(server.http_url, UNARY, "application/proto", b"\x0a\xff")
        assert reply.json() == {"code": "invalid_argument", "message": error.details()}
        reply = await post(server.http_url, UNARY, "application/json", b'{"count": "many"}')
        assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")
        assert "count" in reply.json()["message"]
        reply = await post(server.http_url, UNARY, "application/json", b"")
        assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")


async def test_unknown_json_fields_are_ignored_for_services_of_others():
    async with serving(unary=echo) as server:
        reply = await post(server.http_url, UNARY, "application/json", b'{"text": "a", "newer": 1}')
        assert reply.json() == {"text": "a"}


async def test_unknown_json_fields_are_refused_by_quills_own_services():
    from quill.proto import LLMServiceServicer, add_LLMServiceServicer_to_server
    from quill.server.server import Server

    server = Server(None, "127.0.0.1:0")
    add_LLMServiceServicer_to_server(LLMServiceServicer(), server)
    async with server:
        reply = await post(server.http_url, "/inference.v1.LLMService/Tokenize", "application/json", b'{"txt": "a"}')
        assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")
        assert "txt" in reply.json()["message"]


async def test_a_service_without_descriptor_takes_proto_and_refuses_json():
    async def raw(request, context):
        return request[::-1]

    async with serving(service="nowhere.v1.Raw", decode=None, encode=None, unary=raw) as server:
        path = "/nowhere.v1.Raw/Unary"
        assert (await post(server.http_url, path, "application/proto", b"abc")).body == b"cba"
        reply = await post(server.http_url, path, "application/json", b"{}")
        assert (reply.status, reply.json()["code"]) == (501, "unimplemented")
        assert "descriptor" in reply.json()["message"]


async def test_handlers_registered_only_as_generic_ones_are_served_alike():
    class Proxy(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method.startswith("/anything."):
                return grpc.unary_unary_rpc_method_handler(echo, Ask.FromString, Answer.SerializeToString)
            return None

    from quill.server.server import Server

    server = Server("127.0.0.1:0", "127.0.0.1:0")
    register(server, unary=echo)
    server.add_generic_rpc_handlers((Proxy(),))
    async with server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        data = Ask(text="x").SerializeToString()
        assert await channel.unary_unary("/anything.v1.S/M")(data) == data
        assert (await post(server.http_url, "/anything.v1.S/M", "application/proto", data)).body == data
