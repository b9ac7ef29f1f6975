"""test.v1.EchoService: a plain grpc.aio servicer that knows nothing of Quill, its contract built by hand."""

import asyncio

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2

SERVICE = "test.v1.EchoService"
STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
INT32 = descriptor_pb2.FieldDescriptorProto.TYPE_INT32


def _file():
    file = descriptor_pb2.FileDescriptorProto(name="test/v1/echo.proto", package="test.v1", syntax="proto3")
    fields = {
        "EchoRequest": [("text", STRING), ("count", INT32), ("fail_after", INT32)],
        "EchoReply": [("text", STRING), ("index", INT32)],
    }
    for name, members in fields.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(members, 1):
            message.field.add(name=field, number=number, type=kind, label=1, json_name=_camel(field))
    service = file.service.add(name="EchoService")
    for name, streams in (("Echo", False), ("Repeat", True)):
        service.method.add(
            name=name,
            input_type=".test.v1.EchoRequest",
            output_type=".test.v1.EchoReply",
            server_streaming=streams,
        )
    return file


def _camel(name):
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


_POOL = descriptor_pool.Default()
_POOL.AddSerializedFile(_file().SerializeToString())
EchoRequest = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("test.v1.EchoRequest"))
EchoReply = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("test.v1.EchoReply"))

CANARY = "canary-8d1f"
"""Stands in the text of internal exceptions; must appear on no wire."""


class Echo:
    """What `text` says: "fail" aborts with details, "crash" raises, "hang" waits for ever; else it echoes."""

    def __init__(self):
        self.live = 0
        self.ended = asyncio.Event()

    async def echo(self, request, context):
        await self._behave(request.text, context)
        return EchoReply(text=request.text)

    async def repeat(self, request, context):
        self.live += 1
        try:
            await context.send_initial_metadata((("x-initial", "here"),))
            for index in range(request.count):
                if request.fail_after and index == request.fail_after:
                    await self._behave("fail", context)
                yield EchoReply(text=request.text, index=index)
            await self._behave(request.text, context)
        finally:
            self.live -= 1
            self.ended.set()

    async def _behave(self, text, context):
        sent = {key: value for key, value in context.invocation_metadata() if key.startswith("x-in")}
        context.set_trailing_metadata(
            (("x-trailer", "there"), ("x-seen", ",".join(sorted(sent))), ("x-data-bin", sent.get("x-in-bin", b"")))
        )
        match text:
            case "fail":
                await context.abort_with_status(_Status())
            case "crash":
                raise RuntimeError(CANARY)
            case "hang":
                await asyncio.Event().wait()


class _Status(grpc.Status):
    """FAILED_PRECONDITION with a google.rpc.BadRequest, as grpcio-status would make it."""

    def __init__(self):
        violation = error_details_pb2.BadRequest.FieldViolation(field="text", description="says fail")
        status = status_pb2.Status(code=9, message="told to fail")
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        self.code = grpc.StatusCode.FAILED_PRECONDITION
        self.details = "told to fail"
        self.trailing_metadata = (("grpc-status-details-bin", status.SerializeToString()), ("x-trailer", "there"))


def add_to_server(echo, server):
    """Register as generated code does."""
    serializers = {"request_deserializer": EchoRequest.FromString, "response_serializer": EchoReply.SerializeToString}
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo.echo, **serializers),
        "Repeat": grpc.unary_stream_rpc_method_handler(echo.repeat, **serializers),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
