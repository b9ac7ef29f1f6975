"""Both directions against google.protobuf.json_format, which was written by others."""

import json
import math
import struct

import pytest
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    json_format,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal.type_checkers import ToShortestFloat
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import proto
from quill.errors import InvalidArgument
from quill.wire import transcode
from quill.wire.json_encode_scalar import encode_float32

FieldProto = descriptor_pb2.FieldDescriptorProto

SCALARS = [
    "double", "float", "int64", "uint64", "int32", "fixed64", "fixed32", "bool",
    "string", "bytes", "uint32", "sfixed32", "sfixed64", "sint32", "sint64",
]  # fmt: skip
KEYS = [kind for kind in SCALARS if kind not in {"double", "float", "bytes"}]
WELL_KNOWN = {
    "struct": struct_pb2.Struct, "value": struct_pb2.Value, "list_value": struct_pb2.ListValue,
    "timestamp": timestamp_pb2.Timestamp, "duration": duration_pb2.Duration, "field_mask": field_mask_pb2.FieldMask,
    "any": any_pb2.Any, "empty": empty_pb2.Empty, "bool_value": wrappers_pb2.BoolValue,
    "bytes_value": wrappers_pb2.BytesValue, "double_value": wrappers_pb2.DoubleValue,
    "float_value": wrappers_pb2.FloatValue, "int32_value": wrappers_pb2.Int32Value,
    "int64_value": wrappers_pb2.Int64Value, "string_value": wrappers_pb2.StringValue,
    "uint32_value": wrappers_pb2.UInt32Value, "uint64_value": wrappers_pb2.UInt64Value,
}  # fmt: skip


def _add(message, name, kind, *, label=FieldProto.LABEL_OPTIONAL, type_name=None, **options):
    number = len(message.field) + 1
    kind = getattr(FieldProto, f"TYPE_{kind.upper()}")
    return message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name, **options)


def _add_map(message, name, key, value, type_name=None):
    entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
    entry = message.nested_type.add(name=entry_name)
    entry.options.map_entry = True
    _add(entry, "key", key)
    _add(entry, "value", value, type_name=type_name)
    _add(message, name, "message", label=FieldProto.LABEL_REPEATED, type_name=f".kinds.{message.name}.{entry_name}")


def _add_optional(message, name, kind):
    _add(message, name, kind, proto3_optional=True, oneof_index=len(message.oneof_decl))
    message.oneof_decl.add(name=f"_{name}")


def _add_plain(file):
    """A type whose fields are asked for one by one where most of them are set."""
    plain = file.message_type.add(name="Plain")
    plain.oneof_decl.add(name="choice")
    for kind in ("float", "double", "int64", "bytes", "bool"):
        _add(plain, f"one_{kind}", kind)
    _add(plain, "from", "enum", type_name=".kinds.Color")
    _add(plain, "HasField", "enum", type_name=".google.protobuf.NullValue", oneof_index=0)
    _add(plain, "choice_text", "string", oneof_index=0, json_name='"quoted"')
    _add_optional(plain, "maybe_float", "float")
    _add_optional(plain, "maybe_text", "string")
    _add(plain, "many_bytes", "bytes", label=FieldProto.LABEL_REPEATED)
    _add(plain, "many_plain", "message", label=FieldProto.LABEL_REPEATED, type_name=".kinds.Plain")
    _add(plain, "many_any", "message", label=FieldProto.LABEL_REPEATED, type_name=".google.protobuf.Any")
    _add_map(plain, "map_to_bytes", "uint64", "bytes")


def _every_kind():
    """A proto3 message with every kind of field there is, made by hand."""
    file = descriptor_pb2.FileDescriptorProto(name="kinds.proto", package="kinds", syntax="proto3")
    file.dependency.extend(sorted({kind.DESCRIPTOR.file.name for kind in WELL_KNOWN.values()}))
    color = file.enum_type.add(name="Color")
    color.options.allow_alias = True
    for name, number in [("NONE", 0), ("RED", 1), ("CRIMSON", 1), ("BLUE", -2)]:
        color.value.add(name=name, number=number)
    every = file.message_type.add(name="Every")
    every.oneof_decl.add(name="choice")
    _add(every, "choice_text", "string", oneof_index=0)
    _add(every, "choice_number", "int64", oneof_index=0)
    _add(every, "choice_every", "message", type_name=".kinds.Every", oneof_index=0)
    _add(every, "choice_null", "enum", type_name=".google.protobuf.NullValue", oneof_index=0)
    for kind in SCALARS:
        _add(every, f"one_{kind}", kind)
        _add(every, f"many_{kind}", kind, label=FieldProto.LABEL_REPEATED)
        _add_optional(every, f"maybe_{kind}", kind)
    for key in KEYS:
        _add_map(every, f"map_{key}", key, "string")
    _add_map(every, "map_to_bytes", "string", "bytes")
    _add_map(every, "map_to_float", "string", "float")
    _add_map(every, "map_to_color", "string", "enum", ".kinds.Color")
    _add_map(every, "map_to_every", "string", "message", ".kinds.Every")
    _add_map(every, "map_to_value", "string", "message", ".google.protobuf.Value")
    for name, kind in {"color": "Color", "every": "Every"}.items():
        word = "enum" if kind == "Color" else "message"
        _add(every, f"one_{name}", word, type_name=f".kinds.{kind}")
        _add(every, f"many_{name}", word, label=FieldProto.LABEL_REPEATED, type_name=f".kinds.{kind}")
    for name, kind in WELL_KNOWN.items():
        type_name = f".{kind.DESCRIPTOR.full_name}"
        _add(every, f"well_{name}", "message", type_name=type_name)
        _add(every, f"wells_{name}", "message", label=FieldProto.LABEL_REPEATED, type_name=type_name)
    _add(every, "many_plain", "message", label=FieldProto.LABEL_REPEATED, type_name=".kinds.Plain")
    _add_plain(file)
    _add(every, "odd__Name_2x", "int32")
    _add(every, "renamed", "int32", json_name="@other name")
    pool = descriptor_pool.DescriptorPool()
    for dependency in file.dependency:
        pool.AddSerializedFile(descriptor_pool.Default().FindFileByName(dependency).serialized_pb)
    pool.Add(file)
    return pool.FindMessageTypeByName("kinds.Every")


EVERY = _every_kind()
Every = GetMessageClass(EVERY)
PLAIN = EVERY.fields_by_name["many_plain"].message_type
INFERENCE = sorted(
    (value.DESCRIPTOR for name in proto.__all__ if hasattr(value := getattr(proto, name), "SerializeToString")),
    key=lambda descriptor: descriptor.name,
)

# json_format fails on binary32 values that round up beyond the type when they are printed with fewer digits.
_floats32 = st.floats(width=32).filter(lambda value: not 3.4e38 < abs(value) < math.inf)
_text = st.text(st.characters(codec="utf-8"), max_size=8)
_paths = st.from_regex(r"[a-z]{1,4}(_[a-z]{1,3}){0,2}(\.[a-z]{1,3})?", fullmatch=True)
_json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=6,
)
_scalars = {
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_FLOAT: _floats32,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: _text,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
}
_integers = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
}


def _scalar(field):
    if field.enum_type is not None and field.enum_type.full_name == "google.protobuf.NullValue":
        return st.just(0)
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values]) | st.just(77)
    return _scalars[field.type] if field.type in _scalars else _integers[field.cpp_type]


def _fill_well_known(draw, message):
    """Fill a message whose fields cannot have just any value; False where it is no such message."""
    match message.DESCRIPTOR.full_name:
        case "google.protobuf.Timestamp":
            message.seconds = draw(st.integers(-62135596800, 253402300799))
            message.nanos = draw(st.sampled_from([0, 1, 1000, 5_000_000, 999_999_999]))
        case "google.protobuf.Duration":
            sign = draw(st.sampled_from([1, -1]))
            message.seconds = sign * draw(st.integers(0, 315_576_000_000 - 1))
            message.nanos = sign * draw(st.sampled_from([0, 1, 1000, 5_000_000, 999_999_999]))
        case "google.protobuf.FieldMask":
            message.paths.extend(draw(st.lists(_paths, max_size=3)))
        case "google.protobuf.Value":
            json_format.ParseDict(draw(_json_values), message)
        case "google.protobuf.Struct":
            json_format.ParseDict(draw(st.dictionaries(_text, _json_values, max_size=3)), message)
        case "google.protobuf.ListValue":
            json_format.ParseDict(draw(st.lists(_json_values, max_size=3)), message)
        case "google.protobuf.Any":
            kind = draw(st.sampled_from([timestamp_pb2.Timestamp, wrappers_pb2.FloatValue, empty_pb2.Empty, Every]))
            inner = GetMessageClass(EVERY.file.pool.FindMessageTypeByName(kind.DESCRIPTOR.full_name))()
            _fill(draw, inner, 2)
            message.Pack(inner)
        case _:
            return False
    return True


def _fill(draw, message, depth):
    if _fill_well_known(draw, message):
        return
    fields = list(message.DESCRIPTOR.fields)
    for field in draw(st.lists(st.sampled_from(fields), max_size=6, unique_by=id)) if fields else ():
        _fill_field(draw, message, field, depth)


def _fill_field(draw, message, field, depth):
    if field.message_type is None:
        value = draw(st.lists(_scalar(field), min_size=1, max_size=3) if field.is_repeated else _scalar(field))
        getattr(message, field.name).extend(value) if field.is_repeated else setattr(message, field.name, value)
    elif depth == 0:
        return
    elif field.message_type.GetOptions().map_entry:
        _fill_map(draw, getattr(message, field.name), field.message_type.fields_by_name, depth)
    elif field.is_repeated:
        for _ in range(draw(st.integers(1, 2))):
            _fill(draw, getattr(message, field.name).add(), depth - 1)
    else:
        getattr(message, field.name).SetInParent()
        _fill(draw, getattr(message, field.name), depth - 1)


def _fill_map(draw, entries, fields, depth):
    for key in draw(st.lists(_scalar(fields["key"]), min_size=1, max_size=2, unique=True)):
        if fields["value"].message_type is None:
            entries[key] = draw(_scalar(fields["value"]))
        else:
            _fill(draw, entries[key], depth - 1)


@st.composite
def messages(draw, descriptor):
    """A message of this type with some of its fields set."""
    message = GetMessageClass(descriptor)()
    _fill(draw, message, 3)
    return message


@st.composite
def dense_lists(draw):
    """Messages of the plain type of which the last has most of its fields set, some to what they would be unset."""
    every = Every()
    for _ in range(draw(st.integers(1, 4))):
        message = every.many_plain.add()
        for field in draw(st.lists(st.sampled_from(list(PLAIN.fields)), min_size=8, unique_by=id)):
            if draw(st.booleans()) or field.is_repeated:
                _fill_field(draw, message, field, 2)
            else:
                setattr(
                    message,
                    field.name,
                    -0.0 if "float" in field.name or "double" in field.name else field.default_value,
                )
    return every


def _canonical(descriptor, data):
    """Bytes that are equal for equal messages, NaN included."""
    return GetMessageClass(descriptor).FromString(data).SerializeToString(deterministic=True)


def _agrees_with_json_format(message):
    descriptor, data = message.DESCRIPTOR, message.SerializeToString(deterministic=True)
    pool = descriptor.file.pool
    expected = json_format.MessageToDict(message, descriptor_pool=pool)
    assert transcode.proto_to_dict(descriptor, data) == expected
    text = transcode.proto_to_json(descriptor, data)
    assert json.loads(text) == expected
    in_original_names = json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool)
    for document in (text, text.decode(), json.dumps(expected), expected, in_original_names):
        parsed = transcode.json_to_proto(descriptor, document, ignore_unknown_fields=False)
        theirs = json_format.ParseDict(expected, GetMessageClass(descriptor)(), descriptor_pool=pool)
        assert _canonical(descriptor, parsed) == theirs.SerializeToString(deterministic=True)


@pytest.mark.parametrize("descriptor", INFERENCE, ids=lambda descriptor: descriptor.name)
def test_messages_of_the_contract_agree_with_json_format(descriptor):
    @settings(max_examples=15, deadline=None)
    @given(messages(descriptor))
    def check(message):
        _agrees_with_json_format(message)

    check()


@settings(max_examples=400, deadline=None)
@given(messages(EVERY))
def test_every_kind_of_field_agrees_with_json_format(message):
    _agrees_with_json_format(message)


@settings(max_examples=300, deadline=None)
@given(dense_lists())
def test_lists_of_plain_messages_agree_with_json_format(message):
    _agrees_with_json_format(message)


def test_a_value_without_a_form_in_a_list_of_plain_messages_is_named():
    every = Every()
    plain = every.many_plain.add(one_float=1, one_double=1, one_int64=1, one_bytes=b"1", one_bool=True, maybe_text="")
    plain.many_plain.add().many_any.add(type_url="x/unknown.Type")
    plain.many_bytes.append(b"1")
    with pytest.raises(
        InvalidArgument, match=r": manyPlain\.manyPlain\.manyAny: the type \"x/unknown\.Type\" is not known"
    ):
        transcode.proto_to_dict(EVERY, every.SerializeToString())


_suspects = st.sampled_from(
    [
        "0", "1", "-1", "7", "1e3", "1.5", "NaN", "Infinity", "RED", "AAEC", "2020-01-01T00:00:00Z", "1.5s", "aB,c",
        "true", "\ud800",
    ]
)  # fmt: skip
_leaves = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | _text | _suspects
_documents = st.dictionaries(
    st.sampled_from([name for field in EVERY.fields for name in (field.name, field.json_name)] + ["bogus", "\ud800"]),
    st.recursive(_leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_text, inner, max_size=2)),
    max_size=3,
)


@settings(max_examples=1000, deadline=None)
@given(_documents, st.booleans())
def test_any_document_is_either_refused_or_read_as_json_format_reads_it(document, ignore):
    try:
        data = transcode.json_to_proto(EVERY, document, ignore_unknown_fields=ignore)
    except InvalidArgument as error:
        error.message.encode()  # can be sent
        return
    try:
        theirs = json_format.ParseDict(
            document, Every(), ignore_unknown_fields=ignore, descriptor_pool=EVERY.file.pool
        ).SerializeToString(deterministic=True)
    except (json_format.ParseError, AttributeError, SystemError):
        # It refuses 3.4028235e38 for a float, and fails on null for a repeated google.protobuf.Value and on a key that
        # is no UTF-8.
        return
    assert _canonical(EVERY, data) == theirs


def test_null_leaves_a_repeated_field_of_json_values_empty():
    assert transcode.json_to_proto(EVERY, '{"wellsValue":null}', ignore_unknown_fields=False) == b""
    data = transcode.json_to_proto(EVERY, '{"wellsValue":[null],"wellValue":null}', ignore_unknown_fields=False)
    assert transcode.proto_to_dict(EVERY, data) == {"wellsValue": [None], "wellValue": None}


@settings(max_examples=300, deadline=None)
@given(messages(proto.GenerateResponse.DESCRIPTOR), st.data())
def test_damaged_bytes_are_refused_or_read_as_protobuf_reads_them(message, data):
    sound = message.SerializeToString()
    position = data.draw(st.integers(0, len(sound)))
    damaged = sound[:position] + data.draw(st.binary(max_size=3)) + sound[position + data.draw(st.integers(0, 3)) :]
    try:
        document = transcode.proto_to_dict(proto.GenerateResponse.DESCRIPTOR, damaged)
    except InvalidArgument as error:
        assert error.message.endswith("bytes are not a valid inference.v1.GenerateResponse message")  # noqa: PT017
        with pytest.raises(DecodeError):
            proto.GenerateResponse.FromString(damaged)
    else:
        assert document == json_format.MessageToDict(proto.GenerateResponse.FromString(damaged))


@settings(max_examples=2000, deadline=None)
@given(_floats32.filter(math.isfinite))
def test_float32_is_printed_with_the_fewest_digits(value):
    printed = encode_float32(value)
    assert printed == ToShortestFloat(value)
    assert math.copysign(1, printed) == math.copysign(1, value)
    assert struct.unpack("<f", struct.pack("<f", printed))[0] == value
