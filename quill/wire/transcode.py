"""Canonical ProtoJSON to protobuf and back, for any message type that has a descriptor.

The one place that knows ProtoJSON (https://protobuf.dev/programming-guides/json/): lowerCamelCase names out, those
and the original ones in; defaults omitted; 64-bit integers as strings; bytes in base64. The converters of a type are
made when its first message comes and kept (json_encode, json_decode).

    transcode.json_to_proto(GenerateRequest.DESCRIPTOR, b'{"prompt": "Hi"}', ignore_unknown_fields=False)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from quill.errors import InvalidArgument, ResourceExhausted
from quill.limits import MAX_MESSAGE_DEPTH
from quill.wire.json_decode import message_decoder
from quill.wire.json_encode import message_encoder
from quill.wire.json_error import DocumentError, TooDeep, shown
from quill.wire.large import ONE_PIECE_BYTES, parse_float, parse_int

_to_text = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode

_PIECE_VALUES = 4096


def json_to_proto(
    descriptor: Descriptor,
    document: bytes | str | Mapping[str, Any],
    *,
    ignore_unknown_fields: bool,
    max_depth: int = MAX_MESSAGE_DEPTH,
) -> bytes:
    """Turn a JSON document into a serialized message.

    Args:
        descriptor: The message's type.
        document: JSON text (bytes are UTF-8), or what ``json.loads`` makes of one. In a mapping, ``bytes`` are taken
            for bytes fields, tuples for arrays, and integers and booleans as keys of maps.
        ignore_unknown_fields: Whether to leave out keys that name no field and names that no enum has, rather than
            to refuse them.
        max_depth: How many messages may lie within each other, 100 at most.

    Returns:
        The message in protobuf's binary form. Required fields of proto2 may be missing.

    Raises:
        InvalidArgument: The text is not JSON, has a key twice or nests messages too deep, or a value does not
            fit; the message names its path: ``messages[2].role: expected a string, got 3``.
    """
    value = parse_json(document) if isinstance(document, (bytes, str)) else document
    message = GetMessageClass(descriptor)()
    try:
        # Depths are compared with the most there can be: a lower bound begins deeper.
        fill = message_decoder(descriptor, ignore_unknown_fields=ignore_unknown_fields)
        fill(message, value, 1 + MAX_MESSAGE_DEPTH - max_depth)
    except TooDeep:
        raise InvalidArgument(f"messages are nested more than {max_depth} deep") from None
    except DocumentError as error:
        raise InvalidArgument(str(error)) from None
    return bytes(message.SerializePartialToString())


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text (bytes are UTF-8), read strictly: nothing beyond RFC 8259, and no key twice.

    Raises:
        InvalidArgument: It is no such text.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        if len(text) <= ONE_PIECE_BYTES:
            return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=parse_int,
            parse_float=parse_float,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as error:
        reason = f"the document is not valid UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        reason = f"the document is not valid JSON at line {error.lineno}, column {error.colno}"
    except DocumentError as error:
        reason = str(error)
    except ValueError:  # Python's bound on the digits of an integer
        reason = "the document has a number of too many digits"
    except RecursionError:
        reason = "the document is nested too deep"
    raise InvalidArgument(reason)


def proto_to_json(descriptor: Descriptor, data: bytes, *, max_bytes: int | None = None) -> bytes:
    """Turn a serialized message into JSON text: UTF-8, without spaces, defaults omitted.

    Args:
        descriptor: The message's type.
        data: The message.
        max_bytes: How long the text may be. No more of a longer one is written.

    Raises:
        InvalidArgument: The bytes are no message of this type, or a value in it has no form in JSON (a timestamp out
            of range, an Any of unknown type, a Value that is not finite).
        ResourceExhausted: The text is longer than it may be.
    """
    value = _to_value(descriptor, data)
    if len(data) <= ONE_PIECE_BYTES:
        return _bounded((_to_text(value),), max_bytes)
    return _bounded(_pieces(value), max_bytes)


def _bounded(pieces: Iterable[str], max_bytes: int | None) -> bytes:
    text = bytearray()
    for piece in pieces:
        text += piece.encode()
        if max_bytes is not None and len(text) > max_bytes:
            raise ResourceExhausted(f"as JSON the reply has {len(text)} bytes or more, max_reply_bytes is {max_bytes}")
    return bytes(text)


def proto_to_dict(descriptor: Descriptor, data: bytes) -> dict[str, Any]:
    """Turn a serialized message into what ``json.loads`` would make of its JSON form.

    Raises:
        InvalidArgument: As proto_to_json; or the type is one whose JSON form is not an object
            (google.protobuf.StringValue and its like).
    """
    value = _to_value(descriptor, data)
    if not isinstance(value, dict):
        raise InvalidArgument(f"{descriptor.full_name} is {shown(value)} in JSON, not an object; ask for JSON text")
    return value


def _to_value(descriptor: Descriptor, data: bytes) -> Any:
    try:
        message = GetMessageClass(descriptor).FromString(data)
    except DecodeError:
        raise InvalidArgument(f"{len(data)} bytes are not a valid {descriptor.full_name} message") from None
    try:
        return message_encoder(descriptor)(message)
    except DocumentError as error:
        raise InvalidArgument(str(error)) from None


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(members)
    if len(document) != len(members):
        (twice, _), *_ = Counter(key for key, _ in members).most_common(1)
        raise DocumentError(f"the document has the key {shown(twice)} twice in one object")
    return document


def _refuse_constant(name: str) -> Any:
    raise DocumentError(f'{name} is not valid JSON; floating-point fields take it as a string, "{name}"')


def _pieces(value: Any) -> Iterator[str]:
    """The JSON text of a value, in pieces of some thousand values."""
    if isinstance(value, dict) and value:
        opening = "{"
        for key, member in value.items():
            yield f"{opening}{_to_text(key)}:"
            yield from _pieces(member)
            opening = ","
        yield "}"
    elif isinstance(value, list) and value:
        yield from _pieces_of_list(value)
    else:
        yield _to_text(value)


def _pieces_of_list(values: list[Any]) -> Iterator[str]:
    """Elements are alike in most messages; three of them tell how many make a piece."""
    weight = max(_weight(values[index]) for index in (0, len(values) // 2, -1))
    step = _PIECE_VALUES // weight
    opening = "["
    if step:
        for start in range(0, len(values), step):
            yield opening + _to_text(values[start : start + step])[1:-1]
            opening = ","
    else:
        for element in values:
            yield opening
            yield from _pieces(element)
            opening = ","
    yield "]"


def _weight(value: Any) -> int:
    """How many values there are in a value, itself included, counted no further than needed."""
    count, waiting = 0, [value]
    while waiting and count <= _PIECE_VALUES:
        found = waiting.pop()
        count += 1
        if isinstance(found, dict):
            waiting.extend(found.values())
        elif isinstance(found, list):
            count += max(0, len(found) - _PIECE_VALUES)
            waiting.extend(found[:_PIECE_VALUES])
    return count
