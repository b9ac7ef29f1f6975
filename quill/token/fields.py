"""What the fields of tokens may hold: checks whose errors name the field and the value."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from quill.errors import InvalidType, InvalidUsage

if TYPE_CHECKING:
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)
    T = TypeVar("T")

_UINT32_MAX = 2**32 - 1


def uint32(name: str, value: SupportsIndex) -> int:
    """The int of anything that is one, numpy's included."""
    if type(value) is int and 0 <= value <= _UINT32_MAX:
        return value
    if isinstance(value, bool):
        raise InvalidType(f"{name} must be an int, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidType(f"{name} must be an int, got {value!r}") from None
    if not 0 <= number <= _UINT32_MAX:
        raise InvalidUsage(f"{name} must be from 0 to {_UINT32_MAX}, got {number}")
    return number


def real(name: str, value: Any) -> float:
    """The float of any real number, numpy's included."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidType(f"{name} must be a float, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidUsage(f"{name} is larger than a float can be") from None


def raw(name: str, value: bytes | bytearray | memoryview) -> bytes:
    """The bytes, copied where somebody could change them."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InvalidType(f"{name} must be bytes, got {type(value).__name__}")
    return bytes(value)


def check_text(name: str, value: str) -> None:
    """Refuse what is no text or has no UTF-8."""
    if not isinstance(value, str):
        raise InvalidType(f"{name} must be str, got {type(value).__name__}")
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidUsage(f"{name} {value!r} has no UTF-8: a lone surrogate at index {error.start}") from None


def check_bool(name: str, value: bool) -> None:
    """Refuse what is merely true or false in spirit."""
    if not isinstance(value, bool):
        raise InvalidType(f"{name} must be a bool, got {value!r}")


def check_kind(name: str, value: object, kind: type) -> None:
    """Refuse an item of another class."""
    if not isinstance(value, kind):
        raise InvalidType(f"{name} takes {kind.__name__}, got {type(value).__name__}")


def items(name: str, values: Iterable[T], kind: type[T]) -> list[T]:
    """The items, all of them of one class."""
    if not isinstance(values, Iterable):
        raise InvalidType(f"{name} takes several {kind.__name__}, got {type(values).__name__}")
    listed = list(values)
    for value in listed:
        check_kind(name, value, kind)
    return listed


def check_message(value: object, kind: type[Message]) -> None:
    """Refuse what is no message of this type of the contract."""
    if not isinstance(value, kind):
        raise InvalidType(f"from_proto takes an {kind.DESCRIPTOR.full_name} message, got {type(value).__name__}")


def parsed(kind: type[M], data: bytes | bytearray | memoryview) -> M:
    """The message that is serialized in ``data``.

    Raises:
        InvalidUsage: The bytes are no such message.
        InvalidType: ``data`` is none of bytes, bytearray and memoryview.
    """
    from google.protobuf.message import DecodeError

    serialized = raw("data", data)
    try:
        return kind.FromString(serialized)
    except DecodeError:
        raise InvalidUsage(f"the {len(serialized)} bytes are no {kind.DESCRIPTOR.full_name} message") from None
