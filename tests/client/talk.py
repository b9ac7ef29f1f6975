"""A peer that knows nothing of Quill and takes streams of requests: grpc.aio, and connectrpc under uvicorn."""

import asyncio
import contextlib
import socket

import grpc
import uvicorn
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.struct_pb2 import Struct
from protobuf.wkt.google.protobuf import struct_pb

SERVICE = "talk.v1.Talk"


def _file():
    file = descriptor_pb2.FileDescriptorProto(name="talk/v1/talk.proto", package="talk.v1", syntax="proto3")
    file.dependency.append("google/protobuf/struct.proto")
    service = file.service.add(name="Talk")
    for name, up, down in (("Join", True, False), ("Chat", True, True), ("Echo", False, False)):
        service.method.add(
            name=name,
            input_type=".google.protobuf.Struct",
            output_type=".google.protobuf.Struct",
            client_streaming=up,
            server_streaming=down,
        )
    return file


descriptor_pool.Default().AddSerializedFile(_file().SerializeToString())


def struct(**fields):
    """A message of the service."""
    message = Struct()
    message.update(fields)
    return message


class RefusedError(Exception):
    """How the peer ends a call with FAILED_PRECONDITION."""


class Peer:
    """What both servers do, with texts in place of messages, and what they saw."""

    def __init__(self):
        self.seen = []
        self.live = 0
        self.completed = 0

    async def join(self, texts):
        self.live += 1
        try:
            parts = [self._see(text) async for text in texts]
            await asyncio.sleep(0.05)  # grpc.aio ends the requests of a cancelled call first, and the handler then
            self.completed += 1
            return ",".join(parts)
        finally:
            self.live -= 1

    async def chat(self, texts):
        self.live += 1
        try:
            async for text in texts:
                yield self._see(text).upper()
            await asyncio.sleep(0.05)
            self.completed += 1
        finally:
            self.live -= 1

    def _see(self, text):
        self.seen.append(text)
        if text == "fail":
            raise RefusedError
        return text


class Talk:
    """Both servers, on the loop of a client.harness.Host."""

    def __init__(self, host):
        self.host = host
        self.peer = Peer()
        self.urls = {}

    def __enter__(self):
        self.host.run(self._start())
        return self

    def __exit__(self, *_):
        self.host.run(self._stop())

    async def _start(self):
        self._grpc = grpc.aio.server()
        serializers = {"request_deserializer": Struct.FromString, "response_serializer": Struct.SerializeToString}
        handlers = {
            "Join": grpc.stream_unary_rpc_method_handler(self._grpc_join, **serializers),
            "Chat": grpc.stream_stream_rpc_method_handler(self._grpc_chat, **serializers),
        }
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = self._grpc.add_insecure_port("127.0.0.1:0")
        await self._grpc.start()
        self.urls["grpc"] = f"grpc://127.0.0.1:{port}"
        listener = socket.create_server(("127.0.0.1", 0))
        self.urls["connect"] = self.urls["grpc-web"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(_Application(self.peer), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        self._http = uvicorn.Server(config)
        self._http.capture_signals = contextlib.nullcontext
        self._serving = asyncio.create_task(self._http.serve(sockets=[listener]))
        while not self._http.started:
            await asyncio.sleep(0.01)

    async def _stop(self):
        self._http.should_exit = True
        await self._serving
        await self._grpc.stop(0)

    async def _grpc_join(self, requests, context):
        try:
            return struct(text=await self.peer.join(request["text"] async for request in requests))
        except RefusedError:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "told to fail")

    async def _grpc_chat(self, requests, context):
        try:
            async for text in self.peer.chat(request["text"] async for request in requests):
                yield struct(text=text)
        except RefusedError:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "told to fail")


class _Application(ConnectASGIApplication):
    def __init__(self, peer):
        self._peer = peer
        super().__init__(service=self, endpoints=self._endpoints)

    @property
    def path(self):
        return f"/{SERVICE}"

    def _endpoints(self, _service):
        def info(name, kind):
            return MethodInfo(
                name=name,
                service_name=SERVICE,
                input=struct_pb.Struct,
                output=struct_pb.Struct,
                idempotency_level=IdempotencyLevel.UNKNOWN,
                stream_type=kind,
            )

        return {
            f"/{SERVICE}/Join": Endpoint.client_stream(
                method=info("Join", StreamType.CLIENT_STREAM), function=self._join
            ),
            f"/{SERVICE}/Chat": Endpoint.bidi_stream(method=info("Chat", StreamType.BIDI_STREAM), function=self._chat),
        }

    async def _join(self, requests, _context):
        with _refusals():
            return _struct(await self._peer.join(_text(request) async for request in requests))

    async def _chat(self, requests, _context):
        with _refusals():
            async for text in self._peer.chat(_text(request) async for request in requests):
                yield _struct(text)


@contextlib.contextmanager
def _refusals():
    try:
        yield
    except RefusedError:
        raise ConnectError(Code.FAILED_PRECONDITION, "told to fail") from None


def _text(message):
    return Struct.FromString(message.to_binary())["text"]


def _struct(text):
    return struct_pb.Struct.from_binary(struct(text=text).SerializeToString())
