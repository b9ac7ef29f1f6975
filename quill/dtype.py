"""The types that a tensor's elements can have: one table of sizes, numbers of the contract, and numpy's names.

numpy and ml_dtypes, which has bfloat16 and float8 for numpy, load when a conversion first needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from quill.errors import InvalidType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_Kind = Literal["bool", "signed", "unsigned", "float", "complex"]


@dataclass(frozen=True, slots=True, repr=False)
class DType:
    """The type of one element. Every multi-byte element is little-endian.

    There are sixteen, one from each static method: ``DType.float32()``. They compare by value, can be dictionary
    keys, and print as ``float32``. The source of the list is the enum ``inference.v1.DataType``.
    """

    name: str
    """The name, which is also numpy's: ``float32``."""
    element_size: int
    """Bytes of one element."""
    number: int
    """The value of inference.v1.DataType, 1 to 16."""
    _kind: _Kind

    def is_float(self) -> bool:
        """Whether it is a real floating-point type, bfloat16 and float8 included. False for complex64."""
        return self._kind == "float"

    def is_integer(self) -> bool:
        """Whether it is an integer type. False for bool."""
        return self._kind in ("signed", "unsigned")

    def is_signed(self) -> bool:
        """Whether it has values below zero: the signed integers, the floats, and complex64, whose parts do."""
        return self._kind in ("signed", "float", "complex")

    def __repr__(self) -> str:
        return f"DType.{self.name}"

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def from_number(number: int) -> DType:
        """The type with a number of inference.v1.DataType.

        Raises:
            InvalidType: There is none; 0 is DATA_TYPE_UNSPECIFIED.
        """
        dtype = _BY_NUMBER.get(number)
        if dtype is None:
            raise InvalidType(f"{number!r} is not the number of a data type; supported: {_SUPPORTED_NUMBERS}")
        return dtype

    @staticmethod
    def from_numpy(dtype: npt.DTypeLike) -> DType:
        """The type of a numpy dtype, or of what numpy takes for one: ``np.float32``, ``">f4"``, ``"bfloat16"``.

        The byte order is not part of a DType: ``">f4"`` is float32 too.

        Raises:
            InvalidType: It is no numpy dtype, or one that cannot be sent: object, str, float128, complex128,
                datetime64, structured types.
        """
        import ml_dtypes  # noqa: F401  # makes numpy know the names bfloat16 and float8_*
        import numpy as np

        try:
            # numpy takes None for float64; nobody who passes None means that.
            found = None if dtype is None else _of_numpy(np.dtype(dtype))
        except (TypeError, ValueError, SyntaxError):
            found = None
        if found is None:
            raise InvalidType(f"dtype {dtype!r} is not supported; supported: {_SUPPORTED_NAMES}")
        return found

    def to_numpy(self) -> np.dtype[np.generic]:
        """The little-endian numpy dtype; bfloat16 and float8 are those of ml_dtypes."""
        return _to_numpy(self.name)

    @staticmethod
    def float32() -> DType:
        """IEEE 754 binary32, 4 bytes."""
        return _BY_NAME["float32"]

    @staticmethod
    def float16() -> DType:
        """IEEE 754 binary16, 2 bytes."""
        return _BY_NAME["float16"]

    @staticmethod
    def bfloat16() -> DType:
        """Brain floating point: the upper half of a binary32, 2 bytes."""
        return _BY_NAME["bfloat16"]

    @staticmethod
    def float64() -> DType:
        """IEEE 754 binary64, 8 bytes."""
        return _BY_NAME["float64"]

    @staticmethod
    def int8() -> DType:
        """Two's complement, 1 byte."""
        return _BY_NAME["int8"]

    @staticmethod
    def int16() -> DType:
        """Two's complement, 2 bytes."""
        return _BY_NAME["int16"]

    @staticmethod
    def int32() -> DType:
        """Two's complement, 4 bytes."""
        return _BY_NAME["int32"]

    @staticmethod
    def int64() -> DType:
        """Two's complement, 8 bytes."""
        return _BY_NAME["int64"]

    @staticmethod
    def uint8() -> DType:
        """Unsigned, 1 byte."""
        return _BY_NAME["uint8"]

    @staticmethod
    def uint16() -> DType:
        """Unsigned, 2 bytes."""
        return _BY_NAME["uint16"]

    @staticmethod
    def uint32() -> DType:
        """Unsigned, 4 bytes."""
        return _BY_NAME["uint32"]

    @staticmethod
    def uint64() -> DType:
        """Unsigned, 8 bytes."""
        return _BY_NAME["uint64"]

    @staticmethod
    def bool_() -> DType:
        """One byte, 0 or 1."""
        return _BY_NAME["bool"]

    @staticmethod
    def complex64() -> DType:
        """Two binary32, real and imaginary part, 8 bytes."""
        return _BY_NAME["complex64"]

    @staticmethod
    def float8_e4m3fn() -> DType:
        """Four exponent and three mantissa bits, no infinities, one NaN (OCP OFP8 E4M3), 1 byte."""
        return _BY_NAME["float8_e4m3fn"]

    @staticmethod
    def float8_e5m2() -> DType:
        """Five exponent and two mantissa bits (OCP OFP8 E5M2), 1 byte."""
        return _BY_NAME["float8_e5m2"]


@lru_cache(maxsize=64)
def _of_numpy(dtype: np.dtype[Any]) -> DType | None:
    """The type of a numpy dtype, whose name takes numpy long to say; None where it cannot be sent."""
    return _BY_NAME.get(dtype.name)


@cache
def _to_numpy(name: str) -> np.dtype[np.generic]:
    """The little-endian numpy dtype of a name in the table."""
    import ml_dtypes  # noqa: F401  # makes numpy know the names bfloat16 and float8_*
    import numpy as np

    return np.dtype(name).newbyteorder("<")


_TABLE = (
    DType("float32", 4, 1, "float"),
    DType("float16", 2, 2, "float"),
    DType("bfloat16", 2, 3, "float"),
    DType("float64", 8, 4, "float"),
    DType("int8", 1, 5, "signed"),
    DType("int32", 4, 6, "signed"),
    DType("int64", 8, 7, "signed"),
    DType("uint8", 1, 8, "unsigned"),
    DType("bool", 1, 9, "bool"),
    DType("int16", 2, 10, "signed"),
    DType("uint16", 2, 11, "unsigned"),
    DType("uint32", 4, 12, "unsigned"),
    DType("uint64", 8, 13, "unsigned"),
    DType("complex64", 8, 14, "complex"),
    DType("float8_e4m3fn", 1, 15, "float"),
    DType("float8_e5m2", 1, 16, "float"),
)
_BY_NAME = {dtype.name: dtype for dtype in _TABLE}
_BY_NUMBER = {dtype.number: dtype for dtype in _TABLE}
_SUPPORTED_NAMES = ", ".join(_BY_NAME)
_SUPPORTED_NUMBERS = ", ".join(f"{dtype.number} {dtype.name}" for dtype in _TABLE)
