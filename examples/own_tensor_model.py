"""Python functions as tensor models: one for any client, one whose calls are joined when they come together.

Runs the server and its clients in this process; `quill serve --tensor-models examples/own_tensor_model.py` hosts them.

usage: python examples/own_tensor_model.py
"""

import asyncio

import numpy as np

import quill
from quill.tensors import TensorModels, TensorServicer, add_to_server

models = TensorModels()


@models.model("softmax", inputs={"logits": ("float32", [-1, -1])}, outputs={"p": ("float32", [-1, -1])}, max_batch=64)
def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@models.model("statistics", parameters={"axis": "0"})
def statistics(x, axis):
    return {"mean": x.mean(axis=int(axis)), "std": x.std(axis=int(axis))}


async def main():
    server = quill.Server(grpc="127.0.0.1:0", http="127.0.0.1:0")
    servicer = TensorServicer(models)
    add_to_server(servicer, server)
    async with server:
        async with quill.AsyncQuillClient(f"grpc://{server.grpc_address}") as client:
            rows = [np.array([[0, np.log(3)]], np.float32), np.array([[1, 1]], np.float32)]
            together = await asyncio.gather(*(client.tensors.infer("softmax", {"logits": row}) for row in rows))
            print("softmax:", [result["p"].round(2).tolist() for result in together])

        async with quill.AsyncQuillClient(server.http_url) as client:
            result = await client.tensors.infer("statistics", {"x": np.arange(6.0).reshape(2, 3)}, outputs=["mean"])
            print("mean:   ", result["mean"])
    await servicer.aclose()


if __name__ == "__main__":
    asyncio.run(main())
