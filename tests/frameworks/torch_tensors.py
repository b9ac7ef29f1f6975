"""torch tensors on the CPU in and out through DLPack. `make jax` runs this as well, where its environment has torch."""

import pytest
import torch

from quill import InvalidUsage, QuillClient, Tensor
from tensors.scene import TensorHost

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool, torch.complex64]


@pytest.fixture(scope="module")
def client():
    with TensorHost() as host, QuillClient(host.url("grpc")) as client:
        yield client


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_is_sent_from_where_it_lies(dtype):
    sent = torch.ones((3, 5), dtype=dtype)
    tensor = Tensor.from_dlpack(sent, "x")
    assert f"torch.{tensor.dtype}" == str(dtype)
    assert tensor.to_numpy().ctypes.data == sent.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lane", ["inline", "chunks"])
def test_tensors_go_through_a_model_and_come_back(client, dtype, lane):
    sent = torch.randn((7, 11)).to(dtype)
    result = client.tensors.infer("identity", {"x": sent}, lane=lane)
    assert torch.equal(torch.from_dlpack(result.tensors["x"]), sent)


def test_an_output_is_written_into_a_tensor_without_a_copy(client):
    sent, out = torch.randn(3 * 2**20), torch.zeros(3 * 2**20)
    result = client.tensors.infer("identity", {"x": sent}, out={"x": out})
    assert torch.equal(out, sent)
    assert result["x"].ctypes.data == out.data_ptr()


def test_an_output_in_chunks_becomes_a_tensor_without_a_copy(client):
    result = client.tensors.infer("identity", {"x": torch.randn(3 * 2**20)}, lane="chunks")
    assert torch.from_dlpack(result.tensors["x"]).data_ptr() == result["x"].ctypes.data


def test_a_tensor_that_tracks_gradients_says_so(client):
    with pytest.raises(InvalidUsage, match=r"tensor 'x': .*grad"):
        client.tensors.infer("identity", {"x": torch.ones(2, requires_grad=True)})
