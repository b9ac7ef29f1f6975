"""What the two clients under test have in common: the call that a case asks for, and the account of its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frames import to_headers
from gen import service_pb2
from gen.client_compat_pb2 import ClientCompatRequest, ClientCompatResponse
from gen.config_pb2 import (
    CODEC_JSON,
    COMPRESSION_GZIP,
    COMPRESSION_IDENTITY,
    COMPRESSION_ZSTD,
    HTTP_VERSION_2,
    PROTOCOL_CONNECT,
    PROTOCOL_GRPC,
    PROTOCOL_GRPC_WEB,
    STREAM_TYPE_CLIENT_STREAM,
    STREAM_TYPE_UNARY,
    Code,
)
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from quill import ClientTls, ResponseMetadata, RpcError

PROTOCOLS = {PROTOCOL_CONNECT: "connect", PROTOCOL_GRPC: "grpc", PROTOCOL_GRPC_WEB: "grpc-web"}
COMPRESSIONS = {COMPRESSION_IDENTITY: None, COMPRESSION_GZIP: "gzip", COMPRESSION_ZSTD: "zstd"}


@dataclass
class Case:
    """One test case, and what has come of it so far."""

    request: ClientCompatRequest
    folder: Path
    """For the files of a client certificate."""
    response: ResponseMetadata = field(default_factory=ResponseMetadata)
    replies: list[Any] = field(default_factory=list)
    sent: int = 0
    """How many requests were taken."""

    @property
    def has_one_reply(self) -> bool:
        """Whether the method has one reply."""
        return self.request.stream_type in (STREAM_TYPE_UNARY, STREAM_TYPE_CLIENT_STREAM)

    @property
    def is_json(self) -> bool:
        """Whether messages go as JSON."""
        return self.request.codec == CODEC_JSON

    def settings(self) -> dict[str, Any]:
        """The settings of a client of its own for this case. Nothing may be sent twice, and no deadline be told."""
        request = self.request
        is_grpc = request.protocol == PROTOCOL_GRPC
        scheme = ("grpc" if is_grpc else "http") + ("s" if request.server_tls_cert else "")
        return {
            "base_url": f"{scheme}://{request.host}:{request.port}",
            "protocol": PROTOCOLS[request.protocol],
            "http2": not is_grpc and request.http_version == HTTP_VERSION_2,
            "timeout_ms": None,
            "tls": self._tls() if request.server_tls_cert else None,
            "compression": COMPRESSIONS[request.compression],
            "compress_from_bytes": 0,
            "max_message_bytes": request.message_receive_limit or 2**31 - 1,
            "max_attempts": 1,
            "use_get": request.use_get_http_method,
        }

    def options(self) -> dict[str, Any]:
        """What every call takes besides its request."""
        values = {header.name: ", ".join(header.value) for header in self.request.request_headers}
        timeout_ms = self.request.timeout_ms if self.request.HasField("timeout_ms") else None
        return {"headers": values, "timeout_ms": timeout_ms, "response": self.response}

    def requests(self) -> list[Any]:
        """The requests, as messages or as dicts."""
        return [self._sendable(_unpacked(packed)) for packed in self.request.request_messages]

    def answer(self, error: BaseException | None) -> ClientCompatResponse:
        """The account of the call, which ended so."""
        answer = ClientCompatResponse(test_name=self.request.test_name)
        result = answer.response
        result.payloads.extend(self._payload(reply) for reply in self.replies)
        result.response_headers.extend(to_headers(self.response.headers))
        result.response_trailers.extend(to_headers(self.response.trailers))
        result.num_unsent_requests = len(self.request.request_messages) - self.sent
        if isinstance(error, RpcError):
            result.error.code = Code.ValueType(error.code.grpc_number)
            result.error.message = error.message
            for detail in error.details:
                result.error.details.add(type_url=f"type.googleapis.com/{detail.type_name}", value=detail.value)
        elif error is not None:
            answer.error.message = f"{type(error).__name__}: {error}"
        return answer

    def _sendable(self, message: Message) -> Any:
        return json_format.MessageToDict(message) if self.is_json else message

    def _payload(self, reply: Any) -> service_pb2.ConformancePayload:
        if isinstance(reply, Mapping):
            return json_format.ParseDict(reply.get("payload", {}), service_pb2.ConformancePayload())
        payload: service_pb2.ConformancePayload = reply.payload
        return payload

    def _tls(self) -> ClientTls:
        creds = self.request.client_tls_creds
        if not creds.cert:
            return ClientTls(ca=self.request.server_tls_cert)
        cert, key = self.folder / "cert.pem", self.folder / "key.pem"
        if not key.exists():
            cert.write_bytes(creds.cert)
            key.write_bytes(creds.key)
        return ClientTls(ca=self.request.server_tls_cert, cert=cert, key=key)


def _unpacked(packed: AnyMessage) -> Message:
    name = packed.type_url.rpartition("/")[2].rpartition(".")[2]
    message: Message = GetMessageClass(service_pb2.DESCRIPTOR.message_types_by_name[name]).FromString(packed.value)
    return message
