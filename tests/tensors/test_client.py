"""What both clients refuse to send, what they make of bad replies, and arrays of other libraries."""

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

from quill import DType, InvalidType, InvalidUsage, QuillClient, ResourceExhausted, Tensor
from quill.client.tensors.inference import SERVICE
from quill.errors import Internal
from quill.proto import (
    GetTensorModelResponse,
    InferHeader,
    InferResponse,
    StreamInferResponse,
    TensorChunk,
    TensorMeta,
)
from quill.proto import Tensor as TensorMessage
from tensors.scene import TensorHost

X = np.arange(6, dtype=np.float32).reshape(2, 3)


class Spoken:
    """An array of a library that only speaks DLPack."""

    def __init__(self, array, device=(1, 0)):
        self._array, self._device = array, device

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._device


@pytest.mark.parametrize(
    ("inputs", "options", "kind", "said"),
    [
        ({"x": np.array([object()])}, {}, InvalidType, "tensor 'x': dtype .* is not supported"),
        ({"x": np.array(["a"])}, {}, InvalidType, "tensor 'x': dtype .* is not supported"),
        ({"x": np.ma.masked_array([1, 2], [0, 1])}, {}, InvalidType, "masked array"),
        ({"x": [1, 2]}, {}, InvalidType, "tensor 'x' must be a numpy array, a Tensor or .* got list"),
        ({"x": Spoken(X, (2, 0))}, {}, InvalidUsage, r"tensor 'x': .* on DLPack device \(2, 0\)"),
        ({"": X}, {}, InvalidUsage, "a tensor has an empty name"),
        ({1: X}, {}, InvalidType, "the name of a tensor must be str, got int"),
        ([X], {}, InvalidType, "tensors are given as a mapping by name, got list"),
        ({}, {"lane": "pigeon"}, InvalidUsage, "lane must be one of auto, .*, got 'pigeon'"),
        ({}, {"compression": "gzip"}, InvalidUsage, "compression must be 'zstd' or None, got 'gzip'"),
        ({}, {"outputs": "y"}, InvalidType, "outputs must be a sequence of names, got str"),
        ({}, {"outputs": [1]}, InvalidType, "a name in outputs must be str, got int"),
        ({}, {"parameters": ["a"]}, InvalidType, "parameters must be a mapping of names to texts, got list"),
        ({}, {"parameters": {"a": 1}}, InvalidType, "a parameter must be str, got int"),
        ({}, {"out": [X]}, InvalidType, "out must be a mapping of names to arrays, got list"),
        ({}, {"out": {"x": X[:, ::2]}}, InvalidUsage, r"out\['x'\] cannot be written to in place"),
        ({}, {"out": {"x": X.astype(">f4")}}, InvalidUsage, r"out\['x'\] cannot be written to in place"),
        ({}, {"out": {"x": np.frombuffer(b"1234", np.uint8)}}, InvalidUsage, r"out\['x'\] cannot be written to"),
        ({}, {"out": {"x": 3}}, InvalidType, "tensor 'x' must be a numpy array"),
        ({"x": X}, {"lane": "inline", "timeout_ms": 0}, InvalidUsage, "timeout_ms must be from 1"),
        ({"\ud800": X}, {}, InvalidUsage, "lone surrogate"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_is(tensor_host, inputs, options, kind, said):
    with QuillClient(tensor_host.url("grpc")) as client, pytest.raises(kind, match=said):
        client.tensors.infer("identity", inputs, **options)


def test_arrays_that_speak_dlpack_go_in_and_out(client):
    out = np.zeros((2, 3), np.float32)
    result = client.tensors("infer", "identity", {"x": Spoken(X)}, out={"x": Spoken(out)})
    assert out.tolist() == X.tolist()
    assert np.shares_memory(np.from_dlpack(result.tensors["x"]), out)


def test_what_is_sent_is_not_copied_before(tensor_host):
    tensor = Tensor.from_dlpack(Spoken(X), "x")
    assert np.shares_memory(tensor.to_numpy(), X)
    room = Tensor.zeros([2, 3], DType.float32())
    with QuillClient(tensor_host.url("grpc")) as client:
        result = client.tensors.infer("identity", {"x": tensor}, out={"x": room}, lane="chunks")
    assert room.to_numpy().tolist() == X.tolist()
    assert np.shares_memory(result["x"], room.to_numpy())


@pytest.mark.parametrize("lane", ["inline", "chunks"])
def test_outputs_that_do_not_fit_are_told_with_both_shapes(client, lane):
    for wrong in (np.zeros((3, 2), np.float32), np.zeros((2, 3), np.int32)):
        with pytest.raises(InvalidUsage, match=r"is tensor \[2, 3\] float32, and out has tensor \[\d, \d\] \w+ for"):
            client.tensors("infer", "identity", {"x": X}, out={"x": wrong}, lane=lane)
    with pytest.raises(InvalidUsage, match="out has an array for 'y', which is no output; the reply has: x"):
        client.tensors("infer", "identity", {"x": X}, out={"y": X.copy()}, lane=lane)
    assert client.tensors("infer", "identity", {"x": X}, lane=lane)["x"].tolist() == X.tolist()


def test_a_compressed_reply_is_bounded_by_what_it_becomes(tensor_host, protocol, drive):
    wanted = {"parameters": {"bytes": str(4 * 2**20)}, "compression": "zstd"}
    with pytest.raises(ResourceExhausted, match="become 4194304 bytes and max_message_bytes is 2097152: send them in"):
        drive(tensor_host, protocol, max_message_bytes=2 * 2**20).tensors("infer", "large", {}, lane="inline", **wanted)
    client = drive(tensor_host, protocol, max_message_bytes=4 * 2**20)
    assert client.tensors("infer", "large", {}, lane="inline", **wanted)["y"].nbytes == 4 * 2**20


def test_results_that_are_kept_are_not_written_over(client):
    sent = [np.full(3 * 2**20, number, np.uint8) for number in range(4)]
    kept = [client.tensors("infer", "identity", {"x": array}, lane="chunks")["x"][7:] for array in sent]
    for number, array in enumerate(kept):
        assert (array == number).all()


META = TensorMeta(shape=[4], dtype=8, name="y")


def streamed(*parts):
    return [StreamInferResponse(**{kind: part}).SerializeToString() for kind, part in parts]


HEADER = ("header", InferHeader(tensors=[META]))
PIECE = ("chunk", TensorChunk(data=b"abcd"))

BAD = {
    "garbage": (b"\xff", [b"\xff"], Internal, "the reply cannot be read"),
    "short": (
        InferResponse(outputs=[TensorMessage(meta=META, data=b"abc")]).SerializeToString(),
        streamed(HEADER, ("chunk", TensorChunk(data=b"abc"))),
        Internal,
        "needs 4 bytes",
    ),
    "nameless": (
        InferResponse(outputs=[TensorMessage(meta=TensorMeta(shape=[0], dtype=8))]).SerializeToString(),
        streamed(("header", InferHeader(tensors=[TensorMeta(shape=[0], dtype=8)]))),
        Internal,
        "tensor 0 has no name",
    ),
    "second header": (b"\xff", streamed(HEADER, PIECE, HEADER), Internal, "cannot be read"),
    "huge": (
        InferResponse(outputs=[TensorMessage(meta=TensorMeta(shape=[2**40], dtype=8, name="y"))]).SerializeToString(),
        streamed(("header", InferHeader(tensors=[TensorMeta(shape=[2**40], dtype=8, name="y")]))),
        ResourceExhausted,
        "1099511627776 bytes and max_tensor_bytes is",
    ),
}


class LyingHost(TensorHost):
    """A server whose replies are what a test puts there."""

    infer = b""
    stream = ()

    async def _start(self):
        async def infer(request, context):
            return self.infer

        async def stream(requests, context):
            async for _ in requests:
                pass
            for message in self.stream:
                yield message

        async def describe(request, context):
            meta = TensorMeta(shape=[-5], dtype=8, name="x")
            return GetTensorModelResponse(name="m", inputs=[meta]).SerializeToString()

        self._make_server()
        self.servicer = type("Nothing", (), {"aclose": lambda self: asyncio.sleep(0)})()
        handlers = {
            "Infer": grpc.unary_unary_rpc_method_handler(infer),
            "StreamInfer": grpc.stream_stream_rpc_method_handler(stream),
            "GetTensorModel": grpc.unary_unary_rpc_method_handler(describe),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        await self.server.start()


@pytest.fixture(scope="module")
def lying_host():
    with LyingHost() as host:
        yield host


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("lane", ["inline", "chunks"])
def test_a_reply_that_is_none_is_told_as_such(lying_host, drive, lane, case):
    lying_host.infer, lying_host.stream, kind, said = BAD[case]
    client = drive(lying_host, "grpc")
    with pytest.raises(kind, match=said):
        client.tensors("infer", "m", {}, lane=lane)


def test_a_signature_that_is_none_is_told_as_such(lying_host, drive):
    with pytest.raises(Internal, match=r"signature cannot be read: a dimension must be at least 0, or -1 .* got -5"):
        drive(lying_host, "grpc").tensors("model", "m")


def test_hostile_calls_are_refused_over_sockets():
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "benchmarks/tensor_attacks.py", "--inputs", "1200", "--seed", "3", "--json"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
