"""probe.v1.Probe: a service of all four kinds whose behaviour each test writes itself, and servers for it."""

import contextlib

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from quill.server.server import Server

SERVICE = "probe.v1.Probe"
UNARY, STREAM, COLLECT, CHAT, LOOK = (f"/{SERVICE}/{name}" for name in ("Unary", "Stream", "Collect", "Chat", "Look"))
CANARY = "canary-51c7"
"""Stands in the text of internal exceptions; must appear on no wire."""


def _file():
    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="probe/v1/probe.proto", package="probe.v1", syntax="proto3")
    for name in ("Ask", "Answer"):
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(
            (("text", types.TYPE_STRING), ("count", types.TYPE_INT32), ("blob", types.TYPE_BYTES)), 1
        ):
            message.field.add(name=field, number=number, type=kind, label=types.LABEL_OPTIONAL, json_name=field)
    service = file.service.add(name="Probe")
    for name, reads, writes in (
        ("Unary", False, False),
        ("Stream", False, True),
        ("Collect", True, False),
        ("Chat", True, True),
        ("Turns", True, True),
    ):
        service.method.add(
            name=name,
            input_type=".probe.v1.Ask",
            output_type=".probe.v1.Answer",
            client_streaming=reads,
            server_streaming=writes,
        )
    look = service.method.add(name="Look", input_type=".probe.v1.Ask", output_type=".probe.v1.Answer")
    look.options.idempotency_level = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    return file


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(_file().SerializeToString())
Ask = message_factory.GetMessageClass(_pool.FindMessageTypeByName("probe.v1.Ask"))
Answer = message_factory.GetMessageClass(_pool.FindMessageTypeByName("probe.v1.Answer"))

_KINDS = {
    "unary": ("Unary", grpc.unary_unary_rpc_method_handler),
    "stream": ("Stream", grpc.unary_stream_rpc_method_handler),
    "collect": ("Collect", grpc.stream_unary_rpc_method_handler),
    "chat": ("Chat", grpc.stream_stream_rpc_method_handler),
    "turns": ("Turns", grpc.stream_stream_rpc_method_handler),
    "look": ("Look", grpc.unary_unary_rpc_method_handler),
}


def register(server, *, service=SERVICE, decode=Ask.FromString, encode=Answer.SerializeToString, **behaviours):
    """Register behaviours (unary=, stream=, collect=, chat=, turns=, look=) as generated code does."""
    handlers = {}
    for kind, behaviour in behaviours.items():
        name, make = _KINDS[kind]
        handlers[name] = make(behaviour, request_deserializer=decode, response_serializer=encode)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_registered_method_handlers(service, handlers)


@contextlib.asynccontextmanager
async def serving(*, interceptors=(), limits=None, tls=None, auth=None, quota=None, options=(), **registration):
    """A started server on free ports; `options` are further ones of `Server`."""
    server = Server(
        "127.0.0.1:0",
        "127.0.0.1:0",
        interceptors=interceptors,
        limits=limits,
        tls=tls,
        auth=auth,
        quota=quota,
        **dict(options),
    )
    register(server, **registration)
    async with server:
        yield server


class Stub:
    """A plain grpc.aio client of the service."""

    def __init__(self, address, options=(), credentials=None):
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, options=options)
        codec = {"request_serializer": Ask.SerializeToString, "response_deserializer": Answer.FromString}
        self.unary = self.channel.unary_unary(UNARY, **codec)
        self.stream = self.channel.unary_stream(STREAM, **codec)
        self.collect = self.channel.stream_unary(COLLECT, **codec)
        self.chat = self.channel.stream_stream(CHAT, **codec)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.channel.close()


async def outcome(call):
    """How a gRPC call ends: the reply, the replies, or the AioRpcError."""
    try:
        return [reply async for reply in call] if hasattr(call, "__aiter__") else await call
    except grpc.aio.AioRpcError as error:
        return error


class Wrap(grpc.aio.ServerInterceptor):
    """An interceptor made of an async function of the continuation and the details."""

    def __init__(self, intercept):
        self._intercept = intercept

    async def intercept_service(self, continuation, handler_call_details):
        return await self._intercept(continuation, handler_call_details)
