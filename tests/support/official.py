"""connectrpc's own client for probe.v1.Probe: Connect, gRPC and gRPC-Web, over HTTP/1.1 and h2c."""

import contextlib

import pyqwest
from connectrpc.client import ConnectClient
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.protocol import ProtocolType

from support.probe import SERVICE, Answer, Ask

PROTOCOLS = {"connect": ProtocolType.CONNECT, "grpc-web": ProtocolType.GRPC_WEB, "grpc": ProtocolType.GRPC}


class _Codec:
    """google.protobuf messages; the client's own codec knows another library's only."""

    def __init__(self, name):
        self._name = name

    def name(self):
        return self._name

    def encode(self, message):
        return message.SerializeToString()

    def decode(self, data, message_class):
        return message_class.FromString(bytes(data))


_KINDS = {
    "Unary": StreamType.UNARY,
    "Look": StreamType.UNARY,
    "Stream": StreamType.SERVER_STREAM,
    "Collect": StreamType.CLIENT_STREAM,
    "Chat": StreamType.BIDI_STREAM,
}


def _method(name):
    level = IdempotencyLevel.NO_SIDE_EFFECTS if name == "Look" else IdempotencyLevel.UNKNOWN
    return MethodInfo(
        name=name,
        service_name=SERVICE,
        input=Ask,
        output=Answer,
        idempotency_level=level,
        stream_type=_KINDS[name],
    )


class Official:
    """A client of all kinds of calls."""

    def __init__(self, client):
        self.client = client

    async def unary(self, ask, **options):
        return await self.client.execute_unary(request=ask, method=_method("Unary"), **options)

    async def look(self, ask, **options):
        return await self.client.execute_unary(request=ask, method=_method("Look"), use_get=True, **options)

    def stream(self, ask, **options):
        return self.client.execute_server_stream(request=ask, method=_method("Stream"), **options)

    async def collect(self, asks, **options):
        return await self.client.execute_client_stream(request=asks, method=_method("Collect"), **options)

    def chat(self, asks, **options):
        return self.client.execute_bidi_stream(request=asks, method=_method("Chat"), **options)


@contextlib.asynccontextmanager
async def official(url, protocol="connect", *, http2=False, **options):
    """A client; requests are not compressed unless told so."""
    version = pyqwest.HTTPVersion.HTTP2 if http2 else pyqwest.HTTPVersion.HTTP1
    async with pyqwest.HTTPTransport(http_version=version) as transport:
        client = ConnectClient(
            url,
            codec=_Codec("proto"),
            protocol=PROTOCOLS[protocol],
            http_client=pyqwest.Client(transport),
            **{"send_compression": None, **options},
        )
        async with client:
            yield Official(client)


async def several(*asks):
    """A stream of requests."""
    for ask in asks:
        yield ask


async def ending(call):
    """How a call ends: the reply, the replies, or the ConnectError."""
    try:
        return [reply async for reply in call] if hasattr(call, "__aiter__") else await call
    except ConnectError as error:
        return error
