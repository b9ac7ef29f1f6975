"""ProtoJSON values to protobuf messages, by converters that are made once per message type."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from quill.wire.json_decode_scalar import map_key_decoder, scalar_decoder
from quill.wire.json_encode import ANY, has_object_form
from quill.wire.json_encode_scalar import NULL_VALUE
from quill.wire.json_error import DocumentError, UnknownField, check_depth, shown
from quill.wire.json_wellknown import Fill, well_known_decoder

_Get = Callable[[Any], Any]
"""Gets a field of a message: a sub-message or a container."""

_EXTENSION = re.compile(r"\[([A-Za-z0-9_.]+)\]")
_TYPE_URL = re.compile(r"[^\ud800-\udfff]*/([A-Za-z0-9_.]+)")
_MAX_KEY_CHARACTERS = 64
_VALUE = "google.protobuf.Value"


@lru_cache(maxsize=1024)
def message_decoder(descriptor: Descriptor, *, ignore_unknown_fields: bool) -> Fill:
    """The function that fills a fresh message of this type from a JSON value.

    It raises DocumentError where the value does not fit. The cache is bounded, so that the descriptors of
    servers long gone, and with them their pools, are given up in time.
    """
    if descriptor.full_name == ANY:
        return _any_decoder(ignore_unknown_fields=ignore_unknown_fields)
    return well_known_decoder(descriptor) or _MessageDecoder(descriptor, ignore_unknown_fields).fill


class _Field(NamedTuple):
    """How to fill one field."""

    name: str
    """The attribute of the message."""
    decode: Callable[[Any], Any] | None
    """For a single scalar: JSON value to value, or None to leave it out."""
    fill: Fill | None
    """For everything else: fills the field of the message from the JSON value; the depth is the message's."""
    oneof: str | None
    takes_null: bool
    """Whether null is a value of the field; for all others it means absent."""


class _MessageDecoder:
    """Fills messages of one type. Its fields are looked at when the first message comes: types may be recursive."""

    def __init__(self, descriptor: Descriptor, ignore_unknown_fields: bool) -> None:
        self._descriptor = descriptor
        self._ignore_unknown_fields = ignore_unknown_fields

    @cached_property
    def _fields(self) -> dict[str, _Field]:
        """By JSON name. Two threads that come first make it twice, to the same effect."""
        return {field.json_name: self._compile(field) for field in self._descriptor.fields}

    @cached_property
    def _json_names(self) -> dict[str, str]:
        """By original name. The descriptor's own mapping fails on keys that have no UTF-8."""
        return {field.name: field.json_name for field in self._descriptor.fields}

    def fill(self, message: Any, document: Any, depth: int) -> None:
        """Fill a fresh message from a JSON value. See message_decoder."""
        check_depth(depth)
        if type(document) is not dict and not isinstance(document, Mapping):
            raise DocumentError(f"expected an object, got {shown(document)}")
        fields = self._fields
        chosen: dict[str, str] = {}
        key = ""
        try:
            for key, value in document.items():
                field = fields.get(key) or self._rare_field(key, document)
                if field is None:
                    continue
                name, decode, fill, oneof, takes_null = field
                if value is None and not takes_null:
                    continue
                if oneof is not None and chosen.setdefault(oneof, key) != key:
                    _refuse_second_member(oneof, chosen[oneof])
                if fill is not None:
                    fill(message, value, depth)
                elif decode is not None and (decoded := decode(value)) is not None:
                    setattr(message, name, decoded)
        except DocumentError as error:
            error.within(str(key))
            raise

    def _rare_field(self, key: Any, document: Mapping[Any, Any]) -> _Field | None:
        """The field of a key that is no JSON name: an original name, an extension, or none."""
        if not isinstance(key, str):
            raise DocumentError(f"the keys of an object are strings, got {shown(key)}")
        json_name = self._json_names.get(key)
        if json_name is not None:
            if json_name in document:
                raise DocumentError(f'is there twice, as "{key}" and as "{json_name}"')
            return self._fields[json_name]
        if (match := _EXTENSION.fullmatch(key)) and (extension := self._extension(match[1])) is not None:
            return self._compile(extension)
        if self._ignore_unknown_fields:
            return None
        raise self._unknown(key)

    def _extension(self, name: str) -> FieldDescriptor | None:
        try:
            extension = self._descriptor.file.pool.FindExtensionByName(name)
        except KeyError:
            return None
        return extension if extension.containing_type is self._descriptor else None

    def _unknown(self, key: str) -> UnknownField:
        cut = key[:_MAX_KEY_CHARACTERS]
        near = difflib.get_close_matches(cut, [*self._fields, *self._json_names], n=1)
        return UnknownField(f"{self._descriptor.name} has no field {shown(key)}", near[0] if near else None)

    def _compile(self, field: FieldDescriptor) -> _Field:
        takes_null = not field.is_repeated and (
            (field.message_type is not None and field.message_type.full_name == _VALUE)
            or (field.enum_type is not None and field.enum_type.full_name == NULL_VALUE)
        )
        # The oneof of a proto3 optional field has no other member.
        group = field.containing_oneof
        oneof = group.name if group is not None and len(group.fields) > 1 else None
        if field.is_extension or field.is_repeated or field.message_type is not None:
            return _Field(field.name, None, self._container_filler(field), oneof, takes_null)
        return _Field(field.name, self._scalar_decoder(field), None, oneof, takes_null)

    def _container_filler(self, field: FieldDescriptor) -> Fill:
        """The filler of a field that is not simply assigned."""
        get = _extension_getter(field) if field.is_extension else attrgetter(field.name)
        if field.message_type is None:
            decode = self._scalar_decoder(field)
            return _scalar_list_filler(get, decode) if field.is_repeated else _extension_filler(field, decode)
        if field.message_type.GetOptions().map_entry:
            return self._map_filler(get, field.message_type)
        fill = self._message_filler(field)
        return _message_list_filler(get, fill) if field.is_repeated else _message_filler(get, fill)

    def _map_filler(self, get: _Get, entry: Descriptor) -> Fill:
        decode_key = map_key_decoder(entry.fields_by_name["key"])
        value = entry.fields_by_name["value"]
        if value.message_type is None:
            return _scalar_map_filler(get, decode_key, self._scalar_decoder(value))
        return _message_map_filler(get, decode_key, self._message_filler(value))

    def _scalar_decoder(self, field: FieldDescriptor) -> Callable[[Any], Any]:
        return scalar_decoder(field, ignore_unknown_names=self._ignore_unknown_fields)

    def _message_filler(self, field: FieldDescriptor) -> Fill:
        return message_decoder(field.message_type, ignore_unknown_fields=self._ignore_unknown_fields)


def _refuse_second_member(oneof: str, first: str) -> None:
    raise DocumentError(f"only one member of {oneof} can be given, and {shown(first)} is there")


def _refuse_second_entry() -> None:
    raise DocumentError("the same key is there twice, written in two ways")


def _extension_getter(field: FieldDescriptor) -> _Get:
    return lambda message: message.Extensions[field]


def _extension_filler(field: FieldDescriptor, decode: Callable[[Any], Any]) -> Fill:
    def fill(message: Any, value: Any, _depth: int) -> None:
        if (decoded := decode(value)) is not None:
            message.Extensions[field] = decoded

    return fill


def _message_filler(get: _Get, fill_message: Fill) -> Fill:
    def fill(message: Any, value: Any, depth: int) -> None:
        child = get(message)
        child.SetInParent()
        fill_message(child, value, depth + 1)

    return fill


def _scalar_list_filler(get: _Get, decode: Callable[[Any], Any]) -> Fill:
    def fill(message: Any, value: Any, _depth: int) -> None:
        decoded = []
        for index, element in enumerate(_elements(value)):
            try:
                decoded.append(decode(element))
            except DocumentError as error:
                error.within(index)
                raise
        get(message).extend([element for element in decoded if element is not None])

    return fill


def _message_list_filler(get: _Get, fill_message: Fill) -> Fill:
    def fill(message: Any, value: Any, depth: int) -> None:
        add = get(message).add
        for index, element in enumerate(_elements(value)):
            try:
                fill_message(add(), element, depth + 1)
            except DocumentError as error:
                error.within(index)
                raise

    return fill


def _scalar_map_filler(get: _Get, decode_key: Callable[[Any], Any], decode: Callable[[Any], Any]) -> Fill:
    def put(entries: Any, key: Any, value: Any, _depth: int) -> None:
        if (decoded := decode(value)) is not None:
            entries[key] = decoded

    return _map_filler(get, decode_key, put)


def _message_map_filler(get: _Get, decode_key: Callable[[Any], Any], fill_message: Fill) -> Fill:
    def put(entries: Any, key: Any, value: Any, depth: int) -> None:
        fill_message(entries[key], value, depth + 1)

    return _map_filler(get, decode_key, put)


def _map_filler(get: _Get, decode_key: Callable[[Any], Any], put: Callable[[Any, Any, Any, int], None]) -> Fill:
    def fill(message: Any, value: Any, depth: int) -> None:
        check_depth(depth + 1)  # an entry of a map is a message of its own
        entries = get(message)
        for key, member in _members(value):
            try:
                decoded_key = decode_key(key)
                if decoded_key in entries:
                    _refuse_second_entry()
                put(entries, decoded_key, member, depth + 1)
            except DocumentError as error:
                error.within_entry(key)
                raise

    return fill


def _elements(value: Any) -> Sequence[Any]:
    if isinstance(value, (list, tuple)):
        return value
    raise DocumentError(f"expected an array, got {shown(value)}")


def _members(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    raise DocumentError(f"expected an object, got {shown(value)}")


def _any_decoder(*, ignore_unknown_fields: bool) -> Fill:
    def fill(message: Any, value: Any, depth: int) -> None:
        check_depth(depth)
        document = dict(_members(value))
        if not document:
            return
        inner_type = _type_of_any(message.DESCRIPTOR.file.pool, document.get("@type"))
        message.type_url = document.pop("@type")
        inner = GetMessageClass(inner_type)()
        fill_inner = message_decoder(inner_type, ignore_unknown_fields=ignore_unknown_fields)
        fill_inner(inner, document if has_object_form(inner_type) else _value_of_any(document), depth + 1)
        message.value = inner.SerializePartialToString()

    return fill


def _type_of_any(pool: DescriptorPool, url: object) -> Descriptor:
    match = _TYPE_URL.fullmatch(url) if isinstance(url, str) else None
    if match is None:
        raise DocumentError(
            f'expected "@type" with the type as "type.googleapis.com/package.Message", got {shown(url)}'
        )
    try:
        return pool.FindMessageTypeByName(match[1])
    except KeyError:
        raise DocumentError(f"the type {shown(url)} is not known here") from None


def _value_of_any(document: Mapping[str, Any]) -> Any:
    if list(document) != ["value"]:
        raise DocumentError('expected "@type" and "value" and nothing else')
    return document["value"]
