"""Exact cases of the ProtoJSON specification, and the texts of refusals."""

import json
import math
import sys
import threading

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2, wrappers_pb2
from google.protobuf.message_factory import GetMessageClass

from quill.errors import InvalidArgument
from quill.proto import ContentPart, Finish, GenerateRequest, SequenceDone, TensorChunk, TensorMeta, Token, TokenColumns
from quill.wire import transcode

FieldProto = descriptor_pb2.FieldDescriptorProto
FLOAT_MAX = 3.4028234663852886e38


def read(kind, document, *, ignore=False):
    return kind.FromString(transcode.json_to_proto(kind.DESCRIPTOR, document, ignore_unknown_fields=ignore))


def written(message):
    return transcode.proto_to_json(message.DESCRIPTOR, message.SerializeToString()).decode()


def refusal(kind, document, *, ignore=False):
    with pytest.raises(InvalidArgument) as caught:
        read(kind, document, ignore=ignore)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.message


# --- what is written ---


def test_json_is_compact_camel_case_utf8_without_defaults():
    message = GenerateRequest(model="", prompt="Grüße", max_tokens=0, ignore_eos=False, stop=["é"])
    assert written(message) == '{"prompt":"Grüße","maxTokens":0,"stop":["é"]}'


def test_64_bit_integers_are_strings_and_32_bit_ones_numbers():
    assert written(TensorMeta(shape=[-1, 2**53 + 1], byte_size=2**64 - 1)) == (
        '{"shape":["-1","9007199254740993"],"byteSize":"18446744073709551615"}'
    )
    assert written(TensorChunk(sequence=2**32 - 1)) == '{"sequence":4294967295}'


def test_floats_are_the_shortest_decimals_of_their_own_width():
    assert written(Token(logprob=0.1)) == '{"logprob":0.1}'
    assert written(Token(logprob=-1 / 3)) == '{"logprob":-0.33333334}'
    assert written(Token(logprob=16777217.0)) == '{"logprob":16777216.0}'
    assert written(wrappers_pb2.DoubleValue(value=0.1)) == "0.1"
    assert json.loads(written(Token(logprob=FLOAT_MAX))) == {"logprob": 3.4028235e38}


def test_numbers_that_json_lacks_are_strings():
    columns = TokenColumns(logprobs=[math.nan, math.inf, -math.inf])
    assert written(columns) == '{"logprobs":["NaN","Infinity","-Infinity"]}'


def test_unknown_enum_numbers_are_numbers():
    assert written(Finish(reason=2)) == '{"reason":"FINISH_REASON_LENGTH"}'
    assert written(Finish(reason=99)) == '{"reason":99}'


def test_map_keys_are_strings():
    assert written(GenerateRequest(logit_bias={7: -1.5})) == '{"logitBias":{"7":-1.5}}'


def test_bytes_are_padded_base64_in_the_standard_alphabet():
    assert written(Token(data=b"\xfb\xff")) == '{"data":"+/8="}'


def test_a_dict_holds_what_json_loads_would_give():
    message = Token(id=5, data=b"a", logprob=-0.5)
    assert transcode.proto_to_dict(Token.DESCRIPTOR, message.SerializeToString()) == {
        "id": 5,
        "logprob": -0.5,
        "data": "YQ==",
    }


def test_bytes_that_are_no_message_are_refused_by_type_and_size():
    with pytest.raises(
        InvalidArgument, match=r"^INVALID_ARGUMENT: 3 bytes are not a valid inference.v1.Token message$"
    ):
        transcode.proto_to_json(Token.DESCRIPTOR, b"\xff\xff\xff")


def test_a_type_that_is_no_object_in_json_has_no_dict():
    data = wrappers_pb2.StringValue(value="x").SerializeToString()
    assert transcode.proto_to_json(wrappers_pb2.StringValue.DESCRIPTOR, data) == b'"x"'
    with pytest.raises(InvalidArgument, match="not an object"):
        transcode.proto_to_dict(wrappers_pb2.StringValue.DESCRIPTOR, data)


# --- what is read ---


def test_both_spellings_of_a_name_are_read():
    assert read(GenerateRequest, {"max_tokens": 3}) == read(GenerateRequest, b'{"maxTokens":3}')


def test_null_means_absent():
    assert read(GenerateRequest, b'{"prompt":null,"messages":null,"extra":null,"logitBias":null}') == GenerateRequest()


@pytest.mark.parametrize("number", ["7", '"7"', "7.0", "0.7e1", '"7.0"', '"70e-1"'])
def test_integers_are_read_in_every_notation_of_json(number):
    assert read(GenerateRequest, f'{{"maxTokens":{number}}}').max_tokens == 7


@pytest.mark.parametrize("number", ["1.5", '"1.5"', "true", '""', '" 1"', '"1_0"', '"0x1"', '"+1"', '"٣"', "[]", "{}"])
def test_what_is_no_integer_is_refused(number):
    assert refusal(GenerateRequest, f'{{"maxTokens":{number}}}').startswith("maxTokens: expected an unsigned 32-bit ")


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (wrappers_pb2.Int32Value, -(2**31), 2**31 - 1),
        (wrappers_pb2.UInt32Value, 0, 2**32 - 1),
        (wrappers_pb2.Int64Value, -(2**63), 2**63 - 1),
        (wrappers_pb2.UInt64Value, 0, 2**64 - 1),
    ],
)
def test_integers_are_exact_up_to_their_bounds(kind, low, high):
    for bound in (low, high):
        assert read(kind, str(bound)).value == bound
        assert read(kind, f'"{bound}"').value == bound
    for beyond in (low - 1, high + 1):
        assert f"{beyond} is out of range" in refusal(kind, str(beyond))
        assert "is out of range" in refusal(kind, f'"{beyond}"')


def test_floats_are_read_from_numbers_strings_and_names():
    document = '{"logprobs":[1, "1.5", "NaN", "Infinity", "-Infinity", "1e3", 3.4028235e38]}'
    logprobs = list(read(TokenColumns, document).logprobs)
    assert math.isnan(logprobs.pop(2))
    assert logprobs == [1.0, 1.5, math.inf, -math.inf, 1000.0, FLOAT_MAX]


@pytest.mark.parametrize("number", ["1e39", "-1e39", "1e999", "3.4028236e38", '"1e39"', "1" + "0" * 400])
def test_floats_beyond_their_type_are_refused(number):
    assert refusal(Token, f'{{"logprob":{number}}}').startswith("logprob: ")


@pytest.mark.parametrize("number", ['"nan"', '"inf"', '"1_0"', '" 1"', '""', "true", "[1]"])
def test_what_is_no_number_is_refused(number):
    assert refusal(Token, f'{{"logprob":{number}}}').startswith("logprob: expected a number, got ")


@pytest.mark.parametrize("text", ["+/8=", "+/8", "-_8=", "-_8"])
def test_bytes_are_read_in_both_alphabets_with_or_without_padding(text):
    assert read(Token, {"data": text}).data == b"\xfb\xff"


@pytest.mark.parametrize("text", ["A", "AA=", "A===", "====", "AA==AA", "A A=", "AAA\n", "é"])
def test_bad_base64_is_refused(text):
    assert refusal(Token, {"data": text}).startswith("data: expected base64, got ")


def test_bytes_are_taken_for_bytes_fields_of_a_mapping_only():
    assert read(Token, {"data": b"\xff"}).data == b"\xff"
    assert refusal(Token, {"text": b"a"}) == "text: expected a string, got a value of type bytes"


def test_enums_are_read_by_name_and_number():
    assert read(Finish, '{"reason":"FINISH_REASON_STOP"}').reason == 1
    assert read(Finish, '{"reason":1}').reason == 1
    assert read(Finish, '{"reason":99}').reason == 99
    assert read(Finish, '{"reason":"1"}').reason == 1
    assert read(Finish, '{"reason":"99"}', ignore=True).reason == 99
    assert refusal(Finish, '{"reason":"STOP"}') == (
        'reason: inference.v1.FinishReason has no value "STOP"; it has FINISH_REASON_UNSPECIFIED, FINISH_REASON_STOP, '
        "FINISH_REASON_LENGTH, FINISH_REASON_TOOL_CALLS, FINISH_REASON_CONTENT_FILTER, FINISH_REASON_CANCELLED, "
        "FINISH_REASON_OTHER"
    )
    assert "out of range" in refusal(Finish, '{"reason":2147483648}')


def test_keys_of_maps_are_read_and_refused_by_their_type():
    assert read(GenerateRequest, '{"logitBias":{"7":1,"8":"2"}}').logit_bias == {7: 1.0, 8: 2.0}
    assert read(GenerateRequest, {"logit_bias": {7: 1}}).logit_bias == {7: 1.0}
    assert refusal(GenerateRequest, '{"logitBias":{"a":1}}').startswith('logitBias["a"]: expected an unsigned 32-bit')
    assert refusal(GenerateRequest, '{"logitBias":{"1":1,"1.0":1}}').startswith('logitBias["1.0"]: the same key')
    assert refusal(GenerateRequest, '{"metadata":{"a":1}}') == 'metadata["a"]: expected a string, got 1'


def test_one_member_of_a_oneof_is_read_and_two_are_refused():
    assert read(ContentPart, '{"text":"a","uri":null}').text == "a"
    assert refusal(ContentPart, '{"text":"a","uri":"b"}') == (
        'uri: only one member of part can be given, and "text" is there'
    )


def test_an_unknown_field_is_named_with_its_place():
    assert refusal(GenerateRequest, '{"promt":1}') == (
        'GenerateRequest has no field "promt" (at promt); did you mean "prompt"?'
    )
    assert refusal(GenerateRequest, '{"messages":[{},{"xyzzy":1}]}') == (
        'ChatMessage has no field "xyzzy" (at messages[1].xyzzy)'
    )
    assert refusal(GenerateRequest, '{"[google.protobuf.x]":1}').startswith("GenerateRequest has no field")
    assert refusal(GenerateRequest, {5: 1}) == "5: the keys of an object are strings, got 5"


def test_unknown_fields_and_enum_names_are_left_out_where_asked():
    document = '{"sequenceId":1,"new":{"a":[1]},"[x.y]":1,"finish":{"reason":"NEW","stopText":"."}}'
    assert read(SequenceDone, document, ignore=True) == SequenceDone(sequence_id=1, finish=Finish(stop_text="."))
    assert "out of range" in refusal(SequenceDone, '{"sequenceId":-1}', ignore=True)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ('{"max_tokens":"ten"}', 'max_tokens: expected an unsigned 32-bit integer, got "ten"'),
        ('{"maxTokens":-1}', "maxTokens: -1 is out of range for an unsigned 32-bit integer (0 to 4294967295)"),
        ('{"messages":[{},{},{"role":3}]}', "messages[2].role: expected a string, got 3"),
        ('{"messages":[null]}', "messages[0]: expected an object, got null"),
        ('{"messages":{}}', "messages: expected an array, got an object"),
        ('{"stop":["a",null]}', "stop[1]: expected a string, got null"),
        ('{"streamOptions":[]}', "streamOptions: expected an object, got an array"),
        ('{"logitBias":[]}', "logitBias: expected an object, got an array"),
        ('{"ignoreEos":"true"}', 'ignoreEos: expected true or false, got "true"'),
        ('{"ignoreEos":0}', "ignoreEos: expected true or false, got 0"),
        ('{"prompt":"\\ud800"}', "prompt: has half of a surrogate pair, which is no Unicode character"),
        ('{"maxTokens":1,"max_tokens":1}', 'max_tokens: is there twice, as "max_tokens" and as "maxTokens"'),
        ("[]", "expected an object, got an array"),
        ("null", "expected an object, got null"),
        ('{"model":"a","model":"a"}', 'the document has the key "model" twice in one object'),
        ('{"temperature":NaN}', 'NaN is not valid JSON; floating-point fields take it as a string, "NaN"'),
        ("", "the document is not valid JSON at line 1, column 1"),
        ('{"a":1}\n}', "the document is not valid JSON at line 2, column 1"),
        ("{'a':1}", "the document is not valid JSON at line 1, column 2"),
        ('\ufeff{"a":1}', "the document is not valid JSON at line 1, column 1"),
        ('{"seed":' + "1" * 5000 + "}", "the document has a number of too many digits"),
        ("[" * 100_000, "the document is nested too deep"),
    ],
)
def test_refusals_name_the_place_and_the_reason(document, reason):
    assert refusal(GenerateRequest, document) == reason


def test_text_that_is_no_utf8_is_refused():
    assert refusal(GenerateRequest, b'{"a":"\xff"}') == "the document is not valid UTF-8 at byte 6"
    assert refusal(GenerateRequest, '{"a":1}'.encode("utf-16-le")).startswith("the document is not valid JSON")


def test_a_value_of_a_foreign_type_is_named_by_its_type():
    assert refusal(GenerateRequest, {"prompt": {1, 2}}) == "prompt: expected a string, got a value of type set"
    assert refusal(GenerateRequest, memoryview(b"{}")) == "expected an object, got a value of type memoryview"
    assert refusal(GenerateRequest, {"max_tokens": 10**50}).startswith("max_tokens: an integer of more than 40 digits")


def test_refusals_stay_short_and_can_be_sent_whatever_the_document_holds():
    huge = "\ud800\n" + "x" * 100_000
    deep = {1}
    for _ in range(30):
        deep = {"k" * 1000: deep}
    for document in (
        {huge: 1},
        {"prompt": [huge]},
        {"logit_bias": {huge: 1}},
        {"extra": {huge: {1}}},
        {"n": huge},
        {"[a" + huge + "]": 1},
        {"extra": deep},
    ):
        message = refusal(GenerateRequest, document)
        assert len(message.encode()) < 500
        assert message.isprintable()


# --- nesting ---


def _nest(levels, innermost=None):
    """Links within each other, so many that the innermost is at this depth."""
    document = innermost or {}
    for _ in range(levels - 1):
        document = {"next": document}
    return document


def _linked_list_type():
    file = descriptor_pb2.FileDescriptorProto(name="link.proto", package="link", syntax="proto3")
    link = file.message_type.add(name="Link")
    link.field.add(name="next", number=1, type=11, label=1, type_name=".link.Link")
    for number, (name, kind, type_name) in enumerate([("links", 11, ".link.Link"), ("notes", 9, None)], start=2):
        entry = link.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=9, label=1)
        entry.field.add(name="value", number=2, type=kind, label=1, type_name=type_name)
        link.field.add(name=name, number=number, type=11, label=3, type_name=f".link.Link.{entry.name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("link.Link"))


@pytest.mark.parametrize(
    ("innermost", "deepest"),
    [({}, 100), ({"notes": {"a": "b"}}, 99), ({"links": {"a": {}}}, 98), ({"links": {"a": {"notes": {"b": "c"}}}}, 97)],
)
def test_what_is_accepted_nests_no_deeper_than_protobuf_reads(innermost, deepest):
    link = _linked_list_type()
    assert read(link, _nest(deepest, innermost)).ByteSize()  # protobuf's own parser reads it
    assert refusal(link, _nest(deepest + 1, innermost)).endswith("messages are nested more than 100 deep")


def test_nested_json_in_a_struct_is_accepted_only_where_protobuf_can_read_it():
    accepted = []
    for levels in range(1, 110):
        for leaf in ({}, []):
            document = leaf
            for _ in range(levels):
                document = {"a": document} if levels % 2 else [document]
            try:
                data = transcode.json_to_proto(
                    struct_pb2.Value.DESCRIPTOR, json.dumps(document), ignore_unknown_fields=False
                )
            except InvalidArgument:
                continue
            message = struct_pb2.Value.FromString(data)  # protobuf's own parser reads it
            assert json.loads(written(message)) == document
            accepted.append(levels)
    assert max(accepted) > 30


def test_a_mapping_that_contains_itself_is_refused():
    endless = {}
    endless["a"] = endless
    assert refusal(GenerateRequest, {"extra": endless}).endswith("messages are nested more than 100 deep")


def test_nesting_is_refused_cleanly_with_little_stack_left():
    def deep(frames):
        return deep(frames - 1) if frames else refusal(GenerateRequest, "[" * 5000)

    depth = 0
    frame = sys._getframe()
    while frame := frame.f_back:
        depth += 1
    assert deep(sys.getrecursionlimit() - depth - 150) == "the document is nested too deep"


# --- proto2 ---


def _proto2_type():
    file = descriptor_pb2.FileDescriptorProto(name="old.proto", package="old", syntax="proto2")
    kind = file.enum_type.add(name="Kind")
    kind.value.add(name="A", number=1)
    old = file.message_type.add(name="Old")
    old.field.add(name="must", number=1, type=5, label=FieldProto.LABEL_REQUIRED)
    old.field.add(name="text", number=2, type=9, label=1, default_value="x")
    old.field.add(name="kind", number=3, type=14, label=1, type_name=".old.Kind")
    old.field.add(name="kinds", number=4, type=14, label=3, type_name=".old.Kind")
    old.field.add(name="group", number=5, type=10, label=1, type_name=".old.Old.Group")
    old.nested_type.add(name="Group").field.add(name="n", number=1, type=5, label=1)
    old.extension_range.add(start=100, end=200)
    for number, (name, kind_number, label) in enumerate([("number", 5, 1), ("numbers", 5, 3), ("inner", 11, 1)]):
        type_name = ".old.Old" if kind_number == 11 else None
        file.extension.add(
            name=name, number=100 + number, type=kind_number, label=label, extendee=".old.Old", type_name=type_name
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("old.Old"))


def test_proto2_messages_with_extensions_and_groups_go_both_ways():
    old = _proto2_type()
    document = {
        "text": "x",
        "kind": "A",
        "group": {"n": 1},
        "[old.number]": 5,
        "[old.numbers]": [1, 2],
        "[old.inner]": {"[old.number]": 6},
    }
    data = transcode.json_to_proto(old.DESCRIPTOR, document, ignore_unknown_fields=False)
    assert transcode.proto_to_dict(old.DESCRIPTOR, data) == document
    pool = old.DESCRIPTOR.file.pool
    assert old.FromString(data).Extensions[pool.FindExtensionByName("old.number")] == 5
    assert refusal(old, {"[old.number]": "x"}) == '[old.number]: expected a signed 32-bit integer, got "x"'


def test_a_closed_enum_takes_no_unknown_number():
    old = _proto2_type()
    assert refusal(old, {"kind": 7}) == "kind: old.Kind has no value 7; it has A"
    assert list(read(old, {"kinds": ["A", 7, "B"]}, ignore=True).kinds) == [1]


def test_a_proto2_string_that_is_no_utf8_is_refused():
    with pytest.raises(InvalidArgument, match=r"text: is not valid UTF-8"):
        transcode.proto_to_json(_proto2_type().DESCRIPTOR, b"\x12\x02\xff\xfe")


# --- threads ---


def test_many_threads_may_meet_a_type_first_at_the_same_time():
    link = _linked_list_type()
    document = _nest(50)
    start = threading.Barrier(8)
    results = []

    def convert():
        start.wait(timeout=10)
        data = transcode.json_to_proto(link.DESCRIPTOR, document, ignore_unknown_fields=False)
        results.append(transcode.proto_to_dict(link.DESCRIPTOR, data))

    threads = [threading.Thread(target=convert) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert results == [document] * 8
