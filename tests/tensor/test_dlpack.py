"""DLPack in both directions: numpy is one oracle, and dlpack.h another, as producers and consumers made by hand."""

import ctypes
import gc
import subprocess
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest

from quill.dtype import DType
from quill.errors import InvalidType, InvalidUsage
from quill.proto import DataType
from quill.proto import Tensor as TensorMessage
from quill.tensor import Tensor

VERSIONED = tuple(map(int, np.__version__.split(".")[:2])) >= (2, 1)
"""Whether numpy knows DLPack 1.0."""
SPOKEN = ["float32", "float16", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
SPOKEN += ["bool", "complex64"]
"""What numpy exports by itself."""
FLOAT8 = ["float8_e4m3fn", "float8_e5m2"]
INT, UINT, FLOAT, BFLOAT, COMPLEX, BOOL = 0, 1, 2, 4, 5, 6
KINDS = {"float": FLOAT, "int": INT, "uint": UINT, "bfloat": BFLOAT, "complex": COMPLEX, "bool": BOOL}
READ_ONLY, IS_COPIED = 1, 2


class DlDataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class DlTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", DlDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = [("tensor", DlTensor), ("context", ctypes.c_void_p), ("deleter", DELETER)]


class ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", DlTensor),
    ]


api = ctypes.PyDLL(None)  # functions of its own, whose types no other module sets
api.PyCapsule_New.restype = ctypes.py_object
api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
api.PyCapsule_GetPointer.restype = ctypes.c_void_p
api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
api.PyCapsule_GetName.restype = ctypes.c_char_p
api.PyCapsule_GetName.argtypes = [ctypes.py_object]
NAMES = {False: b"dltensor", True: b"dltensor_versioned"}


class Consumer:
    """Reads a capsule as dlpack.h says, and holds it until it is told to let go."""

    def __init__(self, capsule):
        self.name = api.PyCapsule_GetName(capsule)
        self.capsule = capsule
        layout = ManagedVersioned if self.name == NAMES[True] else Managed
        self.managed = layout.from_address(api.PyCapsule_GetPointer(capsule, self.name))
        self.tensor = self.managed.tensor

    @property
    def shape(self):
        return self.tensor.shape[: self.tensor.ndim]

    @property
    def dtype(self):
        return (self.tensor.dtype.code, self.tensor.dtype.bits, self.tensor.dtype.lanes)

    def bytes(self, size):
        return ctypes.string_at(self.tensor.data + self.tensor.byte_offset, size)


class Producer:
    """Elements in memory of its own, told as dlpack.h says; counts how often they were deleted."""

    def __init__(self, data, shape, dtype, *, strides=None, device=1, offset=0, versioned=False, flags=0, major=1):
        self.buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        self.deleted = 0
        self.device = device
        self.versioned = versioned
        self.managed = ManagedVersioned() if versioned else Managed()
        if versioned:
            self.managed.major, self.managed.flags = major, flags
        self.deleter = DELETER(self.delete)
        self.managed.deleter = self.deleter
        tensor = self.managed.tensor
        tensor.data = ctypes.addressof(self.buffer)
        tensor.device_type, tensor.ndim, tensor.byte_offset = device, len(shape), offset
        tensor.dtype = DlDataType(*dtype)
        tensor.shape = (ctypes.c_int64 * max(len(shape), 1))(*shape)
        if strides is not None:
            tensor.strides = (ctypes.c_int64 * max(len(shape), 1))(*strides)

    def delete(self, _):
        self.deleted += 1

    def __dlpack_device__(self):
        return (self.device, 0)

    def __dlpack__(self, **options):
        if options and not self.versioned:
            raise TypeError("no options were known before DLPack 1.0")
        return api.PyCapsule_New(ctypes.addressof(self.managed), NAMES[self.versioned], None)


def sample(name, shape=(2, 3)):
    """Every kind of bit: writable, C order."""
    dtype = DType.from_numpy(name)
    count = int(np.prod(shape))
    if name == "bool":
        return (np.arange(count) % 2).astype(bool).reshape(shape)
    raw = np.random.default_rng(7).integers(0, 256, count * dtype.element_size, dtype=np.uint8)
    return raw.view(dtype.to_numpy()).reshape(shape)


def same_bits(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4), (1,), (2, 1, 3, 1)])
def test_numpy_reads_a_tensor_without_a_copy(name, shape):
    array = sample(name, shape)
    seen = np.from_dlpack(Tensor.from_numpy(array))
    assert same_bits(seen, array)
    assert array.size == 0 or np.shares_memory(seen, array)


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4), (1,)])
def test_a_tensor_of_numpys_capsule_is_a_view(name, shape):
    array = sample(name, shape)
    tensor = Tensor.from_dlpack(array, name="x")
    assert (tensor.shape, tensor.dtype, tensor.name) == (list(shape), DType.from_numpy(name), "x")
    assert tensor.tobytes() == array.tobytes()
    assert array.size == 0 or np.shares_memory(tensor.to_numpy(), array)


@pytest.mark.parametrize("name", [*SPOKEN, "bfloat16"])
def test_a_tensor_goes_through_dlpack_into_a_tensor(name):
    array = sample(name)
    again = Tensor.from_dlpack(Tensor.from_numpy(array))
    assert same_bits(again.to_numpy(), array)


@pytest.mark.parametrize("name", [*SPOKEN, "bfloat16"])
@pytest.mark.parametrize("max_version", [None, (0, 8), (1, 0), (1, 1), (2, 0)])
def test_a_capsule_says_what_dlpack_h_wants(name, max_version):
    array = sample(name)
    tensor = Tensor.from_numpy(array)
    seen = Consumer(tensor.__dlpack__(max_version=max_version))
    assert seen.name == NAMES[VERSIONED and max_version is not None and max_version[0] >= 1]
    kind = "".join(letter for letter in name if not letter.isdigit())
    assert seen.dtype == (KINDS[kind], 8 * array.itemsize, 1)
    assert (seen.shape, seen.tensor.device_type, seen.tensor.device_id) == ([2, 3], 1, 0)
    assert seen.bytes(array.nbytes) == array.tobytes()
    assert seen.tensor.data == array.ctypes.data
    assert tensor.__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "bool"])
def test_read_only_elements_are_told_so_or_copied(name):
    array = sample(name)
    tensor = Tensor.from_bytes(array.tobytes(), [2, 3], DType.from_numpy(name))
    home = tensor.to_numpy().ctypes.data
    old = Consumer(tensor.__dlpack__())
    assert old.tensor.data != home
    assert old.bytes(array.nbytes) == array.tobytes()
    with pytest.raises(BufferError, match="read-only"):
        tensor.__dlpack__(copy=False)
    if VERSIONED:
        new = Consumer(tensor.__dlpack__(max_version=(1, 0)))
        assert (new.tensor.data, new.managed.flags) == (home, READ_ONLY)
        assert new.bytes(array.nbytes) == array.tobytes()


@pytest.mark.parametrize("max_version", [None, (1, 0)])
def test_a_copy_is_made_where_it_is_wanted(max_version):
    array = sample("float32")
    tensor = Tensor.from_numpy(array)
    copied = Consumer(tensor.__dlpack__(max_version=max_version, copy=True))
    assert copied.tensor.data != array.ctypes.data
    assert copied.bytes(array.nbytes) == array.tobytes()
    if VERSIONED and max_version:
        assert copied.managed.flags == IS_COPIED
    viewed = Consumer(tensor.__dlpack__(max_version=max_version, copy=False))
    assert viewed.tensor.data == array.ctypes.data


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_is_refused_with_a_way_out(name):
    with pytest.raises(BufferError, match=f"{name} has no form in DLPack.*tobytes"):
        Tensor.from_numpy(sample(name)).__dlpack__(max_version=(1, 0))


def test_other_devices_and_streams_are_refused():
    tensor = Tensor.zeros([2], DType.float32())
    with pytest.raises(BufferError, match="wanted on"):
        tensor.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="stream=1"):
        tensor.__dlpack__(stream=1)
    assert Consumer(tensor.__dlpack__(dl_device=(1, 0))).shape == [2]


@pytest.mark.parametrize("versioned", [False, *([True] * VERSIONED)])
def test_bfloat16_of_another_library_is_viewed(versioned):
    array = sample("bfloat16")
    producer = Producer(array.tobytes(), [2, 3], (BFLOAT, 16, 1), versioned=versioned)
    tensor = Tensor.from_dlpack(producer)
    assert tensor.dtype == DType.bfloat16()
    assert tensor.to_numpy().dtype == ml_dtypes.bfloat16
    assert tensor.tobytes() == array.tobytes()
    assert tensor.to_numpy().ctypes.data == ctypes.addressof(producer.buffer)


@pytest.mark.parametrize("versioned", [False, *([True] * VERSIONED)])
def test_strides_and_an_offset_are_followed(versioned):
    array = np.arange(24, dtype=np.int32)
    producer = Producer(array.tobytes(), [2, 3], (INT, 32, 1), strides=[1, 4], offset=8, device=1, versioned=versioned)
    tensor = Tensor.from_dlpack(producer)
    expected = np.lib.stride_tricks.as_strided(array[2:], (2, 3), (4, 16))
    assert np.array_equal(tensor.to_numpy(), expected)
    assert tensor.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [[], [0], [3, 0, 2]])
def test_scalars_and_empty_tensors_of_another_library_are_read(shape):
    data = np.float32(1.5).tobytes()
    tensor = Tensor.from_dlpack(Producer(data, shape, (FLOAT, 32, 1)))
    assert (tensor.shape, tensor.tobytes()) == (shape, b"" if shape else data)


@pytest.mark.parametrize("versioned", [False, *([True] * VERSIONED)])
@pytest.mark.parametrize("dtype", [(FLOAT, 32, 1), (BFLOAT, 16, 1)])
def test_a_producers_memory_lives_as_long_as_its_tensor_and_is_deleted_once(versioned, dtype):
    producer = Producer(bytes(range(8)), [8 * 8 // dtype[1]], dtype, versioned=versioned)
    tensor = Tensor.from_dlpack(producer)
    array = tensor.to_numpy()
    del tensor
    gc.collect()
    assert (producer.deleted, array.tobytes()) == (0, bytes(range(8)))
    del array
    gc.collect()
    assert producer.deleted == 1


def test_what_is_copied_is_deleted_at_once():
    producer = Producer(bytes(range(8)), [2, 2], (INT, 16, 1), strides=[1, 2])
    tensor = Tensor.from_dlpack(producer)
    gc.collect()
    assert producer.deleted == 1
    assert tensor.tobytes() == bytes([0, 1, 4, 5, 2, 3, 6, 7])


def test_a_tensors_memory_lives_as_long_as_its_consumer():
    class Owner(np.ndarray):
        """An array that can be watched."""

    gone = []
    array = Owner(4, np.int32)
    array[:] = range(4)
    weakref.finalize(array, gone.append, True)
    seen = np.from_dlpack(Tensor.from_numpy(array))
    del array
    gc.collect()
    assert not gone
    assert seen.tolist() == [0, 1, 2, 3]
    del seen
    gc.collect()
    assert gone == [True]


def test_a_capsule_that_nobody_takes_frees_what_it_holds():
    tensor = Tensor.zeros([4], DType.bfloat16())
    before = sys.getrefcount(tensor._data)
    capsule = tensor.__dlpack__()
    del capsule
    gc.collect()
    after = sys.getrefcount(tensor._data)
    assert after == before


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ((FLOAT, 8, 1), "not"),
        ((10, 8, 1), "float8 are not supported"),
        ((12, 8, 1), "float8 are not supported"),
        ((FLOAT, 32, 4), "float32x4 are not supported"),
        ((FLOAT, 128, 1), "not"),
        ((COMPLEX, 128, 1), "complex128"),
        ((3, 64, 1), "not"),
        ((17, 4, 1), "code 17, bits 4 are not supported"),
    ],
)
def test_types_that_cannot_be_sent_are_refused_and_their_memory_freed(dtype, message):
    producer = Producer(bytes(64), [1], dtype)
    with pytest.raises((InvalidType, InvalidUsage), match=message):
        Tensor.from_dlpack(producer)


def test_bytes_that_are_no_bools_are_refused():
    with pytest.raises(InvalidUsage, match="element 1 of a bool tensor"):
        Tensor.from_dlpack(Producer(b"\x01\x02", [2], (BOOL, 8, 1)))


def test_memory_of_another_device_is_refused_before_it_is_asked_for():
    producer = Producer(bytes(4), [1], (FLOAT, 32, 1), device=2)
    with pytest.raises(InvalidUsage, match=r"device \(2, 0\): move them to the CPU"):
        Tensor.from_dlpack(producer)


def test_a_layout_of_the_future_is_refused():
    producer = Producer(bytes(4), [1], (FLOAT, 32, 1), versioned=True, major=2)
    with pytest.raises(InvalidUsage, match=r"DLPack 2\.0"):
        Tensor.from_dlpack(producer)


@pytest.mark.parametrize("thing", [[1.0], b"abc", None, 3])
def test_what_does_not_speak_dlpack_is_refused(thing):
    with pytest.raises(InvalidType, match=f"got {type(thing).__name__}"):
        Tensor.from_dlpack(thing)


def test_a_producers_refusal_is_told():
    class Refuses(Producer):
        def __dlpack__(self, **options):
            raise BufferError("it requires a gradient")

    with pytest.raises(InvalidUsage, match="Refuses does not give its elements: it requires a gradient"):
        Tensor.from_dlpack(Refuses(bytes(4), [1], (FLOAT, 32, 1)))


def test_what_is_no_capsule_is_refused():
    class Odd(Producer):
        def __dlpack__(self, **options):
            return "a capsule"

    with pytest.raises(InvalidUsage, match="no DLPack capsule"):
        Tensor.from_dlpack(Odd(bytes(4), [1], (FLOAT, 32, 1)))


def test_a_capsule_that_was_consumed_is_refused():
    class Again(Producer):
        def __dlpack__(self, **options):
            return self.capsule

    producer = Again(bytes(4), [1], (FLOAT, 32, 1))
    producer.capsule = Producer.__dlpack__(producer)
    Tensor.from_dlpack(producer)
    with pytest.raises(InvalidUsage, match="consumed"):
        Tensor.from_dlpack(producer)


def test_writes_show_on_both_sides():
    tensor = Tensor.zeros([3], DType.int32())
    if VERSIONED:
        np.from_dlpack(tensor)[1] = 7
        assert tensor.to_numpy().tolist() == [0, 7, 0]
    array = np.zeros(3, np.int32)
    viewed = Tensor.from_dlpack(array)
    array[2] = 9
    assert viewed.to_numpy().tolist() == [0, 0, 9]


def test_no_framework_is_imported():
    code = (
        "import sys, numpy, quill; t = quill.Tensor.zeros([2], quill.DType.bfloat16());"
        "quill.Tensor.from_dlpack(t);"
        "print([name for name in ('torch', 'jax', 'tensorflow', 'cupy', 'grpc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("number", [value.number for value in DataType.DESCRIPTOR.values if value.number])
def test_every_bit_pattern_of_every_type_of_the_contract_survives(number):
    """All patterns of one or two bytes, as numpy and ml_dtypes hold them, through the message and through DLPack."""
    dtype = DType.from_number(number)
    patterns = np.arange(2 if dtype == DType.bool_() else 2 ** (8 * min(dtype.element_size, 2)), dtype=np.uint16)
    raw = patterns.astype(np.uint8).tobytes() if dtype.element_size == 1 else patterns.tobytes() * 4
    array = np.frombuffer(raw, dtype.to_numpy())
    tensor = Tensor.from_numpy(array)
    message = TensorMessage.FromString(tensor.encode())
    assert (message.meta.dtype, message.data) == (number, raw)
    again = Tensor.decode(message.SerializeToString()).to_numpy()
    assert (again.dtype, again.tobytes()) == (array.dtype, raw)
    if dtype.name not in FLOAT8:
        assert Tensor.from_dlpack(tensor).to_numpy().tobytes() == raw
