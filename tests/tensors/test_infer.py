"""Calls of tensor models, by both clients over every protocol."""

import hashlib

import ml_dtypes
import numpy as np
import pytest

from quill import DType, InferResult, Internal, InvalidArgument, NotFound, ResponseMetadata, Tensor, TransferProgress
from quill.errors import Aborted, DeadlineExceeded

LANES = ["inline", "chunks", "shm", "socket"]

NAN = np.array([0x7FC0_0001, 0xFF80_0000, 0x7F80_0000, 0x8000_0000, 0, 0x7F80_0001], np.uint32).view(np.float32)
"""NaNs with payloads, infinities, zeros of both signs."""

EXACT = {
    "nan": NAN,
    "scalar": np.array(-0.0),
    "empty": np.zeros((3, 0, 2), np.int16),
    "bfloat16": np.array([[1.5, np.nan]], ml_dtypes.bfloat16),
    "float8": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2),
    "bool": np.array([True, False]),
    "complex": np.array([1 - 2j, np.inf], np.complex64),
    "big_endian": np.array([1, -2], ">i4"),
    "strided": np.arange(24, dtype=np.uint16).reshape(4, 6)[::2, ::-3],
}


def same(received, sent):
    """Bit for bit, in the order and the form of the sender."""
    return (received.shape, received.dtype.name, received.tobytes()) == (
        sent.shape,
        sent.dtype.name,
        sent.astype(sent.dtype.newbyteorder("<")).tobytes(),
    )


@pytest.mark.parametrize("lane", LANES)
def test_every_bit_arrives_and_comes_back(client, lane):
    result = client.tensors("infer", "identity", EXACT, lane=lane, request_id="mine")
    assert isinstance(result, InferResult)
    assert (result.model, result.request_id, result.lane, result.parameters) == ("identity", "mine", lane, {})
    assert list(result) == list(EXACT)
    assert len(result) == len(EXACT)
    for name, array in EXACT.items():
        assert same(result[name], array), name
        assert result.tensors[name].name == name


@pytest.mark.parametrize(("megabytes", "lane"), [(8, "inline"), (8.5, "shm")])
def test_the_lane_follows_the_size(client, megabytes, lane):
    sent = np.random.default_rng(1).bytes(int(megabytes * 2**20))
    response = ResponseMetadata()
    result = client.tensors("infer", "checksum", {"x": np.frombuffer(sent, np.uint8)}, response=response)
    assert result.lane == lane
    assert dict(response.trailers)["quill-lane"] == lane
    assert result["x"].tobytes() == hashlib.sha256(sent).digest()


def test_an_output_is_written_into_the_array_of_its_caller(client):
    sent = np.random.default_rng(2).random(2**20, np.float32)
    for lane in LANES:
        out = np.zeros_like(sent)
        result = client.tensors("infer", "identity", {"x": sent, "y": sent[:3]}, out={"x": out}, lane=lane)
        assert result["x"] is out
        assert out.tobytes() == sent.tobytes()
        assert result["y"].tobytes() == sent[:3].tobytes()


def test_parameters_and_outputs_reach_the_model(client):
    x = np.array([1, 2], np.float32)
    assert client.tensors("infer", "scale", {"x": x})["y"].tolist() == [2, 4]
    result = client.tensors("infer", "scale", {"x": x}, parameters={"by": "-1"}, outputs=["y"])
    assert result["y"].tolist() == [-1, -2]
    assert result.request_id
    only = client.tensors("infer", "identity", {"x": x, "y": x}, outputs=["y"])
    assert list(only) == ["y"]


def test_a_signature_tells_types_and_shapes(client):
    signature = client.tensors("model", "scale")
    assert signature.name == "scale"
    assert {name: str(spec) for name, spec in signature.inputs.items()} == {"x": "float32 [-1]"}
    assert signature.outputs["y"].dtype == DType.float32()
    assert client.tensors("model", "identity").inputs == {}
    with pytest.raises(NotFound, match=r"'zebra' is not known; known are: .*checksum, .*identity"):
        client.tensors("model", "zebra")


def test_progress_is_told_to_the_end(client):
    sent = np.zeros(5 * 2**20 + 1, np.uint8)
    seen = []
    client.tensors("stream", "identity", {"x": sent}, progress=seen.append)
    assert all(isinstance(one, TransferProgress) for one in seen)
    assert [one.sent_bytes for one in seen] == sorted(one.sent_bytes for one in seen)
    assert TransferProgress(sent.nbytes, sent.nbytes, 0, None) in seen
    assert seen[-1] == TransferProgress(sent.nbytes, sent.nbytes, sent.nbytes, sent.nbytes)


@pytest.mark.parametrize("lane", ["inline", "chunks"])
def test_compression_changes_nothing_but_what_travels(client, lane):
    arrays = {
        "zeros": np.zeros(3 * 2**20, np.uint8),
        "noise": np.frombuffer(np.random.default_rng(3).bytes(2**21), "u1"),
    }
    result = client.tensors("infer", "identity", arrays, lane=lane, compression="zstd")
    for name, array in arrays.items():
        assert result[name].tobytes() == array.tobytes()


REFUSALS = [
    ("zebra", {}, {}, NotFound, "model 'zebra' is not known"),
    ("", {}, {}, InvalidArgument, "model is empty and there are"),
    ("scale", {}, {}, InvalidArgument, "needs the input 'x'; given are: none"),
    ("scale", {"z": [0]}, {}, InvalidArgument, "no input 'z'; it has: x"),
    ("scale", {"x": [[0]]}, {}, InvalidArgument, r"must be float32 \[-1\], got tensor \[1, 1\] float32"),
    ("scale", {"x": [0]}, {"parameters": {"zebra": "1"}}, InvalidArgument, "no parameter 'zebra'; it has: by"),
    ("scale", {"x": [0]}, {"outputs": ["z"]}, InvalidArgument, "no output 'z'; it has: y"),
    ("identity", {"x": [0]}, {"outputs": ["z"]}, InvalidArgument, "no output 'z'; it has: x"),
    ("fails", {}, {}, Internal, "internal error; reference"),
    ("lies", {}, {}, Internal, "internal error; reference"),
    ("aborts", {}, {}, Aborted, "no"),
    ("slow", {}, {}, DeadlineExceeded, "model slow took longer than 0.05 s"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal[0]}-{refusal[4][:24]}")
@pytest.mark.parametrize("lane", LANES)
def test_a_refusal_says_what_is_wrong(client, lane, refusal):
    model, inputs, options, kind, said = refusal
    arrays = {name: np.array(values, np.float32) for name, values in inputs.items()}
    with pytest.raises(kind, match=said) as caught:
        client.tensors("infer", model, arrays, lane=lane, **options)
    assert "secret" not in str(caught.value)
    assert client.tensors("infer", "identity", {"x": np.ones(1)}, lane=lane)["x"].tolist() == [1]


def test_blocking_functions_run_in_threads_and_coroutines_on_the_loop(tensor_host, client):
    async def here():
        import threading

        return threading.get_ident()

    loop = tensor_host.run(here())
    assert client.tensors("infer", "where", {})["thread"] == [loop]
    assert client.tensors("infer", "where_blocking", {})["thread"] != [loop]


def test_tensors_and_numpy_scalars_are_inputs_too(client):
    tensor = Tensor.from_bytes(b"\x01\x02", [2], DType.uint8(), "other name")
    result = client.tensors("infer", "identity", {"x": tensor, "y": np.float16(3)})
    assert result["x"].tolist() == [1, 2]
    assert result["y"].shape == ()
    assert result["y"] == 3
