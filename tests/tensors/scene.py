"""A server of tensor models in a thread, for clients of both kinds over every protocol."""

import threading
import time

import numpy as np

from client.harness import Host
from quill.errors import Aborted, ErrorDetail
from quill.limits import Limits
from quill.tensors import TensorModels, TensorServicer, add_to_server
from quill.tensors.builtin import builtin_models

LIMITS = Limits(max_tensor_bytes=64 * 1024 * 1024, max_receiving_bytes=256 * 1024 * 1024, max_tensors=100)


def models():
    """The built-in models, and some that tests need."""
    found = builtin_models()

    @found.model("scale", inputs={"x": ("float32", [-1])}, outputs={"y": ("float32", [-1])}, parameters={"by": "2"})
    def scale(x, by):
        return x * np.float32(by)

    @found.model("where")
    async def where(**inputs):
        return {"thread": np.array([threading.get_ident()], np.uint64)}

    @found.model("where_blocking")
    def where_blocking(**inputs):
        return {"thread": np.array([threading.get_ident()], np.uint64)}

    @found.model("fails")
    def fails(**inputs):
        raise RuntimeError("secret zebra")

    @found.model("aborts")
    def aborts(**inputs):
        raise Aborted("no", details=(ErrorDetail("x.y/Z", b"1"),))

    @found.model("slow", timeout_s=0.05)
    def slow(**inputs):
        time.sleep(0.2)
        return inputs

    @found.model("lies", inputs={}, outputs={"y": ("float32", [2])})
    def lies():
        return {"y": np.zeros(3, np.float32)}

    @found.model("large", inputs={}, parameters={"bytes": "1"})
    def large(bytes):  # noqa: A002
        return {"y": np.arange(int(bytes), dtype=np.int64).astype(np.uint8)}

    return found


class TensorHost(Host):
    """A quill.Server with tensor models."""

    def __init__(self, found: TensorModels | None = None, *, limits=LIMITS, **settings):
        super().__init__(limits=limits, **settings)
        self.models = found or models()
        self._limits = limits

    async def _start(self):
        self._make_server()
        self.servicer = TensorServicer(self.models, limits=self._limits, socket_host="127.0.0.1")
        add_to_server(self.servicer, self.server)
        await self.server.start()

    def __exit__(self, *failure):
        self.run(self.servicer.aclose())
        super().__exit__(*failure)
