"""JAX arrays on the CPU in and out through DLPack. `make jax` runs this, in an environment that has JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quill import QuillClient, Tensor
from tensors.scene import TensorHost


@pytest.fixture(scope="module")
def client():
    with TensorHost() as host, QuillClient(host.url("grpc")) as client:
        yield client


def address(array):
    return array.unsafe_buffer_pointer()


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint32, jnp.bool_, jnp.complex64]
)
def test_an_array_is_sent_from_where_it_lies(dtype):
    array = jnp.ones((3, 5), dtype)
    tensor = Tensor.from_dlpack(array, "x")
    assert tensor.dtype.name == array.dtype.name
    assert tensor.to_numpy().ctypes.data == address(array)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint32, jnp.bool_, jnp.complex64]
)
@pytest.mark.parametrize("lane", ["inline", "chunks"])
def test_arrays_go_through_a_model_and_come_back(client, dtype, lane):
    sent = jax.random.normal(jax.random.key(0), (7, 11)).astype(dtype)
    result = client.tensors.infer("identity", {"x": sent}, lane=lane)
    back = jnp.from_dlpack(result.tensors["x"])
    assert (back.dtype, back.shape) == (sent.dtype, sent.shape)
    assert np.asarray(back).tobytes() == np.asarray(sent).tobytes()


def test_an_output_in_chunks_becomes_an_array_without_a_copy(client):
    sent = jax.random.normal(jax.random.key(1), (3 * 2**20,))
    result = client.tensors.infer("identity", {"x": sent}, lane="chunks")
    back = jax.dlpack.from_dlpack(result.tensors["x"])
    assert address(back) == result["x"].ctypes.data
    assert bool((back == sent).all())


def test_a_model_may_return_arrays_of_jax(client):
    with TensorHost() as host:
        host.models.model("jitted", inputs={"x": ("float32", [-1])}, outputs={"y": ("float32", [-1])})(
            lambda x: jax.jit(lambda value: value * 2)(jnp.asarray(x))
        )
        with QuillClient(host.url("connect")) as caller:
            assert caller.tensors.infer("jitted", {"x": jnp.arange(3.0)})["y"].tolist() == [0, 2, 4]
