"""JSON over gRPC with the descriptors of the server: plain grpcio servers, and services that nobody imported."""

import asyncio
import contextlib
import threading

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as pb

from quill import AsyncQuillClient, DeadlineExceeded, InvalidArgument, InvalidUsage, QuillClient, Unavailable

SERVICE = "foreign.v1.Clock"
FIELD = descriptor_pb2.FieldDescriptorProto


def _foreign_pool():
    """A contract in two files of its own, in a pool that Quill's client cannot see."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    parts = descriptor_pb2.FileDescriptorProto(name="foreign/parts.proto", package="foreign.v1", syntax="proto3")
    parts.dependency.append("google/protobuf/timestamp.proto")
    moment = parts.message_type.add(name="Moment")
    moment.field.add(name="at_time", number=1, type=FIELD.TYPE_MESSAGE, type_name=".google.protobuf.Timestamp", label=1)
    moment.field.add(name="hop_count", number=2, type=FIELD.TYPE_INT64, label=1)
    clock = descriptor_pb2.FileDescriptorProto(name="foreign/clock.proto", package="foreign.v1", syntax="proto3")
    clock.dependency.append("foreign/parts.proto")
    service = clock.service.add(name="Clock")
    for name, up, down in (("Echo", False, False), ("Tick", False, True), ("Chat", True, True)):
        service.method.add(
            name=name,
            input_type=".foreign.v1.Moment",
            output_type=".foreign.v1.Moment",
            client_streaming=up,
            server_streaming=down,
        )
    for file in (parts, clock):
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _foreign_pool()
Moment = message_factory.GetMessageClass(POOL.FindMessageTypeByName("foreign.v1.Moment"))


async def _echo(request, context):
    return request


async def _tick(request, context):
    for index in range(3):
        yield Moment(hop_count=index + request.hop_count)


async def _chat(requests, context):
    async for request in requests:
        yield request


@contextlib.contextmanager
def serving(host, *, reflects=True, v1=False):
    """A plain grpc.aio server. Yields its URL and the reflection calls that it has had."""
    asked = []

    class Count(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            if "Reflection" in details.method:
                asked.append(details.method)
            return await continuation(details)

    async def start():
        server = grpc.aio.server(interceptors=[Count()])
        serializers = {"request_deserializer": Moment.FromString, "response_serializer": Moment.SerializeToString}
        handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(_echo, **serializers),
            "Tick": grpc.unary_stream_rpc_method_handler(_tick, **serializers),
            "Chat": grpc.stream_stream_rpc_method_handler(_chat, **serializers),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        if reflects:
            reflection.enable_server_reflection([SERVICE], server, pool=POOL)
        if v1:
            server.add_generic_rpc_handlers((_one_file_at_a_time(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = host.run(start())
    try:
        yield f"grpc://127.0.0.1:{port}", asked
    finally:
        host.run(server.stop(0))


def _one_file_at_a_time():
    """Version 1, which grpcio-reflection does not serve: each reply has one file, without those that it needs."""

    async def info(requests, context):
        async for request in requests:
            try:
                if request.file_containing_symbol:
                    file = POOL.FindFileContainingSymbol(request.file_containing_symbol)
                else:
                    file = POOL.FindFileByName(request.file_by_filename)
            except KeyError:
                yield pb.ServerReflectionResponse(error_response=pb.ErrorResponse(error_code=5, error_message="no"))
                continue
            yield pb.ServerReflectionResponse(
                valid_host="x" * 300,
                file_descriptor_response=pb.FileDescriptorResponse(file_descriptor_proto=[file.serialized_pb]),
            )

    handler = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=pb.ServerReflectionRequest.FromString,
        response_serializer=pb.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        "grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": handler}
    )


@pytest.fixture(scope="module")
def foreign(host):
    with serving(host) as (url, _):
        yield url


WHEN = {"atTime": "2024-02-29T12:00:00.250Z", "hopCount": "9007199254740993"}


def test_a_dict_goes_and_comes_without_any_stub(foreign, drive):
    client = drive(foreign)
    assert client.call_json(SERVICE, "Echo", WHEN) == WHEN
    assert client.call_json(SERVICE, "Echo", {"at_time": WHEN["atTime"]}) == {"atTime": WHEN["atTime"]}


def test_json_bytes_are_transcoded_too(foreign, drive):
    assert drive(foreign).call(SERVICE, "Echo", b'{"hopCount": 7}') == b'{"hopCount":"7"}'


def test_streams_of_replies_and_of_requests_are_transcoded(foreign, drive):
    client = drive(foreign)
    assert client.stream_json(SERVICE, "Tick", {"hopCount": 1}) == [{"hopCount": str(count)} for count in (1, 2, 3)]
    assert client.stream_json(SERVICE, "Chat", [{"hopCount": 1}, {}]) == [{"hopCount": "1"}, {}]
    assert client.stream(SERVICE, "Tick", b"{}", codec="json")[1] == b'{"hopCount":"1"}'


def test_a_wrong_field_is_named_by_the_servers_descriptor(foreign, drive):
    with pytest.raises(InvalidArgument, match="hop"):
        drive(foreign).call_json(SERVICE, "Echo", {"hopCount": "many"})


def test_a_call_of_the_wrong_kind_is_refused_by_the_servers_descriptor(foreign, drive):
    client = drive(foreign)
    with pytest.raises(InvalidUsage, match="use stream"):
        client.call_json(SERVICE, "Tick", {})
    with pytest.raises(InvalidUsage, match="use call"):
        client.stream_json(SERVICE, "Echo", {})


def test_the_server_is_asked_once_for_each_service(host, drive):
    with serving(host) as (url, asked):
        client = drive(url)
        for _ in range(3):
            client.call_json(SERVICE, "Echo", {})
        assert asked.count("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") == 1


def test_many_threads_ask_once(host):
    with serving(host) as (url, asked), QuillClient(url) as client:
        replies = []
        threads = [
            threading.Thread(target=lambda: replies.append(client.call_json(SERVICE, "Echo", WHEN))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert replies == [WHEN] * 8
        assert sum("v1alpha" in method for method in asked) == 1


async def test_many_tasks_ask_once(host):
    with serving(host) as (url, asked):
        async with AsyncQuillClient(url) as client:
            assert await asyncio.gather(*(client.call_json(SERVICE, "Echo", WHEN) for _ in range(8))) == [WHEN] * 8
        assert sum("v1alpha" in method for method in asked) == 1


def test_version_1_is_asked_first_and_files_are_fetched_by_name(host, drive):
    with serving(host, v1=True) as (url, asked):
        assert drive(url).call_json(SERVICE, "Echo", WHEN) == WHEN
        assert asked == ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] * 3


def test_a_server_without_reflection_is_asked_once_and_stubs_serve(host, drive):
    with serving(host, reflects=False) as (url, asked):
        client = drive(url)
        for _ in range(2):
            with pytest.raises(InvalidUsage, match=r"foreign\.v1\.Clock/Echo.*reflection.*_pb2"):
                client.call_json(SERVICE, "Echo", {})
        assert len(asked) == 2  # both versions, once


def test_a_service_that_the_server_does_not_know_falls_back_to_stubs(foreign, drive):
    with pytest.raises(InvalidUsage, match="reflection"):
        drive(foreign).call_json("nobody.v1.Knows", "Echo", {})


def test_a_server_that_is_not_there_is_unreachable(drive, unused_tcp_port):
    with pytest.raises(Unavailable, match=str(unused_tcp_port)):
        drive(f"grpc://127.0.0.1:{unused_tcp_port}").call_json(SERVICE, "Echo", {}, timeout_ms=5000)


def test_a_server_that_does_not_answer_ends_the_call_in_time(host, drive):
    async def stall(reader, writer):
        await asyncio.Event().wait()

    with host.tcp(stall) as port, pytest.raises(DeadlineExceeded, match="300 ms"):
        drive(f"grpc://127.0.0.1:{port}").call_json(SERVICE, "Echo", {}, timeout_ms=300)


def test_reflection_gets_the_headers_of_the_call(host, drive):
    seen = []

    class Look(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            seen.append(dict(details.invocation_metadata).get("authorization"))
            return await continuation(details)

    async def start():
        server = grpc.aio.server(interceptors=[Look()])
        reflection.enable_server_reflection([SERVICE], server, pool=POOL)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = host.run(start())
    client = drive(f"grpc://127.0.0.1:{port}")
    client.client.set_bearer_token("t")
    with contextlib.suppress(Exception):
        client.call_json(SERVICE, "Echo", {})
    host.run(server.stop(0))
    assert set(seen) == {"Bearer t"}
