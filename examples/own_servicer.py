"""A grpc.aio servicer as it is, on both ports: the gRPC stub calls one, a dict over Connect the other.

Runs the server and its clients in this process.

usage: python examples/own_servicer.py
"""

import asyncio

import grpc
import numpy as np

import quill
from quill.proto import (
    InferRequest,
    InferResponse,
    TensorServiceServicer,
    TensorServiceStub,
    add_TensorServiceServicer_to_server,
)

SERVICE = "inference.v1.TensorService"


class Doubler(TensorServiceServicer):
    async def Infer(self, request, context):
        array = quill.Tensor.from_proto(request.inputs[0]).to_numpy()
        return InferResponse(model=request.model, outputs=[quill.Tensor.from_numpy(array * 2, name="y").to_proto()])


async def main():
    x = quill.Tensor.from_numpy(np.arange(3, dtype=np.float32), name="x")
    request = InferRequest(model="double", inputs=[x.to_proto()])
    server = quill.Server(grpc="127.0.0.1:0", http="127.0.0.1:0")
    add_TensorServiceServicer_to_server(Doubler(), server)
    async with server:
        async with grpc.aio.insecure_channel(server.grpc_address) as channel:
            reply = await TensorServiceStub(channel).Infer(request)
            print("gRPC stub:", quill.Tensor.from_proto(reply.outputs[0]).to_numpy())

        async with quill.AsyncQuillClient(server.http_url) as client:
            reply = await client.call(SERVICE, "Infer", request)
            print("Connect:  ", quill.Tensor.from_proto(reply.outputs[0]).to_numpy())


asyncio.run(main())
