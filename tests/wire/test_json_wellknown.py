"""Well-known types: the exact cases of the ProtoJSON specification."""

import json
import math

import pytest
from google.protobuf import any_pb2, duration_pb2, field_mask_pb2, struct_pb2, timestamp_pb2

from quill.errors import InvalidArgument
from quill.proto import Token
from quill.wire import transcode


def read(kind, document):
    return kind.FromString(transcode.json_to_proto(kind.DESCRIPTOR, document, ignore_unknown_fields=False))


def written(message):
    return transcode.proto_to_json(message.DESCRIPTOR, message.SerializeToString()).decode()


def refusal(kind, document):
    with pytest.raises(InvalidArgument) as caught:
        read(kind, document)
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [
        ("1970-01-01T00:00:00Z", 0, 0),
        ("1970-01-01T00:00:00.1Z", 0, 100_000_000),
        ("1970-01-01T01:30:00+01:30", 0, 0),
        ("1969-12-31T16:00:00.123456789-08:00", 0, 123_456_789),
        ("1969-12-31T23:59:59.999999999Z", -1, 999_999_999),
        ("0001-01-01T00:00:00Z", -62135596800, 0),
        ("9999-12-31T23:59:59.999999999Z", 253402300799, 999_999_999),
        ("2024-02-29T12:00:00Z", 1709208000, 0),
    ],
)
def test_timestamps_are_read(text, seconds, nanos):
    assert read(timestamp_pb2.Timestamp, f'"{text}"') == timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)


@pytest.mark.parametrize(
    "text",
    [
        "1970-01-01t00:00:00Z", "1970-01-01T00:00:00z", "1970-01-01T00:00:00", "1970-01-01 00:00:00Z",
        "1970-1-1T00:00:00Z", "2023-02-29T00:00:00Z", "1970-01-01T24:00:00Z", "1970-01-01T00:00:60Z",
        "1970-01-01T00:00:00.1234567890Z", "1970-01-01T00:00:00.Z", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "1970-01-01T00:00:00+24:00",
        "1970-01-01T00:00:00Z\n", "",
    ],
)  # fmt: skip
def test_what_is_no_timestamp_is_refused(text):
    refusal(timestamp_pb2.Timestamp, json.dumps(text))


@pytest.mark.parametrize(
    ("nanos", "fraction"), [(0, ""), (500_000_000, ".500"), (1000, ".000001"), (1, ".000000001"), (120, ".000000120")]
)
def test_fractions_of_seconds_are_written_with_0_3_6_or_9_digits(nanos, fraction):
    assert written(timestamp_pb2.Timestamp(seconds=-1, nanos=nanos)) == f'"1969-12-31T23:59:59{fraction}Z"'
    assert written(duration_pb2.Duration(seconds=3, nanos=nanos)) == f'"3{fraction}s"'


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [("1s", 1, 0), ("-1.5s", -1, -500_000_000), ("-0.000000001s", 0, -1), ("315576000000s", 315_576_000_000, 0)],
)
def test_durations_are_read(text, seconds, nanos):
    assert read(duration_pb2.Duration, f'"{text}"') == duration_pb2.Duration(seconds=seconds, nanos=nanos)


@pytest.mark.parametrize("text", ["1", "s", "1.s", ".5s", "1 s", "+1s", "1.0000000001s", "315576000000.1s", "1e3s"])
def test_what_is_no_duration_is_refused(text):
    refusal(duration_pb2.Duration, json.dumps(text))


@pytest.mark.parametrize(
    "message",
    [
        timestamp_pb2.Timestamp(seconds=253402300800),
        timestamp_pb2.Timestamp(nanos=-1),
        duration_pb2.Duration(seconds=1, nanos=-1),
        duration_pb2.Duration(seconds=315_576_000_001),
        struct_pb2.Value(number_value=math.nan),
        field_mask_pb2.FieldMask(paths=["camelCase"]),
        field_mask_pb2.FieldMask(paths=["a__b"]),
        any_pb2.Any(type_url="type.googleapis.com/no.Such", value=b"x"),
        any_pb2.Any(type_url="type.googleapis.com/inference.v1.Token", value=b"\xff"),
    ],
)
def test_a_value_without_a_form_in_json_is_refused(message):
    with pytest.raises(InvalidArgument):
        written(message)


def test_field_masks_change_their_case():
    mask = field_mask_pb2.FieldMask(paths=["user.display_name", "photo"])
    assert written(mask) == '"user.displayName,photo"'
    assert read(field_mask_pb2.FieldMask, '"user.displayName,photo"') == mask
    assert read(field_mask_pb2.FieldMask, '""') == field_mask_pb2.FieldMask()
    refusal(field_mask_pb2.FieldMask, '"user.display_name"')


def test_an_any_is_the_message_inside_with_its_type():
    token = any_pb2.Any()
    token.Pack(Token(id=1))
    assert json.loads(written(token)) == {"@type": "type.googleapis.com/inference.v1.Token", "id": 1}
    assert read(any_pb2.Any, written(token)) == token
    duration = any_pb2.Any()
    duration.Pack(duration_pb2.Duration(seconds=1))
    assert json.loads(written(duration)) == {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}
    assert read(any_pb2.Any, written(duration)) == duration
    assert read(any_pb2.Any, "{}") == any_pb2.Any()


@pytest.mark.parametrize(
    "document",
    [
        '{"id":1}',
        '{"@type":5}',
        '{"@type":"inference.v1.Token"}',
        '{"@type":"x/no.Such"}',
        '{"@type":"x/\\ud800"}',
        '{"@type":"\\ud800/inference.v1.Token"}',
        '{"@type":"x/google.protobuf.Duration"}',
        '{"@type":"x/google.protobuf.Duration","value":"1s","more":1}',
        '{"@type":"x/inference.v1.Token","idd":1}',
    ],
)
def test_an_any_without_a_known_type_or_value_is_refused(document):
    refusal(any_pb2.Any, document)
