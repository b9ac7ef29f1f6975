"""The well-known types whose ProtoJSON form is not that of their fields, in both directions.

``google.protobuf.Any`` is not here: its form is that of the message inside. Decoders take a fresh message, the
JSON value and the message's depth (limits.MAX_MESSAGE_DEPTH). Source: https://protobuf.dev/programming-guides/json/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.descriptor import Descriptor

from quill.wire.json_decode_scalar import decode_double, decode_string, scalar_decoder
from quill.wire.json_encode_scalar import scalar_encoder
from quill.wire.json_error import DocumentError, check_depth, shown

Fill = Callable[[Any, Any, int], None]
"""Fills a fresh message from a JSON value; the third argument is the message's depth."""
Encode = Callable[[Any], Any]
"""Turns a message into its JSON value."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_SECOND = -62_135_596_800  # 0001-01-01T00:00:00Z
_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z
_MAX_DURATION_S = 315_576_000_000  # 10,000 years of 365.25 days
_NANOS_PER_S = 1_000_000_000
_SECONDS_PER_DAY = 86_400

_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(?:Z|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_DURATION = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?s")
_SNAKE_PATH = re.compile(r"[a-z0-9.]*(?:_[a-z][a-z0-9.]*)*")
_CAMEL_PATH = re.compile(r"[A-Za-z0-9.]*")


def well_known_decoder(descriptor: Descriptor) -> Fill | None:
    """The decoder of a well-known type; None for every other message."""
    if descriptor.full_name in _WRAPPERS:
        return _wrapper_decoder(descriptor)
    return _DECODERS.get(descriptor.full_name)


def well_known_encoder(descriptor: Descriptor) -> Encode | None:
    """The encoder of a well-known type; None for every other message."""
    if descriptor.full_name in _WRAPPERS:
        return _wrapper_encoder(descriptor)
    return _ENCODERS.get(descriptor.full_name)


def _wrapper_decoder(descriptor: Descriptor) -> Fill:
    decode = scalar_decoder(descriptor.fields_by_name["value"], ignore_unknown_names=False)

    def fill(message: Any, value: Any, depth: int) -> None:
        check_depth(depth)
        message.value = decode(value)

    return fill


def _wrapper_encoder(descriptor: Descriptor) -> Encode:
    encode = scalar_encoder(descriptor.fields_by_name["value"])

    def encode_wrapper(message: Any) -> Any:
        return message.value if encode is None else encode(message.value)

    return encode_wrapper


def _decode_struct(message: Any, value: Any, depth: int) -> None:
    check_depth(depth)
    if not isinstance(value, Mapping):
        raise DocumentError(f"expected an object, got {shown(value)}")
    for key, member in value.items():
        try:
            # The entry of the map is a message between the Struct and the Value.
            _decode_value(message.fields[decode_string(key)], member, depth + 2)
        except DocumentError as error:
            error.within_entry(key)
            raise


def _decode_list(message: Any, value: Any, depth: int) -> None:
    check_depth(depth)
    if not isinstance(value, (list, tuple)):
        raise DocumentError(f"expected an array, got {shown(value)}")
    for index, element in enumerate(value):
        try:
            _decode_value(message.values.add(), element, depth + 1)
        except DocumentError as error:
            error.within(index)
            raise


def _decode_value(message: Any, value: Any, depth: int) -> None:
    check_depth(depth)
    match value:
        case None:
            message.null_value = 0
        case bool():
            message.bool_value = value
        case str():
            message.string_value = decode_string(value)
        case int() | float():
            message.number_value = decode_double(value)
        case Mapping():
            message.struct_value.SetInParent()
            _decode_struct(message.struct_value, value, depth + 1)
        case list() | tuple():
            message.list_value.SetInParent()
            _decode_list(message.list_value, value, depth + 1)
        case _:
            raise DocumentError(f"expected a JSON value, got {shown(value)}")


def _encode_struct(message: Any) -> dict[str, Any]:
    fields = message.fields
    return {key: _encode_value(fields[key]) for key in fields}


def _encode_list(message: Any) -> list[Any]:
    return [_encode_value(value) for value in message.values]


def _encode_value(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "struct_value":
        return _encode_struct(message.struct_value)
    if kind == "list_value":
        return _encode_list(message.list_value)
    if kind is None or kind == "null_value":
        return None
    value = getattr(message, kind)
    if kind == "number_value" and not abs(value) < float("inf"):
        raise DocumentError(f"google.protobuf.Value holds {value}, for which JSON has no number")
    return value


def _decode_timestamp(message: Any, value: Any, depth: int) -> None:
    check_depth(depth)
    match = _TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise DocumentError(f'expected a time as RFC 3339 has it, "2025-01-31T12:00:00.5Z", got {shown(value)}')
    text, fraction, sign, hours, minutes = match.groups()
    try:
        since_epoch = datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH
    except ValueError:
        raise DocumentError(f"{shown(value)} is no time of the calendar") from None
    offset_s = (int(hours) * 60 + int(minutes)) * 60 if sign else 0
    seconds = since_epoch.days * _SECONDS_PER_DAY + since_epoch.seconds + (offset_s if sign == "-" else -offset_s)
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        raise DocumentError(f"{shown(value)} is not within the years 0001 to 9999 of UTC")
    message.seconds = seconds
    message.nanos = _nanos(fraction)


def _encode_timestamp(message: Any) -> str:
    seconds, nanos = message.seconds, message.nanos
    if not (_FIRST_SECOND <= seconds <= _LAST_SECOND and 0 <= nanos < _NANOS_PER_S):
        raise DocumentError(f"no time of the years 0001 to 9999: {seconds} s and {nanos} ns from 1970")
    days, second = divmod(seconds, _SECONDS_PER_DAY)
    day = datetime.fromordinal(_EPOCH.toordinal() + days).date()
    return f"{day.isoformat()}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}{_fraction(nanos)}Z"


def _decode_duration(message: Any, value: Any, depth: int) -> None:
    check_depth(depth)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise DocumentError(f'expected seconds with the suffix "s", such as "1.5s", got {shown(value)}')
    sign = -1 if match[1] else 1
    seconds, nanos = int(match[2]), _nanos(match[3])
    if seconds > _MAX_DURATION_S or (seconds == _MAX_DURATION_S and nanos):
        raise DocumentError(f"{shown(value)} is more than {_MAX_DURATION_S} seconds")
    message.seconds, message.nanos = sign * seconds, sign * nanos


def _encode_duration(message: Any) -> str:
    seconds, nanos = message.seconds, message.nanos
    if abs(seconds) > _MAX_DURATION_S or abs(nanos) >= _NANOS_PER_S or seconds * nanos < 0:
        raise DocumentError(f"no duration: {seconds} s and {nanos} ns")
    sign = "-" if seconds < 0 or nanos < 0 else ""
    return f"{sign}{abs(seconds)}{_fraction(abs(nanos))}s"


def _nanos(fraction: str | None) -> int:
    return int(fraction.ljust(9, "0")) if fraction else 0


def _fraction(nanos: int) -> str:
    """The fraction of a second in 0, 3, 6 or 9 digits, as few as hold it."""
    if not nanos:
        return ""
    digits = f"{nanos:09}"
    while digits.endswith("000"):
        digits = digits[:-3]
    return f".{digits}"


def _decode_field_mask(message: Any, value: Any, depth: int) -> None:
    check_depth(depth)
    if not isinstance(value, str) or not all(map(_CAMEL_PATH.fullmatch, value.split(","))):
        raise DocumentError(
            f'expected field paths in lowerCamelCase, such as "user.displayName,photo", got {shown(value)}'
        )
    if value:
        message.paths.extend(re.sub("[A-Z]", lambda upper: "_" + upper[0].lower(), path) for path in value.split(","))


def _encode_field_mask(message: Any) -> str:
    for path in message.paths:
        if not _SNAKE_PATH.fullmatch(path):
            raise DocumentError(f"the path {shown(path)} has no form in lowerCamelCase that could be read back")
    return ",".join(re.sub("_([a-z])", lambda lower: lower[1].upper(), path) for path in message.paths)


_DECODERS: dict[str, Fill] = {
    "google.protobuf.Duration": _decode_duration,
    "google.protobuf.FieldMask": _decode_field_mask,
    "google.protobuf.ListValue": _decode_list,
    "google.protobuf.Struct": _decode_struct,
    "google.protobuf.Timestamp": _decode_timestamp,
    "google.protobuf.Value": _decode_value,
}
_ENCODERS: dict[str, Encode] = {
    "google.protobuf.Duration": _encode_duration,
    "google.protobuf.FieldMask": _encode_field_mask,
    "google.protobuf.ListValue": _encode_list,
    "google.protobuf.Struct": _encode_struct,
    "google.protobuf.Timestamp": _encode_timestamp,
    "google.protobuf.Value": _encode_value,
}
_WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
)
