"""DLPack: tensors from and to other libraries without a copy. numpy's own machinery does the work, on the CPU.

What numpy cannot name, bfloat16, travels through it as uint16; here the type is written into the capsule on its way
out, and read and replaced on its way in. Capsules, and what frees them, stay those of their producers.

Source: dlpack.h of DLPack 1.1 (https://github.com/dmlc/dlpack) and the Python specification
(https://dmlc.github.io/dlpack/latest/python_spec.html).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from quill.dtype import DType
from quill.errors import InvalidType, InvalidUsage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CPU = (1, 0)
"""kDLCPU, device 0: where the elements of every Tensor are."""

_HOST_DEVICES = frozenset({1, 3, 11, 13})
"""kDLCPU, and memory of kDLCUDAHost, kDLROCMHost and kDLCUDAManaged, which the CPU reads, too."""
_UINT, _BFLOAT = 1, 4
_LETTERS = {0: "int", _UINT: "uint", 2: "float", 3: "handle", _BFLOAT: "bfloat", 5: "complex", 6: "bool"}
_FLOAT8_CODES = range(7, 15)
_VERSIONED_SINCE = (2, 1)
"""The numpy that has DLPack 1.0."""


class _DataType(ctypes.Structure):
    """DLDataType."""

    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    """The first fields of DLTensor, and of a DLManagedTensor, which begins with one."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
    ]


class _VersionedTensor(ctypes.Structure):
    """The first fields of DLManagedTensorVersioned."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


def export(array: npt.NDArray[Any], dtype: DType, *, max_version: tuple[int, int] | None, copy: bool | None) -> Any:
    """A capsule of an array: a view, or a copy where read-only memory meets a consumer older than DLPack 1.0.

    Raises:
        BufferError: As the specification wants it: of float8, or where a copy is needed and ``copy`` is False.
    """
    import numpy as np

    if dtype.name.startswith("float8"):
        raise BufferError(f"{dtype} has no form in DLPack that other libraries read; to_numpy() and tobytes() have it")
    if dtype == DType.bfloat16():
        array = array.view(np.uint16)
    versioned = max_version is not None and max_version[0] >= 1 and _numpy_version() >= _VERSIONED_SINCE
    if versioned:
        # numpy's own checks apply, and its flags: read-only, copied.
        capsule = array.__dlpack__(max_version=max_version, copy=copy)
    else:
        if copy is False and not array.flags.writeable:
            raise BufferError("the elements are read-only, which only DLPack 1.0 can say: allow a copy")
        capsule = (array.copy() if copy or not array.flags.writeable else array).__dlpack__()
    if dtype == DType.bfloat16():
        _data_type(capsule).code = _BFLOAT
    return capsule


def to_array(producer: Any) -> npt.NDArray[Any]:
    """A view of the elements of whatever speaks DLPack. The view keeps them alive.

    Raises:
        InvalidType: It does not speak DLPack, or its elements are of a type that cannot be sent.
        InvalidUsage: It is not in memory of the CPU, or does not let its elements be seen.
    """
    import ml_dtypes
    import numpy as np

    if not (hasattr(producer, "__dlpack__") and hasattr(producer, "__dlpack_device__")):
        raise InvalidType(f"from_dlpack takes an object with __dlpack__, got {type(producer).__name__}")
    through = _Through(producer)
    try:
        _check_device(producer)
        array: np.ndarray[Any, Any] = np.from_dlpack(through)
    except (InvalidType, InvalidUsage, MemoryError):
        raise
    except Exception as error:
        raise InvalidUsage(f"{type(producer).__name__} does not give its elements: {error}") from error
    return array.view(ml_dtypes.bfloat16) if through.is_bfloat16 else array


def _check_device(producer: Any) -> None:
    """Refuse other devices, before their producers wait for them to make a capsule; numpy does not always ask."""
    device = tuple(map(int, producer.__dlpack_device__()))
    if device[0] not in _HOST_DEVICES:
        raise InvalidUsage(f"the elements are on DLPack device {device}: move them to the CPU first")


class _Through:
    """A producer as numpy sees it: with uint16 in the place of bfloat16."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self.is_bfloat16 = False

    def __dlpack_device__(self) -> tuple[int, int]:
        device = self._producer.__dlpack_device__()
        if device[0] not in _HOST_DEVICES:
            raise InvalidUsage(
                f"the elements are on DLPack device {tuple(map(int, device))}: move them to the CPU first"
            )
        return CPU

    def __dlpack__(self, **options: Any) -> Any:
        try:
            capsule = self._producer.__dlpack__(**options)
        except TypeError:
            if not options:
                raise
            # One that was written before DLPack 1.0 knows no options.
            capsule = self._producer.__dlpack__()
        dtype = _data_type(capsule)
        if dtype.lanes != 1 or dtype.code in _FLOAT8_CODES or dtype.code not in _LETTERS:
            lanes = f"x{dtype.lanes}" if dtype.lanes != 1 else ""
            kind = _LETTERS.get(dtype.code, "float" if dtype.code in _FLOAT8_CODES else f"code {dtype.code}, bits ")
            raise InvalidType(f"DLPack elements of {kind}{dtype.bits}{lanes} are not supported")
        if (dtype.code, dtype.bits) == (_BFLOAT, 16):
            dtype.code = _UINT
            self.is_bfloat16 = True
        return capsule


def _data_type(capsule: Any) -> _DataType:
    """The type in a capsule that nobody has consumed; what is written to it shows there."""
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_IsValid.argtypes = [ctypes.py_object, ctypes.c_char_p]
    for name in (b"dltensor_versioned", b"dltensor"):
        if api.PyCapsule_IsValid(capsule, name):
            address = api.PyCapsule_GetPointer(capsule, name)
            if name == b"dltensor":
                return _Tensor.from_address(address).dtype  # type: ignore[no-any-return]  # ctypes fields are Any
            return _checked(_VersionedTensor.from_address(address)).tensor.dtype  # type: ignore[no-any-return]
    raise InvalidUsage("what __dlpack__ gave is no DLPack capsule, or one that was consumed")


def _checked(tensor: _VersionedTensor) -> _VersionedTensor:
    """Refuse a layout that is not known: another major version may have any."""
    if tensor.major != 1:
        raise InvalidUsage(f"the capsule is of DLPack {tensor.major}.{tensor.minor}, supported is 1")
    return tensor


def _numpy_version() -> tuple[int, int]:
    import numpy as np

    major, minor = np.__version__.split(".")[:2]
    return int(major), int(minor)
