import copy
import pickle
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import proto
from quill.dtype import DType
from quill.errors import InvalidType, InvalidUsage
from quill.tensor import TensorMeta

FLOAT32 = DType.float32()


@settings(max_examples=100)
@given(shape=st.lists(st.integers(0, 9), max_size=7), number=st.integers(1, 16))
def test_counts_agree_with_numpy(shape, number):
    dtype = DType.from_number(number)
    array = np.empty(shape, dtype.to_numpy())
    meta = TensorMeta(shape, dtype, "x")
    assert (meta.shape, meta.ndim, meta.num_elements, meta.size_bytes) == (
        list(array.shape),
        array.ndim,
        array.size,
        array.nbytes,
    )
    assert (meta.dtype, meta.name) == (dtype, "x")


def test_a_scalar_has_no_dimensions_and_one_element():
    meta = TensorMeta([], FLOAT32)
    assert (meta.shape, meta.ndim, meta.num_elements, meta.size_bytes, meta.name) == ([], 0, 1, 4, None)


def test_the_shape_may_be_any_iterable_of_whole_numbers():
    expected = TensorMeta([2, 3], FLOAT32)
    assert expected == TensorMeta((2, 3), FLOAT32) == TensorMeta(iter([2, 3]), FLOAT32)
    assert expected == TensorMeta(np.array([2, 3]), FLOAT32)
    assert all(type(dimension) is int for dimension in TensorMeta(np.array([2, 3]), FLOAT32).shape)


@pytest.mark.parametrize("dimension", [True, False, 2.0, np.float32(2), "2", None, [2]], ids=repr)
def test_a_dimension_that_is_no_int_is_refused(dimension):
    with pytest.raises(InvalidType, match="a dimension must be an int"):
        TensorMeta([3, dimension], FLOAT32)


@pytest.mark.parametrize("shape", [3, None, "23", b"23", 2.5], ids=repr)
def test_a_shape_that_is_no_list_is_refused(shape):
    with pytest.raises(InvalidType, match="shape must be a list of ints"):
        TensorMeta(shape, FLOAT32)


def test_a_negative_dimension_is_refused_with_its_value():
    with pytest.raises(InvalidUsage, match="at least 0, got -1"):
        TensorMeta([2, -1], FLOAT32)


def test_64_dimensions_are_the_most():
    assert TensorMeta([1] * 64, FLOAT32).ndim == 64
    with pytest.raises(InvalidUsage, match="at most 64 dimensions, got 65"):
        TensorMeta([1] * 65, FLOAT32)


def test_an_endless_shape_is_refused_and_not_collected():
    with pytest.raises(InvalidUsage, match="at most 64 dimensions, got more"):
        TensorMeta(repeat(1), FLOAT32)


def test_the_largest_size_is_what_63_bits_hold():
    assert TensorMeta([2**63 - 1], DType.uint8()).size_bytes == 2**63 - 1
    with pytest.raises(InvalidUsage, match=r"spans 9223372036854775808 bytes, the most is 9223372036854775807"):
        TensorMeta([2**63], DType.uint8())
    with pytest.raises(InvalidUsage, match=r"tensor \[2147483648, 1073741824\] float32 spans 9223372036854775808"):
        TensorMeta([2**31, 2**30], FLOAT32)


def test_a_zero_does_not_hide_dimensions_that_numpy_refuses():
    with pytest.raises(ValueError, match="too big"):
        np.empty((0, 2**62, 2**62), np.float32)
    with pytest.raises(InvalidUsage, match="the most is"):
        TensorMeta([0, 2**62, 2**62], FLOAT32)


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("f4"), 1, None], ids=repr)
def test_what_is_no_dtype_is_refused_and_told_how_to_convert(dtype):
    with pytest.raises(InvalidType, match=r"must be a DType, got .*DType\.from_numpy\(\) converts"):
        TensorMeta([1], dtype)


def test_a_name_is_text_that_utf8_can_carry():
    assert TensorMeta([1], FLOAT32, "").name == ""
    assert TensorMeta([1], FLOAT32, "größe 🙂").name == "größe 🙂"
    with pytest.raises(InvalidType, match="name must be str or None, got bytes"):
        TensorMeta([1], FLOAT32, b"x")
    with pytest.raises(InvalidUsage, match="lone surrogate at index 1"):
        TensorMeta([1], FLOAT32, "a\ud800")


def test_meta_compares_by_value_and_is_a_dictionary_key():
    meta = TensorMeta([2, 3], FLOAT32, "x")
    assert {meta: 1}[TensorMeta((2, 3), FLOAT32, "x")] == 1
    assert meta != TensorMeta([3, 2], FLOAT32, "x")
    assert meta != TensorMeta([2, 3], DType.int32(), "x")
    assert meta != TensorMeta([2, 3], FLOAT32)
    assert meta != ([2, 3], FLOAT32, "x")


def test_meta_survives_pickle_and_copy():
    meta = TensorMeta([2, 3], FLOAT32, "x")
    assert pickle.loads(pickle.dumps(meta)) == copy.deepcopy(meta) == meta  # noqa: S301  # its own bytes


def test_meta_cannot_be_changed():
    meta = TensorMeta([2, 3], FLOAT32)
    meta.shape.append(4)
    assert meta.shape == [2, 3]
    with pytest.raises(AttributeError):
        meta.shape = [4]
    with pytest.raises(AttributeError):
        meta.colour = "red"


def test_repr_and_str_are_short():
    assert repr(TensorMeta([2, 3], FLOAT32, "x")) == "TensorMeta(shape=[2, 3], dtype=float32, name='x')"
    assert repr(TensorMeta([], DType.bool_())) == "TensorMeta(shape=[], dtype=bool)"
    assert str(TensorMeta([2, 3], FLOAT32, "x")) == "tensor [2, 3] float32"


def test_meta_becomes_the_message_of_the_contract_and_returns():
    meta = TensorMeta([2, 3], DType.bfloat16(), "x")
    message = proto.TensorMeta(shape=[2, 3], dtype=proto.DataType.DATA_TYPE_BFLOAT16, name="x")
    assert meta.to_proto() == message
    assert TensorMeta.from_proto(message) == meta


def test_no_name_and_an_empty_name_stay_apart():
    assert not TensorMeta([1], FLOAT32).to_proto().HasField("name")
    assert TensorMeta.from_proto(proto.TensorMeta(dtype=1)).name is None
    assert TensorMeta.from_proto(proto.TensorMeta(dtype=1, name="")).name == ""


def test_where_the_sender_held_the_tensor_does_not_matter():
    message = proto.TensorMeta(shape=[2], dtype=1, device=proto.Device.DEVICE_CUDA, requires_grad=True, byte_size=8)
    assert TensorMeta.from_proto(message) == TensorMeta([2], FLOAT32)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ([2, 3], [3, 1]),
        ([2, 3, 4], [12, 4, 1]),
        ([5], [1]),
        ([1, 3], [99, 1]),
        ([2, 1, 3], [3, 0, 1]),
        ([0, 3], [7, 7]),
        ([], []),
    ],
)
def test_strides_of_c_order_are_accepted(shape, strides):
    assert TensorMeta.from_proto(proto.TensorMeta(shape=shape, dtype=1, strides=strides)) == TensorMeta(shape, FLOAT32)


@pytest.mark.parametrize(
    ("shape", "strides", "told"),
    [
        ([2, 3], [1, 2], r"strides \[1, 2\], only those of C order are taken: \[3, 1\]"),
        ([2, 3], [12, 4], r"strides \[12, 4\]"),
        ([4], [-1], r"strides \[-1\]"),
        ([2, 3], [0, 1], r"strides \[0, 1\]"),
        ([2, 3], [1], "2 dimensions, but 1 strides"),
        ([], [1], "0 dimensions, but 1 strides"),
    ],
)
def test_other_strides_are_refused(shape, strides, told):
    with pytest.raises(InvalidUsage, match=told):
        TensorMeta.from_proto(proto.TensorMeta(shape=shape, dtype=1, strides=strides))


@settings(max_examples=100)
@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=4), data=st.data())
def test_strides_are_accepted_exactly_where_numpy_calls_them_contiguous(shape, data):
    strides = data.draw(st.lists(st.integers(0, 16), min_size=len(shape), max_size=len(shape)))
    array = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), shape, strides)
    message = proto.TensorMeta(shape=shape, dtype=8, strides=strides)
    try:
        TensorMeta.from_proto(message)
        accepted = True
    except InvalidUsage:
        accepted = False
    assert accepted == array.flags.c_contiguous


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "dtype: 0 is not the number of a data type"),
        ({"dtype": 99}, "dtype: 99 is not the number of a data type; supported: 1 float32"),
        ({"dtype": 1, "shape": [2, -1]}, "at least 0, got -1"),
        ({"dtype": 1, "shape": [1] * 65}, "at most 64 dimensions, got 65"),
        ({"dtype": 1, "shape": [2**62]}, "the most is"),
        ({"dtype": 1, "shape": [2], "byte_size": 7}, r"\[2\] float32 needs 8 bytes, its byte_size says 7"),
        ({"dtype": 1, "compression": 1}, "compression 1; only calls of TensorService take compressed elements"),
        ({"dtype": 1, "compression": 77}, "compression 77"),
    ],
)
def test_a_message_that_describes_no_tensor_is_refused(fields, told):
    with pytest.raises(InvalidUsage, match=told):
        TensorMeta.from_proto(proto.TensorMeta(**fields))


def test_another_message_is_refused():
    with pytest.raises(InvalidType, match=r"inference\.v1\.TensorMeta message, got Tensor"):
        TensorMeta.from_proto(proto.Tensor())
