"""tritonclient against a minimal servicer of its own protocol on grpc.aio.

usage: python triton.py serve | python triton.py drive ADDRESS
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import numpy as np
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from work import Array, Receipt, announce, drive, tensor

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient has no types
    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802  # the contract's name
        del context
        if request.model_name == "put":
            receipt = Receipt.of(np.frombuffer(request.raw_input_contents[0], np.float32))
            array: Any = np.array(receipt.values(), np.int64)
        else:
            array = tensor(request.parameters["size"].int64_param)
        reply = service_pb2.ModelInferResponse(model_name=request.model_name)
        kind = "INT64" if array.dtype == np.int64 else "FP32"
        reply.outputs.add(name="y", datatype=kind, shape=array.shape)
        reply.raw_output_contents.append(array.tobytes())
        return reply


async def serve() -> None:
    """Until standard input ends."""
    server = grpc.aio.server(options=_OPTIONS)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(f"127.0.0.1:{port}")
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


class TritonDriver:
    """One client."""

    def __init__(self, address: str) -> None:
        self._client = triton.InferenceServerClient(address)

    def put(self, array: Array, variant: str) -> Receipt:
        """One unary call."""
        tensor_in = triton.InferInput("x", list(array.shape), "FP32")
        tensor_in.set_data_from_numpy(array)
        return Receipt(*map(int, self._client.infer("put", [tensor_in]).as_numpy("y")))

    def get(self, size_bytes: int, variant: str) -> list[Array]:
        """One unary call."""
        return [self._client.infer("get", [], parameters={"size": size_bytes}).as_numpy("y")]


if __name__ == "__main__":
    asyncio.run(serve()) if sys.argv[1] == "serve" else drive(TritonDriver)
