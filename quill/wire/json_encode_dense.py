"""Messages of a few plain fields, most of them set: a function that is written out for the type, without a loop.

Tokens are such messages, and a reply may have thousands. Asking each field for its value costs less than having those
listed that are set, as long as there are not many others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import copysign
from operator import attrgetter
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from quill.wire.json_error import DocumentError
from quill.wire.json_wellknown import Encode

FieldEntry: TypeAlias = tuple[str, Encode | None]
"""The name of a field in JSON, and the encoder of its value; None where that stays as it is."""

_MOST_FIELDS = 16


def is_plain(descriptor: Descriptor) -> bool:
    """Whether a type has few fields, whose values say whether they are set, or nearly so.

    Messages, and fields with a default of their own, have a value in any case.
    """
    return 1 < len(descriptor.fields) <= _MOST_FIELDS and not (
        descriptor.is_extendable
        or any(not field.is_repeated and (field.message_type or field.default_value) for field in descriptor.fields)
    )


def dense_encoder(descriptor: Descriptor, entry_of: Callable[[FieldDescriptor], FieldEntry]) -> Encode:
    """The function that turns a message of a plain type into its JSON value, as every encoder does.

    Its text depends on the number and the kinds of the fields. Their names, which a server may have told, are values
    to it.
    """
    fields = list(descriptor.fields)
    entries = [entry_of(field) for field in fields]
    scope: dict[str, Any] = {
        "DocumentError": DocumentError,
        "copysign": copysign,
        "get": attrgetter(*(field.name for field in fields)),
        "has": GetMessageClass(descriptor).HasField,
    }
    for index, (field, (name, encode)) in enumerate(zip(fields, entries, strict=True)):
        scope |= {f"field{index}": field.name, f"name{index}": name, f"encode{index}": encode}
    lines = [line for index, field in enumerate(fields) for line in _lines(index, field, entries[index][1])]
    values = ", ".join(f"value{index}" for index in range(len(fields)))
    exec(_FUNCTION.format(values=values, fields="\n        ".join(lines)), scope)  # noqa: S102 - see above
    written: Encode = scope["encode_message"]
    return written


_FUNCTION = """
def encode_message(message):
    document = {{}}
    name = ""
    try:
        {values} = get(message)
        {fields}
    except DocumentError as error:
        error.within(name)
        raise
    return document
"""


def _lines(index: int, field: FieldDescriptor, encode: Encode | None) -> Iterator[str]:
    """What is done for one field."""
    value = f"value{index}"
    put = f"name = name{index}; document[name] = " + (value if encode is None else f"encode{index}({value})")
    yield f"if {value}: {put}"
    if field.is_repeated:
        return
    if field.has_presence:
        yield f"elif has(message, field{index}): {put}"
    elif field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        yield f"elif copysign(1.0, {value}) < 0: {put}"  # -0.0 is not the default
