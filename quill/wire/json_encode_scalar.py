"""Single field values to ProtoJSON: numbers, strings, bytes, enums.

Source: https://protobuf.dev/programming-guides/json/.
"""

from __future__ import annotations

import math
import struct
from binascii import b2a_base64
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from quill.wire.json_error import DocumentError

NULL_VALUE = "google.protobuf.NullValue"
"""The enum whose only value is null in JSON."""

_TO_INTEGER = 1.5 * 2.0**52
"""Added and taken away again, it rounds what is below 2**51 to an integer, half to even, as round() does in longer."""

_pack_float32 = struct.Struct("<f").pack
_unpack_float32 = struct.Struct("<f").unpack


def scalar_encoder(field: FieldDescriptor) -> Callable[[Any], Any] | None:
    """The function that turns a value of a field into its JSON value; None where they are the same."""
    if field.enum_type is not None:
        return _enum_encoder(field.enum_type)
    return _ENCODERS.get(field.type)


def encode_map_key(key: str | int | bool) -> str:
    """The key of a map as the key of a JSON object."""
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)


def encode_float32(value: float) -> float | str:
    """A binary32 in JSON: the double with the fewest decimal digits that rounds to it, or a name as encode_double.

    0.1 stored as binary32 is 0.100000001490116…; this gives 0.1. Log probabilities are most of what a reply with
    tokens has to print, so usual magnitudes go without text: with n below 2**53 and a power of ten up to 10**22,
    ``n / power`` is exactly the double that the decimal text of n / power stands for.
    """
    mantissa, exponent = math.frexp(value)
    # Not 0.5, for below a power of two the gap is narrower; not 0.0, which has a sign to keep.
    if (mantissa > 0.5 or mantissa < -0.5) and exponent in _BINADES:  # noqa: PLR2004
        half_gap, six, seven, more = _BINADES[exponent]
        candidate = (value * seven + _TO_INTEGER - _TO_INTEGER) / seven
        if -half_gap < candidate - value < half_gap:
            # Of six digits or fewer no two decimals are the same binary32, so there is no shorter one yet.
            shorter = (value * six + _TO_INTEGER - _TO_INTEGER) / six
            return shorter if -half_gap < shorter - value < half_gap else candidate
        for power in more:
            candidate = (value * power + _TO_INTEGER - _TO_INTEGER) / power
            if -half_gap < candidate - value < half_gap:
                return candidate
    return _shortest_by_text(value) if math.isfinite(value) else _not_finite_name(value)


def _shortest_by_text(value: float) -> float:
    """As encode_float32, for every finite value. Nine digits always suffice (IEEE 754-2019, section 5.12.2)."""
    for template in ("%.6g", "%.7g", "%.8g"):
        candidate = float(template % value)
        try:
            if _unpack_float32(_pack_float32(candidate))[0] == value:
                return candidate
        except OverflowError:  # rounded up beyond the largest binary32
            continue
    return float(f"{value:.9g}")


def _binade(exponent: int) -> tuple[float, float, float, list[float]]:
    """For the binary32 numbers in [2**(exponent - 1), 2**exponent): half the gap between two, powers of ten to try.

    They leave six and seven digits before the point, and more of them, where the numbers are largest; the last one
    leaves nine where they are smallest.
    """
    digits = math.floor(math.log10(2.0**exponent * (1 - 2.0**-24))) + 1
    six, seven, *more = (10.0**decimals for decimals in range(6 - digits, 11 - digits))
    return 2.0 ** (exponent - 25), six, seven, more


_BINADES = {exponent: _binade(exponent) for exponent in range(-39, 20)}


def encode_double(value: float) -> float | str:
    """A binary64 in JSON: a number, or the name of what JSON has no number for."""
    return value if math.isfinite(value) else _not_finite_name(value)


def _not_finite_name(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _encode_string(value: str | bytes) -> str:
    if isinstance(value, bytes):
        # proto2 strings are not checked when they are parsed: what is no text comes as bytes.
        raise DocumentError("is not valid UTF-8, so it has no form in JSON")
    return value


def _enum_encoder(enum: EnumDescriptor) -> Callable[[int], str | int | None]:
    # Of two names for one number the first one declared counts.
    names = {value.number: value.name for value in reversed(list(enum.values))}

    def encode(number: int) -> str | int:
        return names.get(number, number)

    def encode_null(_: int) -> None:
        return None

    return encode_null if enum.full_name == NULL_VALUE else encode


def _encode_bytes(value: bytes) -> str:
    return b2a_base64(value, newline=False).decode("ascii")


# 64-bit integers are strings: JSON readers that hold numbers as doubles would lose digits.
_ENCODERS: dict[int, Callable[[Any], Any]] = {
    FieldDescriptor.TYPE_INT64: str,
    FieldDescriptor.TYPE_SINT64: str,
    FieldDescriptor.TYPE_SFIXED64: str,
    FieldDescriptor.TYPE_UINT64: str,
    FieldDescriptor.TYPE_FIXED64: str,
    FieldDescriptor.TYPE_FLOAT: encode_float32,
    FieldDescriptor.TYPE_DOUBLE: encode_double,
    FieldDescriptor.TYPE_STRING: _encode_string,
    FieldDescriptor.TYPE_BYTES: _encode_bytes,
}
