"""Quill: tensor models on a quill.Server and the blocking client, by lane.

usage: python quill_lanes.py serve | python quill_lanes.py drive ADDRESS

The variant is the lane; ``zstd`` is inline with the elements compressed. What is got goes into a warm array.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from work import ITEM_BYTES, Array, Receipt, announce, drive, tensor

from quill import QuillClient
from quill.limits import Limits
from quill.server.server import Server
from quill.tensors import TensorModels, TensorServicer, add_to_server

models = TensorModels()


@models.model("put", inputs={"x": ("float32", [-1])}, outputs={"receipt": ("int64", [3])})
async def put(x: Array) -> Any:
    """What has arrived."""
    return np.array(Receipt.of(x).values(), np.int64)


@models.model("get", inputs={}, outputs={"y": ("float32", [-1])}, parameters={"size": "0"})
async def get(size: str) -> Array:
    """What was made before."""
    return tensor(int(size))


async def serve() -> None:
    """Until standard input ends."""
    limits = Limits()
    server = Server("127.0.0.1:0", None, limits=limits)
    servicer = TensorServicer(models, limits=limits, socket_host="127.0.0.1")
    add_to_server(servicer, server)
    await server.start()
    announce(f"grpc://{server.grpc_address}")
    await asyncio.to_thread(sys.stdin.read)
    await servicer.aclose()
    await server.stop(0)


class QuillDriver:
    """One client."""

    def __init__(self, address: str) -> None:
        self._client = QuillClient(address, timeout_ms=120_000)
        self._warm: dict[int, Array] = {}

    def put(self, array: Array, variant: str) -> Receipt:
        """One call of a model that tells what it got."""
        return Receipt(*map(int, self._infer("put", {"x": array}, variant)["receipt"]))

    def get(self, size_bytes: int, variant: str) -> list[Array]:
        """One call of a model that gives, into an array that was there before."""
        out = self._warm.setdefault(size_bytes, np.zeros(size_bytes // ITEM_BYTES, np.float32))
        return [self._infer("get", {}, variant, out={"y": out}, parameters={"size": str(size_bytes)})["y"]]

    def _infer(self, model: str, inputs: dict[str, Array], variant: str, **options: Any) -> Any:
        if variant == "zstd":
            return self._client.tensors.infer(model, inputs, lane="inline", compression="zstd", **options)
        lane: Any = variant
        result = self._client.tensors.infer(model, inputs, lane=lane, **options)
        if variant not in {"auto", result.lane} and model == "get":
            raise ValueError(f"{result.lane} was taken, and {variant} asked for")
        return result


if __name__ == "__main__":
    asyncio.run(serve()) if sys.argv[1] == "serve" else drive(QuillDriver)
