"""The contract's messages through generated stubs, as upb does it: a grpc.aio server and grpcio's blocking client.

usage: python stub.py serve | python stub.py drive ADDRESS

Variant ``gzip`` compresses messages as gRPC does.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import grpc
import numpy as np
from work import Array, Receipt, announce, drive, tensor

from quill.proto import (
    DataType,
    InferRequest,
    InferResponse,
    Tensor,
    TensorMeta,
    TensorServiceStub,
)

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_FLOAT32 = DataType.DATA_TYPE_FLOAT32


def _message(array: Array) -> Tensor:
    return Tensor(meta=TensorMeta(shape=array.shape, dtype=_FLOAT32, name="x"), data=array.tobytes())


async def _infer(request: InferRequest, context: Any) -> InferResponse:
    del context
    if request.model == "put":
        receipt = Receipt.of(np.frombuffer(request.inputs[0].data, np.float32))
        return InferResponse(parameters=dict(zip("sfl", map(str, receipt.values()), strict=True)))
    return InferResponse(outputs=[_message(tensor(int(request.parameters["size"])))])


async def serve() -> None:
    """Until standard input ends."""
    server = grpc.aio.server(options=_OPTIONS)
    infer = grpc.unary_unary_rpc_method_handler(_infer, InferRequest.FromString, InferResponse.SerializeToString)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.v1.TensorService", {"Infer": infer}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(f"127.0.0.1:{port}")
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


class StubDriver:
    """One channel."""

    def __init__(self, address: str) -> None:
        self._stub = TensorServiceStub(grpc.insecure_channel(address, options=_OPTIONS))

    def put(self, array: Array, variant: str) -> Receipt:
        """One unary call."""
        reply = self._infer(InferRequest(model="put", inputs=[_message(array)]), variant)
        return Receipt(*(int(reply.parameters[key]) for key in "sfl"))

    def get(self, size_bytes: int, variant: str) -> list[Array]:
        """One unary call."""
        reply = self._infer(InferRequest(model="get", parameters={"size": str(size_bytes)}), variant)
        return [np.frombuffer(reply.outputs[0].data, np.float32)]

    def _infer(self, request: InferRequest, variant: str) -> InferResponse:
        compression = grpc.Compression.Gzip if variant == "gzip" else grpc.Compression.NoCompression
        return self._stub.Infer(request, compression=compression)


if __name__ == "__main__":
    asyncio.run(serve()) if sys.argv[1] == "serve" else drive(StubDriver)
