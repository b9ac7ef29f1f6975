"""Registering a TensorServicer so that nothing but itself touches the elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from quill.proto import (
    GetTensorModelRequest,
    GetTensorModelResponse,
    NegotiateLaneRequest,
    NegotiateLaneResponse,
)

if TYPE_CHECKING:
    from quill.tensors.servicer import TensorServicer

SERVICE = "inference.v1.TensorService"


def add_to_server(servicer: TensorServicer, server: grpc.aio.Server) -> None:
    """Add a servicer to ``grpc.aio.server()`` or ``quill.Server``, before it starts.

    In the place of the generated ``add_TensorServiceServicer_to_server``: Infer and StreamInfer are registered without
    (de)serializers, so that the servicer reads and writes the messages itself.
    """
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Infer": unary(servicer.Infer),
        "StreamInfer": stream(servicer.StreamInfer),
        "GetTensorModel": unary(
            servicer.GetTensorModel,
            request_deserializer=GetTensorModelRequest.FromString,
            response_serializer=GetTensorModelResponse.SerializeToString,
        ),
        "NegotiateLane": unary(
            servicer.NegotiateLane,
            request_deserializer=NegotiateLaneRequest.FromString,
            response_serializer=NegotiateLaneResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)
