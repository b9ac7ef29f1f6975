"""Single ProtoJSON values to field values: numbers, booleans, strings, bytes, enums.

Source: https://protobuf.dev/programming-guides/json/. Numbers in quotes follow the grammar of JSON numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from quill.wire.base64 import decode_base64
from quill.wire.json_encode_scalar import NULL_VALUE
from quill.wire.json_error import DocumentError, shown

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MAX_INTEGER_CHARACTERS = 40
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# Half a unit in the last place above the largest binary32: from here on a number rounds to infinity.
_FLOAT32_BOUND = math.ldexp(2.0 - 2.0**-24, 127)


def scalar_decoder(field: FieldDescriptor, *, ignore_unknown_names: bool) -> Callable[[Any], Any]:
    """The function that turns a JSON value into the value of a field, an element or a map's value.

    It raises DocumentError where the value does not fit. An unknown name of an enum gives None where
    ``ignore_unknown_names`` is set: such a value is left out.
    """
    if field.enum_type is not None:
        return _enum_decoder(field.enum_type, ignore_unknown_names=ignore_unknown_names)
    return _DECODERS[field.type]


def map_key_decoder(field: FieldDescriptor) -> Callable[[Any], Any]:
    """The function that turns a key of a JSON object into a key of a map.

    Integers and booleans are taken as they are too: ``json.dumps`` makes strings of such keys.
    """
    return _decode_bool_key if field.type == FieldDescriptor.TYPE_BOOL else _DECODERS[field.type]


def _integer_decoder(expected: str, low: int, high: int) -> Callable[[Any], int]:
    def decode(value: Any) -> int:
        number = value if type(value) is int else _integer(value, expected)
        if low <= number <= high:
            return number
        raise DocumentError(f"{shown(value)} is out of range for {expected} ({low} to {high})")

    return decode


def _integer(value: object, expected: str) -> int:
    """The integer that something other than a plain int stands for: ``"12"``, ``1e3``, ``"1.0"``."""
    number = value
    if isinstance(value, str) and len(value) <= _MAX_INTEGER_CHARACTERS and (match := _NUMBER.fullmatch(value)):
        number = float(value) if match[1] or match[2] else int(value)
    if isinstance(number, float) and number.is_integer():
        return int(number)
    if isinstance(number, int) and not isinstance(number, bool):
        return int(number)
    raise DocumentError(f"expected {expected}, got {shown(value)}")


def decode_double(value: Any) -> float:
    """A binary64 from a number, a number in quotes, or a name of what JSON has no number for."""
    number = value if type(value) is float else _number(value)
    if math.isfinite(number) or _is_name(value):
        return number
    raise DocumentError(_beyond(value, "a 64-bit floating-point number"))


def _decode_float32(value: Any) -> float:
    number = value if type(value) is float else _number(value)
    if -_FLOAT32_BOUND < number < _FLOAT32_BOUND or _is_name(value):
        return number
    raise DocumentError(_beyond(value, "a 32-bit floating-point number"))


def _number(value: object) -> float:
    """The number that something other than a plain float stands for; infinite where it is too large."""
    if isinstance(value, str):
        if _is_name(value):
            return _NOT_FINITE[value]
        if _NUMBER.fullmatch(value):
            return float(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise DocumentError(f"expected a number, got {shown(value)}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value in _NOT_FINITE


def _beyond(value: object, kind: str) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'expected {kind} within its range, or one of the strings "NaN", "Infinity" and "-Infinity"'
    return f"{shown(value)} is out of range for {kind}"


def _decode_bool(value: Any) -> bool:
    if value is True or value is False:
        return value
    raise DocumentError(f"expected true or false, got {shown(value)}")


def _decode_bool_key(key: Any) -> bool:
    if isinstance(key, bool):
        return key
    if key in ("true", "false"):
        return bool(key == "true")
    raise DocumentError(f'expected the key "true" or "false", got {shown(key)}')


def decode_string(value: Any) -> str:
    """A string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise DocumentError(f"expected a string, got {shown(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DocumentError("has half of a surrogate pair, which is no Unicode character") from None
    return value


def _decode_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return decode_base64(value.replace("-", "+").replace("_", "/"))
        except ValueError:
            raise DocumentError(f"expected base64, got {shown(value)}") from None
    raise DocumentError(f"expected bytes as a base64 string, got {shown(value)}")


_QUOTED = re.compile(r"-?[0-9]+")
"""A number in quotes, which is no name: protobuf's own parsers take it for an enum as they do for an integer."""


def _enum_decoder(enum: EnumDescriptor, *, ignore_unknown_names: bool) -> Callable[[Any], int | None]:
    numbers = {value.name: value.number for value in enum.values}
    # proto2 enums are closed: a number without a name cannot be stored.
    storable = frozenset(numbers.values()) if enum.is_closed else None
    decode_number = _integer_decoder(f"a name or number of {enum.full_name}", -(2**31), 2**31 - 1)
    takes_null = enum.full_name == NULL_VALUE

    def decode(value: Any) -> int | None:
        number: int | None
        if isinstance(value, str) and not _QUOTED.fullmatch(value):
            number = numbers.get(value)
        else:
            number = 0 if takes_null and value is None else decode_number(value)
        if number is not None and (storable is None or number in storable):
            return number
        if ignore_unknown_names:
            return None
        raise DocumentError(_unknown_name(enum, value))

    return decode


def _unknown_name(enum: EnumDescriptor, value: object) -> str:
    shown_names = 8
    names = [known.name for known in enum.values]
    more = ", …" if len(names) > shown_names else ""
    return f"{enum.full_name} has no value {shown(value)}; it has {', '.join(names[:shown_names])}{more}"


_INT32 = _integer_decoder("a signed 32-bit integer", -(2**31), 2**31 - 1)
_INT64 = _integer_decoder("a signed 64-bit integer", -(2**63), 2**63 - 1)
_UINT32 = _integer_decoder("an unsigned 32-bit integer", 0, 2**32 - 1)
_UINT64 = _integer_decoder("an unsigned 64-bit integer", 0, 2**64 - 1)

_DECODERS: dict[int, Callable[[Any], Any]] = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_FIXED32: _UINT32,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_FIXED64: _UINT64,
    FieldDescriptor.TYPE_FLOAT: _decode_float32,
    FieldDescriptor.TYPE_DOUBLE: decode_double,
    FieldDescriptor.TYPE_BOOL: _decode_bool,
    FieldDescriptor.TYPE_STRING: decode_string,
    FieldDescriptor.TYPE_BYTES: _decode_bytes,
}
