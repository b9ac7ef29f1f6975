"""Reflection, v1 and v1alpha: what is registered, described in full, and nothing else; grpcio's own client reads it."""

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from quill.proto import TensorServiceServicer, add_TensorServiceServicer_to_server
from quill.server.server import Server
from support.http1 import enveloped, post
from support.probe import SERVICE, Answer, Stub, Wrap, register, serving

ON = {"reflection": True}
V1, V1ALPHA = "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"
METHODS = [f"/{service}/ServerReflectionInfo" for service in (V1, V1ALPHA)]
Request, Response = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse


async def unary(request, context):
    return Answer()


async def answers(server, method, *requests):
    """The replies to several questions over gRPC, with the method's path given: both versions have one form."""
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        ask = channel.stream_stream(
            method, request_serializer=Request.SerializeToString, response_deserializer=Response.FromString
        )
        return [reply async for reply in ask(iter(requests))]


def files(reply):
    protos = map(descriptor_pb2.FileDescriptorProto.FromString, reply.file_descriptor_response.file_descriptor_proto)
    return {proto.name: proto for proto in protos}


@pytest.mark.parametrize("method", METHODS)
async def test_registered_services_are_listed_in_both_versions(method):
    async with serving(unary=unary, options=ON) as server:
        (reply,) = await answers(server, method, Request(host="h", list_services="*"))
        names = [service.name for service in reply.list_services_response.service]
        assert names == sorted(["grpc.health.v1.Health", V1, V1ALPHA, SERVICE])
        assert (reply.valid_host, reply.original_request.list_services) == ("h", "*")


@pytest.mark.parametrize("method", METHODS)
async def test_files_come_by_symbol_and_by_name_with_what_they_import(method):
    server = Server("127.0.0.1:0", None, reflection=True)
    add_TensorServiceServicer_to_server(TensorServiceServicer(), server)
    async with server:
        name = "inference/v1/tensor_service.proto"
        by_service, by_method, by_message, by_name = await answers(
            server,
            method,
            Request(file_containing_symbol="inference.v1.TensorService"),
            Request(file_containing_symbol="inference.v1.TensorService.Infer"),
            Request(file_containing_symbol="inference.v1.InferRequest"),
            Request(file_by_filename=name),
        )
        assert set(files(by_service)) >= {name, "inference/v1/tensor.proto"}
        assert files(by_service) == files(by_method) == files(by_message) == files(by_name)
        assert next(iter(files(by_service))) == name
        original = descriptor_pb2.FileDescriptorProto()
        descriptor_pool.Default().FindFileByName(name).CopyToProto(original)
        assert files(by_name)[name] == original


@pytest.mark.parametrize("version", [V1, V1ALPHA])
async def test_reflection_describes_itself_so_that_a_client_can_read_every_service(version):
    async with serving(unary=unary, options=ON) as server:
        (reply,) = await answers(server, METHODS[0], Request(file_containing_symbol=version))
        pool = descriptor_pool.DescriptorPool()
        for proto in reversed(files(reply).values()):
            pool.Add(proto)
        method = pool.FindServiceByName(version).methods_by_name["ServerReflectionInfo"]
        assert method.client_streaming
        assert method.server_streaming
        ours, theirs = method.input_type, Request.DESCRIPTOR
        assert [(field.name, field.number) for field in ours.fields] == [
            (field.name, field.number) for field in theirs.fields
        ]
        assert ours.full_name == version.rpartition(".")[0] + ".ServerReflectionRequest"


async def test_what_is_not_registered_is_not_told_though_the_process_knows_it():
    async with serving(unary=unary, options=ON) as server:
        assert descriptor_pool.Default().FindServiceByName("inference.v1.LLMService")
        replies = await answers(
            server,
            METHODS[0],
            Request(file_containing_symbol="inference.v1.LLMService"),
            Request(file_by_filename="inference/v1/llm.proto"),
            Request(file_containing_symbol="no.such.Thing"),
            Request(file_containing_symbol=""),
            Request(file_by_filename="no/such.proto"),
            Request(all_extension_numbers_of_type="inference.v1.GenerateRequest"),
            Request(file_containing_extension={"containing_type": "probe.v1.Ask", "extension_number": 5}),
            Request(list_services=""),
            Request(),
        )
        assert [reply.error_response.error_code for reply in replies] == [5, 5, 5, 5, 5, 5, 5, 0, 3]


async def test_extensions_are_told():
    file = descriptor_pb2.FileDescriptorProto(name="extended/v1/a.proto", package="extended.v1", syntax="proto2")
    base = file.message_type.add(name="Base")
    base.extension_range.add(start=100, end=200)
    types = descriptor_pb2.FieldDescriptorProto
    for number in (107, 101):
        extension = file.extension.add(name=f"e{number}", number=number, extendee=".extended.v1.Base")
        extension.type, extension.label = types.TYPE_INT32, types.LABEL_OPTIONAL
    service = file.service.add(name="Extended")
    service.method.add(name="Unary", input_type=".extended.v1.Base", output_type=".extended.v1.Base")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    async with serving(unary=unary, service="extended.v1.Extended", options=ON) as server:
        numbers, found = await answers(
            server,
            METHODS[0],
            Request(all_extension_numbers_of_type="extended.v1.Base"),
            Request(file_containing_extension={"containing_type": "extended.v1.Base", "extension_number": 101}),
        )
        assert numbers.all_extension_numbers_response.base_type_name == "extended.v1.Base"
        assert list(numbers.all_extension_numbers_response.extension_number) == [101, 107]
        assert list(files(found)) == ["extended/v1/a.proto"]


async def test_grpcios_own_client_reads_it():
    import asyncio

    def read(address):
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = descriptor_pool.DescriptorPool(database)
            names = sorted(database.get_services())
            return names, pool.FindServiceByName(SERVICE).methods_by_name["Chat"].client_streaming

    async with serving(unary=unary, options=ON) as server:
        names, streams = await asyncio.to_thread(read, server.grpc_address)
        assert SERVICE in names
        assert streams is True


@pytest.mark.parametrize("method", METHODS)
async def test_it_is_served_over_connect_and_grpc_web(method):
    async with serving(unary=unary, options=ON) as server:
        question = enveloped(Request(list_services="*").SerializeToString())
        for kind in ("application/connect+proto", "application/grpc-web+proto"):
            reply = await post(server.http_url, method, kind, question)
            listed = Response.FromString(reply.messages()[0]).list_services_response.service
            assert SERVICE in [service.name for service in listed]
    async with serving(unary=unary, options=ON) as server:
        reply = await post(server.http_url, METHODS[1], "application/connect+json", enveloped(b'{"listServices":"*"}'))
        assert SERVICE.encode() in reply.messages()[0]


async def test_it_is_off_unless_asked_for():
    async with serving(unary=unary) as server:
        for method in METHODS:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await answers(server, method, Request(list_services="*"))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_guard_holds_it_too():
    async def deny(continuation, details):
        async def refuse(request, context):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")

        return grpc.unary_unary_rpc_method_handler(refuse)

    async with serving(interceptors=[Wrap(deny)], unary=unary, options=ON) as server:
        for method in METHODS:
            with pytest.raises(grpc.aio.AioRpcError, match="not for you"):
                await answers(server, method, Request(list_services="*"))


async def test_the_users_own_reflection_is_left_alone():
    server = Server("127.0.0.1:0", None, reflection=True)
    register(server, unary=unary)
    reflection.enable_server_reflection(["only.this"], server)
    async with server, Stub(server.grpc_address) as stub:
        request = reflection_pb2_grpc.ServerReflectionStub(stub.channel).ServerReflectionInfo
        (reply,) = [reply async for reply in request(iter([Request(list_services="*")]))]
        assert [service.name for service in reply.list_services_response.service] == ["only.this"]
