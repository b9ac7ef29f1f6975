"""Messages filled from what a caller writes; errors name the field and show no text that may be private."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from quill.errors import InvalidType, InvalidUsage
from quill.token.fields import uint32

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)

Converters = Mapping[str, Callable[[str, Any], Any]]
"""By field: from its name in errors and what may be written otherwise than in the contract to the field's value."""


def filled(message: M, values: Mapping[str, Any], converters: Converters, *, path: str = "") -> M:
    """The message with these fields set. None stands for absent.

    Args:
        message: Changed.
        values: The fields, by name.
        converters: For fields that may be written otherwise.
        path: What stands before the names in errors: ``messages[0].``.

    Raises:
        InvalidUsage: There is no such field, a value is out of range, or two values exclude each other.
        InvalidType: A value is of a type that its field does not have.
    """
    given = {name: value for name, value in values.items() if value is not None}
    _check_names(message, given, path)
    for name, value in given.items():
        shown_name = f"{path}{name}"
        convert = converters.get(name)
        ready = value if convert is None else convert(shown_name, value)
        try:
            message.MergeFrom(type(message)(**{name: ready}))
        except TypeError:
            raise InvalidType(f"{shown_name!r} cannot be {shown(value)}") from None
        except UnicodeError:
            raise InvalidUsage(f"{shown_name!r} is no text that UTF-8 can carry") from None
        except (ValueError, OverflowError):
            raise InvalidUsage(f"{shown_name!r} is out of range or does not fit: {shown(value)}") from None
    return message


def filled_from(kind: type[M], name: str, value: Any, converters: Converters) -> M:
    """The message of a mapping, or the message itself where it is one.

    Raises:
        InvalidType: It is neither.
        InvalidUsage: As for ``filled``.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise InvalidType(f"{name!r} must be a mapping or a {kind.DESCRIPTOR.full_name}, got {shown(value)}")
    return filled(kind(), value, converters, path=f"{name}.")


def check_one(values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Make sure that exactly one of some fields is given.

    Raises:
        InvalidUsage: None is, or more than one.
    """
    given = [name for name in names if values.get(name) is not None]
    if len(given) != 1:
        raise InvalidUsage(f"exactly one of {', '.join(names)} must be given, got {' and '.join(given) or 'none'}")


def several(name: str, value: Any) -> list[Any]:
    """The items of what must be a sequence of them.

    Raises:
        InvalidType: It is one thing, or nothing to iterate over.
    """
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping) or not isinstance(value, Iterable):
        raise InvalidType(f"{name!r} must be a sequence, got {shown(value)}")
    return list(value)


def token_ids(name: str, value: Iterable[SupportsIndex]) -> list[int]:
    """Token ids: ints of any kind, numpy's included, each at least 0 and below 2**32.

    Raises:
        InvalidType: It is something else. Bytes are: they are ints to Python, and seldom meant as such.
        InvalidUsage: One is out of range.
    """
    return [uint32(f"{name}[{place}]", item) for place, item in enumerate(several(name, value))]


def json_text(name: str, value: Any) -> Any:
    """JSON as text; what is written as a mapping is put into it.

    Raises:
        InvalidUsage: The mapping holds what JSON cannot.
    """
    if not isinstance(value, Mapping):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidUsage(f"{name!r} cannot be written as JSON: {error}") from None


def shown(value: Any) -> str:
    """A number as it is; of anything else, which may be long or private, the type."""
    return repr(value) if isinstance(value, int | float) else f"a {type(value).__name__}"


def _check_names(message: Message, given: Mapping[str, Any], path: str) -> None:
    oneofs = _oneofs(message.DESCRIPTOR)
    for name in given:
        if name not in oneofs:
            close = difflib.get_close_matches(name, oneofs, 1)
            hint = f", did you mean {path + close[0]!r}?" if close else f"; there are: {', '.join(oneofs)}"
            raise InvalidUsage(f"unknown option {path + name!r}{hint}")
    by_oneof: dict[str, str] = {}
    for name in given:
        oneof = oneofs[name]
        if oneof is not None and (other := by_oneof.setdefault(oneof, name)) != name:
            raise InvalidUsage(f"{path}{other} and {path}{name} exclude each other: give one")


@cache
def _oneofs(kind: Descriptor) -> dict[str, str | None]:
    """The fields of a message, each with the oneof that it is of: asking protobuf takes 20 us a request."""
    oneofs = {field.name: oneof.name for oneof in kind.oneofs for field in oneof.fields}
    return {field.name: oneofs.get(field.name) for field in kind.fields}
