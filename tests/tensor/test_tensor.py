import copy
import gc
import math
import pickle
import weakref

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import proto
from quill.dtype import DType
from quill.errors import InvalidType, InvalidUsage
from quill.tensor import Tensor, TensorMeta

FLOAT32 = DType.float32()


@st.composite
def raw_tensors(draw):
    """A shape, a dtype and any bytes that such a tensor may have: every NaN payload, infinity and -0.0 among them."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    dtype = DType.from_number(draw(st.integers(1, 16)))
    size = math.prod(shape) * dtype.element_size
    data = draw(st.binary(min_size=size, max_size=size))
    return shape, dtype, bytes(byte & 1 for byte in data) if dtype == DType.bool_() else data


names = st.none() | st.text(st.characters(codec="utf-8"), max_size=5)


def array_of(shape, dtype, data):
    return np.frombuffer(data, dtype.to_numpy()).reshape(shape) if data else np.empty(shape, dtype.to_numpy())


@settings(max_examples=200)
@given(raw=raw_tensors(), name=names)
def test_encode_is_the_message_that_protobuf_writes(raw, name):
    shape, dtype, data = raw
    message = proto.Tensor(meta=proto.TensorMeta(shape=shape, dtype=dtype.number, name=name), data=data)
    tensor = Tensor.from_bytes(data, shape, dtype, name)
    assert tensor.encode() == message.SerializeToString()
    assert tensor.to_proto() == message


@settings(max_examples=200)
@given(raw=raw_tensors(), name=names)
def test_every_bit_arrives(raw, name):
    shape, dtype, data = raw
    message = proto.Tensor(meta=proto.TensorMeta(shape=shape, dtype=dtype.number, name=name), data=data)
    tensor = Tensor.decode(message.SerializeToString())
    assert (tensor.shape, tensor.dtype, tensor.name, tensor.tobytes()) == (shape, dtype, name, data)
    assert tensor == Tensor.from_proto(message)
    array = tensor.to_numpy()
    assert (list(array.shape), array.dtype, array.tobytes()) == (shape, dtype.to_numpy(), data)


@settings(max_examples=200)
@given(raw=raw_tensors(), name=names)
def test_numpy_arrays_come_back_as_they_were(raw, name):
    shape, dtype, data = raw
    tensor = Tensor.from_numpy(array_of(shape, dtype, data), name)
    assert tensor == Tensor.from_bytes(data, shape, dtype, name)
    assert tensor.to_numpy().tobytes() == data
    assert (len(tensor), tensor.num_elements) == (math.prod(shape),) * 2
    assert (tensor.ndim, tensor.size_bytes) == (len(shape), len(data))
    assert tensor.meta == TensorMeta(shape, dtype, name)


@settings(max_examples=100)
@given(raw=raw_tensors())
def test_every_memory_layout_gives_the_elements_in_c_order(raw):
    shape, dtype, data = raw
    array = array_of(shape, dtype, data)
    spread = np.zeros([2 * n for n in shape], array.dtype)[(*(slice(None, None, 2) for _ in shape), ...)]
    spread[...] = array
    for same in (
        np.asfortranarray(array),
        spread,
        np.ascontiguousarray(array.T).T,
        array.byteswap().view(array.dtype.newbyteorder()),
        np.asfortranarray(array.byteswap().view(array.dtype.newbyteorder())),
    ):
        tensor = Tensor.from_numpy(same.reshape(shape))
        assert tensor.tobytes() == data
        assert tensor.dtype == dtype


def test_the_documented_bytes_are_written():
    # Counted by hand: meta is field 1, its shape [2] packed and dtype 8 (uint8) inside; data is field 2.
    assert Tensor.from_bytes(b"\x07\xff", [2], DType.uint8()).encode() == bytes.fromhex("0a05 0a0102 1008 1202 07ff")


@pytest.mark.parametrize("size", [127, 128, 16383, 16384, 2097152])
def test_lengths_of_every_varint_width_are_what_protobuf_writes(size):
    tensor = Tensor.zeros([size], DType.uint8())
    assert tensor.encode() == tensor.to_proto().SerializeToString()


def test_a_contiguous_array_is_viewed_and_kept_alive():
    array = np.zeros((2, 3), np.float32)
    tensor = Tensor.from_numpy(array)
    assert np.shares_memory(tensor.to_numpy(), array)
    array[0, 0] = 42
    assert tensor.to_numpy()[0, 0] == 42
    tensor.to_numpy()[1, 2] = 7
    assert array[1, 2] == 7
    alive = weakref.ref(array)
    del array
    gc.collect()
    assert alive() is not None
    assert tensor.to_numpy()[1, 2] == 7
    del tensor
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=">i4"), np.arange(6, dtype="i4").reshape(2, 3).T, np.arange(6, dtype="i4")[::2]],
    ids=["big-endian", "transposed", "every second"],
)
def test_any_other_array_is_copied(array):
    tensor = Tensor.from_numpy(array)
    assert not np.shares_memory(tensor.to_numpy(), array)
    np.testing.assert_array_equal(tensor.to_numpy(), array)
    assert tensor.to_numpy().flags.writeable


def test_a_broadcast_array_is_written_out():
    assert Tensor.from_numpy(np.broadcast_to(np.int8(7), (2, 2))).tobytes() == b"\7\7\7\7"


def test_a_read_only_array_gives_a_read_only_view():
    array = np.zeros(3)
    array.setflags(write=False)
    assert not Tensor.from_numpy(array).to_numpy().flags.writeable


def test_an_unaligned_array_is_viewed_all_the_same():
    array = np.frombuffer(bytearray(9), np.uint8)[1:].view(np.float64)
    array[0] = 1.5
    assert not array.flags.aligned
    assert Tensor.from_numpy(array).to_numpy()[0] == 1.5


def test_a_numpy_scalar_is_a_tensor_without_dimensions():
    tensor = Tensor.from_numpy(np.float32(2.5))
    assert (tensor.shape, tensor.dtype, len(tensor), tensor.to_numpy()[()]) == ([], FLOAT32, 1, 2.5)


def test_a_memory_mapped_array_is_viewed(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(4,))
    tensor = Tensor.from_numpy(mapped)
    mapped[2] = 3
    assert tensor.to_numpy()[2] == 3


def test_a_subclass_counts_as_the_plain_array_under_it():
    class Odd(np.ndarray):
        def reshape(self, *_shape):
            raise AssertionError("a subclass may do what it likes")

    tensor = Tensor.from_numpy(np.array([[1, 2], [3, 4]], np.int8).view(Odd))
    assert (tensor.shape, tensor.tobytes()) == ([2, 2], b"\1\2\3\4")


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array(["text"]),
        np.array([1 + 2j]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(1, [("a", "f4")]),
        np.zeros(1, ml_dtypes.float8_e4m3fnuz),
    ],
    ids=lambda array: str(array.dtype),
)
def test_an_array_of_an_unsupported_dtype_is_refused_and_told_what_is_supported(array):
    with pytest.raises(InvalidType, match="is not supported; supported: float32") as caught:
        Tensor.from_numpy(array)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    "given", [[1.0, 2.0], 1.5, None, b"1234", "text", memoryview(b"1")], ids=lambda one: type(one).__name__
)
def test_what_is_no_array_is_refused(given):
    with pytest.raises(InvalidType, match=r"from_numpy takes a numpy array, got .*; numpy\.asarray\(\) makes one"):
        Tensor.from_numpy(given)


def test_a_masked_array_is_refused_because_its_mask_would_be_lost():
    with pytest.raises(InvalidType, match=r"masked array .* filled\(\)"):
        Tensor.from_numpy(np.ma.masked_array([1.0, 2.0], [True, False]))


def test_bytes_are_viewed_read_only():
    data = bytes(range(24))
    tensor = Tensor.from_bytes(data, [2, 3], FLOAT32)
    assert tensor.tobytes() is data
    array = tensor.to_numpy()
    assert array.ctypes.data == np.frombuffer(data, np.uint8).ctypes.data
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_a_bytearray_is_viewed_and_can_be_written_through():
    data = bytearray(8)
    tensor = Tensor.from_bytes(data, [2], FLOAT32)
    tensor.to_numpy()[:] = 1
    assert data == np.ones(2, "<f4").tobytes()
    data[:4] = b"\0\0\0\0"
    assert tensor.to_numpy().tolist() == [0, 1]
    with pytest.raises(BufferError):
        data.append(0)


def test_a_memoryview_is_viewed_and_tobytes_gives_only_its_part():
    data = bytearray(b"abcdefgh")
    tensor = Tensor.from_bytes(memoryview(data)[2:6], [4], DType.uint8())
    data[2] = ord("X")
    assert tensor.tobytes() == b"Xdef"
    whole = bytes(data)
    assert Tensor.from_bytes(memoryview(whole)[2:6], [4], DType.uint8()).tobytes() == b"Xdef"


@pytest.mark.parametrize(
    "view",
    [
        memoryview(np.arange(4, dtype=np.int16)),
        memoryview(np.arange(4, dtype=np.int16).reshape(2, 2)),
        memoryview(np.arange(8, dtype=np.int16))[::2],
        memoryview(np.zeros((0, 3))),
        memoryview(np.arange(4, dtype=">i2")),
        memoryview(b"abcd")[::-1],
    ],
    ids=["int16", "two dimensions", "gaps", "empty", "big-endian", "backwards"],
)
def test_a_memoryview_of_any_format_counts_as_its_bytes(view):
    data = view.tobytes()
    assert Tensor.from_bytes(view, [len(data)], DType.uint8()).tobytes() == data


@pytest.mark.parametrize("data", ["text", None, 5, [1, 2], np.zeros(2, np.uint8)], ids=repr)
def test_data_that_is_no_bytes_is_refused(data):
    with pytest.raises(InvalidType, match="data must be bytes, bytearray or memoryview, got"):
        Tensor.from_bytes(data, [2], DType.uint8())
    with pytest.raises(InvalidType, match="data must be bytes, bytearray or memoryview, got"):
        Tensor.decode(data)


@pytest.mark.parametrize("size", [0, 20, 23, 25, 48])
def test_a_wrong_size_is_refused_with_both_numbers(size):
    with pytest.raises(ValueError, match=rf"^tensor \[2, 3\] float32 needs 24 bytes, got {size}$") as caught:
        Tensor.from_bytes(bytes(size), [2, 3], FLOAT32)
    assert isinstance(caught.value, InvalidUsage)


def test_a_bool_byte_other_than_0_and_1_is_refused_wherever_it_comes_from():
    data = b"\0\1\1\2\xff"
    told = "element 3 of a bool tensor must be the byte 0 or 1, got 2"
    with pytest.raises(InvalidUsage, match=told):
        Tensor.from_bytes(data, [5], DType.bool_())
    with pytest.raises(InvalidUsage, match=told):
        Tensor.from_numpy(np.frombuffer(data, np.uint8).view(bool))
    message = proto.Tensor(meta=proto.TensorMeta(shape=[5], dtype=9), data=data)
    with pytest.raises(InvalidUsage, match=told):
        Tensor.decode(message.SerializeToString())
    assert Tensor.from_bytes(b"\0\1\1", [3], DType.bool_()).to_numpy().tolist() == [False, True, True]


@pytest.mark.parametrize("number", range(1, 17))
def test_zeros_are_zeros_that_can_be_written(number):
    dtype = DType.from_number(number)
    tensor = Tensor.zeros([2, 3], dtype, name="z")
    assert (tensor.shape, tensor.dtype, tensor.name) == ([2, 3], dtype, "z")
    assert tensor.tobytes() == bytes(6 * dtype.element_size)
    tensor.to_numpy()[0, 0] = 1
    assert tensor.tobytes() != bytes(6 * dtype.element_size)


def test_a_scalar_and_an_empty_tensor_have_one_element_and_none():
    assert len(Tensor.zeros([], FLOAT32)) == 1
    assert Tensor.zeros([], FLOAT32).to_numpy().shape == ()
    assert len(Tensor.zeros([0, 3], FLOAT32)) == 0
    assert Tensor.zeros([0, 3], FLOAT32).to_numpy().shape == (0, 3)
    assert Tensor.decode(Tensor.zeros([3, 0], FLOAT32).encode()).shape == [3, 0]


def test_a_copy_is_writable_and_its_own():
    tensor = Tensor.from_bytes(bytes(8), [2], FLOAT32)
    array = tensor.to_numpy(copy=True)
    array[0] = 1
    assert array.flags.owndata
    assert tensor.tobytes() == bytes(8)


def test_numpy_takes_a_tensor_for_an_array():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = Tensor.from_numpy(array)
    assert np.shares_memory(np.asarray(tensor), array)
    assert np.shares_memory(np.asarray(tensor, dtype=np.float32), array)
    assert not np.shares_memory(np.array(tensor), array)
    assert np.asarray(tensor, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.add(tensor, 1), array + 1)
    with pytest.raises(ValueError, match=r"tensor \[2, 3\] float32 cannot become float64 without a copy"):
        tensor.__array__(np.float64, copy=False)  # as numpy 2 calls it for copy=False
    assert np.shares_memory(tensor.__array__(copy=False), array)


def test_bfloat16_and_float8_reach_numpy_through_ml_dtypes():
    for scalar in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        array = np.array([1.5, -2.0, 0.0625], scalar)
        back = Tensor.decode(Tensor.from_numpy(array).encode()).to_numpy()
        assert back.dtype == scalar
        assert back.astype(np.float32).tolist() == [1.5, -2.0, 0.0625]


def test_tensors_are_equal_when_meta_and_bytes_are():
    nan = np.array([np.nan, 0.0], np.float32)
    tensor = Tensor.from_numpy(nan, "x")
    assert tensor == Tensor.from_bytes(nan.tobytes(), [2], FLOAT32, "x")
    assert tensor != Tensor.from_numpy(np.array([np.nan, -0.0], np.float32), "x")
    assert tensor != Tensor.from_numpy(nan)
    assert tensor != Tensor.from_numpy(nan.reshape(1, 2), "x")
    assert tensor != Tensor.from_numpy(nan.view(np.int32), "x")
    assert tensor != "x"
    with pytest.raises(TypeError, match="unhashable"):
        hash(tensor)


def test_repr_is_short_and_shows_no_data():
    assert repr(Tensor.zeros([1000, 3], FLOAT32)) == "Tensor(shape=[1000, 3], dtype=float32)"
    assert repr(Tensor.zeros([], DType.bool_(), "flag")) == "Tensor(shape=[], dtype=bool, name='flag')"


def test_a_tensor_survives_pickle_and_copy():
    tensor = Tensor.from_numpy(np.arange(6, dtype=">f4").reshape(2, 3), "x")
    assert pickle.loads(pickle.dumps(tensor)) == copy.deepcopy(tensor) == copy.copy(tensor) == tensor  # noqa: S301  # its own bytes


def test_a_tensor_is_made_by_its_class_methods_only():
    with pytest.raises(InvalidType, match="from_numpy, from_dlpack, from_bytes, zeros or decode"):
        Tensor()


def test_a_tensor_cannot_be_given_another_shape():
    tensor = Tensor.zeros([2], FLOAT32)
    with pytest.raises(AttributeError):
        tensor.shape = [1, 2]
    tensor.shape.append(5)
    assert tensor.shape == [2]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(data + data)[: len(data)]])
def test_decode_reads_every_kind_of_bytes(kind):
    tensor = Tensor.zeros([2], FLOAT32, "x")
    assert Tensor.decode(kind(tensor.encode())) == tensor


def test_what_is_decoded_is_read_only_and_its_own():
    data = bytearray(Tensor.zeros([2], DType.uint8()).encode())
    tensor = Tensor.decode(data)
    data[-1] = 9
    assert tensor.tobytes() == b"\0\0"
    assert not tensor.to_numpy().flags.writeable


def test_fields_in_any_order_repeated_and_unknown_are_read_as_protobuf_reads_them():
    meta = proto.Tensor(meta=proto.TensorMeta(shape=[2], dtype=8)).SerializeToString()
    renamed = proto.Tensor(meta=proto.TensorMeta(name="x")).SerializeToString()
    unknown = bytes([15 << 3 | 2, 3]) + b"abc"
    data = b"\x12\x01z" + meta + unknown + b"\x12\x02ab" + renamed
    assert Tensor.decode(data) == Tensor.from_bytes(b"ab", [2], DType.uint8(), "x")


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05\x0a", b"\x12\x05abc", b"\x0a\x03\x2a\x01\xff", b"\0"])
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(DecodeError):
        proto.Tensor.FromString(data)
    with pytest.raises(InvalidUsage, match=rf"the {len(data)} bytes are no inference\.v1\.Tensor message"):
        Tensor.decode(data)


def test_an_empty_message_is_refused_because_it_has_no_dtype():
    with pytest.raises(InvalidUsage, match="dtype: 0 is not the number of a data type"):
        Tensor.decode(b"")


@settings(max_examples=300)
@given(data=st.binary(max_size=40))
def test_any_bytes_give_a_tensor_or_an_invalid_usage(data):
    try:
        tensor = Tensor.decode(data)
    except InvalidUsage:
        return
    assert Tensor.decode(tensor.encode()) == tensor


@settings(max_examples=200)
@given(raw=raw_tensors(), data=st.data())
def test_a_damaged_message_gives_a_tensor_or_an_invalid_usage(raw, data):
    shape, dtype, elements = raw
    encoded = bytearray(Tensor.from_bytes(elements, shape, dtype, "x").encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        tensor = Tensor.decode(encoded)
    except InvalidUsage:
        return
    assert tensor.to_numpy().tobytes() == tensor.tobytes()


def test_a_tensor_whose_elements_are_elsewhere_is_refused():
    message = proto.Tensor(meta=proto.TensorMeta(shape=[2], dtype=1), lane=proto.LaneRef(handle="h"))
    with pytest.raises(InvalidUsage, match=r"tensor \[2\] float32 lies in a lane: its elements are not in the message"):
        Tensor.from_proto(message)
    message.data = bytes(8)
    with pytest.raises(InvalidUsage, match="lies in a lane"):
        Tensor.decode(message.SerializeToString())


def test_compressed_elements_are_refused():
    meta = proto.TensorMeta(shape=[2], dtype=1, compression=proto.Compression.COMPRESSION_ZSTD)
    with pytest.raises(InvalidUsage, match="only calls of TensorService take compressed elements"):
        Tensor.from_proto(proto.Tensor(meta=meta, data=bytes(8)))


def test_a_message_of_the_wrong_size_is_refused_with_both_numbers():
    message = proto.Tensor(meta=proto.TensorMeta(shape=[2, 3], dtype=1), data=bytes(20))
    with pytest.raises(InvalidUsage, match=r"^tensor \[2, 3\] float32 needs 24 bytes, got 20$"):
        Tensor.decode(message.SerializeToString())


def test_a_huge_shape_is_refused_before_anything_is_allocated():
    message = proto.Tensor(meta=proto.TensorMeta(shape=[2**40], dtype=1), data=b"1234")
    with pytest.raises(InvalidUsage, match="needs 4398046511104 bytes, got 4"):
        Tensor.decode(message.SerializeToString())


def test_another_message_is_refused():
    with pytest.raises(InvalidType, match=r"inference\.v1\.Tensor message, got TensorMeta"):
        Tensor.from_proto(proto.TensorMeta())


def test_a_tensor_larger_than_a_message_is_refused_before_it_is_copied():
    tensor = Tensor.from_numpy(np.zeros(2**31, np.uint8))  # the kernel gives these pages only when they are touched
    with pytest.raises(InvalidUsage, match=r"encode to 2147483665 bytes, a message holds at most 2147483647"):
        tensor.encode()
