"""Protobuf messages to ProtoJSON values, by converters that are made once per message type."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from quill.wire.json_encode_dense import FieldEntry, dense_encoder, is_plain
from quill.wire.json_encode_scalar import encode_map_key, scalar_encoder
from quill.wire.json_error import DocumentError, shown
from quill.wire.json_wellknown import Encode, well_known_encoder

ANY = "google.protobuf.Any"
"""The message that holds another one with its type."""


@lru_cache(maxsize=1024)
def message_encoder(descriptor: Descriptor) -> Encode:
    """The function that turns a message of this type into its JSON value, defaults omitted.

    It raises DocumentError where a value has no form in JSON. The cache is bounded, so that the descriptors of
    servers long gone, and with them their pools, are given up in time.
    """
    if descriptor.full_name == ANY:
        return _encode_any
    return well_known_encoder(descriptor) or _message_encoder()


def _message_encoder() -> Encode:
    fields = _FieldEncoders()

    def encode_message(message: Any) -> dict[str, Any]:
        document: dict[str, Any] = {}
        name = ""
        try:
            for field, value in message.ListFields():
                name, encode = fields[field]
                document[name] = value if encode is None else encode(value)
        except DocumentError as error:
            error.within(name)
            raise
        return document

    return encode_message


class _FieldEncoders(dict[FieldDescriptor, FieldEntry]):
    """The JSON name and encoder of each field that has occurred; extensions come in the same way."""

    def __missing__(self, field: FieldDescriptor) -> FieldEntry:
        self[field] = entry = _field_entry(field)
        return entry


def _field_entry(field: FieldDescriptor) -> FieldEntry:
    return f"[{field.full_name}]" if field.is_extension else field.json_name, _field_encoder(field)


def _field_encoder(field: FieldDescriptor) -> Encode | None:
    if not field.is_repeated:
        return _value_encoder(field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map_encoder(field.message_type)
    encode = _value_encoder(field)
    if encode is None:
        return list
    if field.message_type is not None and has_object_form(field.message_type) and is_plain(field.message_type):
        return _plain_list_encoder(field.message_type, encode)

    def encode_list(values: Any) -> list[Any]:
        return list(map(encode, values))

    return encode_list


def _plain_list_encoder(descriptor: Descriptor, encode: Encode) -> Encode:
    field_count = len(descriptor.fields)

    def encode_list(values: Any) -> list[Any]:
        # What the last one has set the others have, too, in all likelihood; the first may have a position of 0.
        is_dense = 2 * len(values[-1].ListFields()) > field_count
        return list(map(_dense_encoder(descriptor) if is_dense else encode, values))

    return encode_list


@lru_cache(maxsize=1024)
def _dense_encoder(descriptor: Descriptor) -> Encode:
    """As message_encoder; made when the first message comes, for types may be recursive."""
    return dense_encoder(descriptor, _field_entry)


def _map_encoder(entry: Descriptor) -> Encode:
    encode = _value_encoder(entry.fields_by_name["value"])

    def encode_map(values: Any) -> dict[str, Any]:
        if encode is None:
            return {encode_map_key(key): value for key, value in values.items()}
        return {encode_map_key(key): encode(value) for key, value in values.items()}

    return encode_map


def _value_encoder(field: FieldDescriptor) -> Encode | None:
    return scalar_encoder(field) if field.message_type is None else message_encoder(field.message_type)


def _encode_any(message: Any) -> dict[str, Any]:
    if not message.type_url and not message.value:
        return {}
    pool = message.DESCRIPTOR.file.pool
    try:
        inner_type = pool.FindMessageTypeByName(message.type_url.rpartition("/")[2])
    except KeyError:
        raise DocumentError(
            f"the type {shown(message.type_url)} is not known here, so its value has no form in JSON"
        ) from None
    try:
        inner = GetMessageClass(inner_type).FromString(message.value)
    except DecodeError:
        raise DocumentError(f"its value is not a valid {inner_type.full_name} message") from None
    document = message_encoder(inner_type)(inner)
    if has_object_form(inner_type):
        return {"@type": message.type_url, **document}
    return {"@type": message.type_url, "value": document}


def has_object_form(descriptor: Descriptor) -> bool:
    """Whether the JSON form is that of the message's fields, rather than one of the type's own."""
    return descriptor.full_name != ANY and well_known_encoder(descriptor) is None
