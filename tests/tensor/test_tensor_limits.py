"""What a service accepts of tensors: bytes and dimensions, told before anything is made of them."""

import tracemalloc

import pytest

from quill import proto
from quill.dtype import DType
from quill.errors import InvalidUsage, ResourceExhausted
from quill.limits import Limits
from quill.tensor import Tensor, TensorMeta

LIMITS = Limits(max_tensor_bytes=24, max_tensor_rank=3)


def message(shape, data=b"", dtype=proto.DataType.DATA_TYPE_FLOAT32):
    return proto.Tensor(meta=proto.TensorMeta(shape=shape, dtype=dtype), data=data)


def decode(tensor, limits):
    return Tensor.decode(tensor.SerializeToString(), limits)


@pytest.mark.parametrize("take", [Tensor.from_proto, decode])
def test_a_tensor_at_its_bounds_is_taken_and_one_above_is_refused(take):
    assert take(message([1, 2, 3], bytes(24)), LIMITS).shape == [1, 2, 3]
    with pytest.raises(ResourceExhausted, match=r"\[7\] float32 has 28 bytes and max_tensor_bytes is 24"):
        take(message([7], bytes(28)), LIMITS)
    with pytest.raises(ResourceExhausted, match="has 4 dimensions and max_tensor_rank is 3"):
        take(message([1, 1, 1, 1], bytes(4)), LIMITS)


def test_without_limits_only_what_there_can_be_is_refused():
    assert Tensor.from_proto(message([1] * 64, bytes(4))).ndim == 64
    with pytest.raises(InvalidUsage, match="at most 64 dimensions"):
        Tensor.from_proto(message([1] * 65, bytes(4)))


def test_the_meta_alone_is_bounded_too():
    with pytest.raises(ResourceExhausted, match="max_tensor_bytes"):
        TensorMeta.from_proto(message([7]).meta, LIMITS)


def test_a_size_that_is_only_claimed_allocates_nothing():
    claimed = message([2**20, 2**20])
    millions = message([1] * 1_000_000)
    tracemalloc.start()
    try:
        for one in (claimed, millions):
            with pytest.raises(ResourceExhausted):
                Tensor.from_proto(one, Limits())
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_size_counts_elements_of_every_type():
    assert Tensor.from_proto(message([24], bytes(24), DType.int8().number), LIMITS).size_bytes == 24
    with pytest.raises(ResourceExhausted, match="has 32 bytes"):
        Tensor.from_proto(message([4], bytes(32), DType.complex64().number), LIMITS)
