"""The tensor codec against upb, which reads what it writes and writes what it reads."""

import mmap
import random
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import proto
from quill.errors import InvalidUsage
from quill.wire.protobuf import MAX_FIELDS
from quill.wire.tensor_codec import (
    ChunkFields,
    InferFields,
    LaneFields,
    MalformedMessage,
    TensorFields,
    decode_embed_response,
    decode_frame,
    decode_infer_request,
    decode_tensor,
    encode_chunk_frame,
    encode_infer_request,
    encode_tensor,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import hostile
import tensor_fuzz

INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
UINT64 = st.integers(0, 2**64 - 1)
UINT32 = st.integers(0, 2**32 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=9)
DATA = st.binary(max_size=300)

LANES = st.builds(LaneFields, TEXT, UINT64)
TENSORS = st.builds(
    TensorFields,
    shape=st.lists(INT64, max_size=5).map(tuple),
    dtype=INT32,
    data=DATA,
    name=st.none() | TEXT,
    device=INT32,
    strides=st.lists(INT64, max_size=5).map(tuple),
    requires_grad=st.none() | st.booleans(),
    byte_size=UINT64,
    compression=INT32,
    lane=st.none() | LANES,
)
PARAMETERS = st.dictionaries(TEXT, TEXT, max_size=3)
REQUESTS = st.builds(InferFields, TEXT, TEXT, st.lists(TENSORS, max_size=3), st.lists(TEXT, max_size=3), PARAMETERS)
RESPONSES = st.builds(InferFields, TEXT, TEXT, st.lists(TENSORS, max_size=3), st.just([]), PARAMETERS)
CHUNKS = st.builds(ChunkFields, UINT32, UINT32, DATA, st.booleans(), UINT32, UINT64, UINT32)


@settings(max_examples=100, deadline=None)
@given(TENSORS)
def test_a_tensor_is_written_as_protobuf_writes_it_and_read_back(tensor):
    encoded = encode_tensor(tensor)
    message = proto.Tensor.FromString(encoded)
    assert tensor_fuzz.tensor_fields(message) == tensor
    # Its meta is always there: protobuf does not tell an empty one from one that is not.
    message.meta.SetInParent()
    assert encoded == message.SerializeToString(deterministic=True)
    assert decode_tensor(encoded) == tensor


@pytest.mark.parametrize(("kind", "infers"), [(1, REQUESTS), (2, RESPONSES)], ids=["request", "response"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_request_and_a_response_mean_the_same_to_protobuf(kind, infers, data):
    infer, kind = data.draw(infers), tensor_fuzz.KINDS[kind]
    encoded = kind.encode(infer)
    message = kind.message.FromString(encoded)
    assert tensor_fuzz.infer_fields(message) == infer
    assert kind.decode(message.SerializeToString()) == infer
    assert len(encoded) == message.ByteSize()


@settings(max_examples=100, deadline=None)
@given(CHUNKS)
def test_a_chunk_is_written_as_protobuf_writes_it_and_read_back(chunk):
    encoded = encode_chunk_frame(chunk)
    for message in (proto.StreamInferRequest.FromString(encoded), proto.StreamInferResponse.FromString(encoded)):
        assert tensor_fuzz.frame_fields(message) == chunk
        assert encoded == message.SerializeToString()
    assert decode_frame(encoded) == chunk


@settings(max_examples=100, deadline=None)
@given(st.lists(TENSORS, max_size=2), TEXT, PARAMETERS)
def test_a_header_comes_out_of_its_frame_as_bytes(tensors, model, parameters):
    metas = [proto.Tensor.FromString(encode_tensor(tensor)).meta for tensor in tensors]
    header = proto.InferHeader(model=model, tensors=metas, parameters=parameters)
    found = decode_frame(proto.StreamInferRequest(header=header).SerializeToString())
    assert isinstance(found, bytes)
    assert proto.InferHeader.FromString(found) == header


@settings(max_examples=100, deadline=None)
@given(st.lists(TENSORS, max_size=3), TEXT, UINT32)
def test_embeddings_come_out_of_their_message_and_leave_the_rest(tensors, model, tokens):
    message = proto.EmbedResponse(model=model, usage=proto.Usage(prompt_tokens=tokens))
    for tensor in tensors:
        message.embeddings.add().MergeFromString(encode_tensor(tensor))
    serialized = message.SerializeToString()
    found, rest = decode_embed_response(serialized + b"\x7a\x01x")
    assert found == tensors
    assert all(tensor.data.obj is not None for tensor in found if tensor.data)
    del message.embeddings[:]
    assert proto.EmbedResponse.FromString(rest) == message


def test_hostile_bytes_are_read_or_refused_as_upb_does():
    seen = tensor_fuzz.run(10_000, seed=random.randrange(2**32))
    assert (seen["crashes"], seen["hangs"], seen["disagreements"]) == (0, 0, 0)
    # Half of hostile bytes are no message, and the other half is read, too.
    assert 1_000 < seen["accepted_by_upb"] < 9_000


def test_the_hostile_bytes_find_a_decoder_that_is_wrong():
    kind = tensor_fuzz.KINDS[0]
    careless = tensor_fuzz.Kind(kind.message, kind.expected, lambda data: decode_tensor(data[:-1] + b"\0"), kind.encode)
    source, seen = hostile.Source(random.Random(1)), tensor_fuzz.Seen()
    for _ in range(100):
        seen.judge(careless, source.message(kind.message))
    assert seen.disagreements > 10


@settings(max_examples=50, deadline=None)
@given(REQUESTS, st.data())
def test_two_messages_in_a_row_are_merged(request, data):
    other = data.draw(REQUESTS)
    both = encode_infer_request(request) + encode_infer_request(other)
    assert decode_infer_request(both) == tensor_fuzz.infer_fields(proto.InferRequest.FromString(both))
    twice = b"".join(map(encode_tensor, [*request.tensors, *other.tensors]))
    assert decode_tensor(twice) == tensor_fuzz.tensor_fields(proto.Tensor.FromString(twice))
    chunks = encode_chunk_frame(data.draw(CHUNKS)) + encode_chunk_frame(data.draw(CHUNKS))
    assert decode_frame(chunks) == tensor_fuzz.frame_fields(proto.StreamInferRequest.FromString(chunks))


@settings(max_examples=20, deadline=None)
@given(REQUESTS)
def test_a_message_that_is_cut_anywhere_is_what_upb_makes_of_it(request):
    whole = encode_infer_request(request)
    kind = tensor_fuzz.KINDS[1]
    seen = tensor_fuzz.Seen()
    for length in range(len(whole)):
        seen.judge(kind, whole[:length])
    assert (seen.crashes, seen.disagreements) == (0, 0)


def test_elements_are_viewed_where_they_lie_and_keep_the_message_alive():
    array = np.arange(1000, dtype=np.float32)
    encoded = encode_infer_request(InferFields(tensors=[TensorFields((1000,), 1, array.data)]))
    for given_ in (encoded, memoryview(encoded)):
        (tensor,) = decode_infer_request(given_).tensors
        assert tensor.data.obj is encoded
        assert np.array_equal(np.frombuffer(tensor.data, np.float32), array)
        assert tensor.data.readonly
    del encoded, given_
    assert bytes(tensor.data) == array.tobytes()


def test_any_contiguous_buffer_is_written_by_its_bytes():
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    assert decode_tensor(encode_tensor(TensorFields((2, 3), 4, array.data))).data == array.tobytes()
    assert decode_tensor(encode_tensor(TensorFields((0, 3), 4, np.empty((0, 3)).data))).data == b""


def test_writing_copies_the_elements_once():
    array = np.ones(16 * 2**20, np.uint8)
    tracemalloc.start()
    try:
        encoded = encode_infer_request(InferFields(tensors=[TensorFields((array.size,), 8, array.data)]))
        assert tracemalloc.get_traced_memory()[1] < len(encoded) + 100_000
        decode_infer_request(encoded)
        assert tracemalloc.get_traced_memory()[1] < len(encoded) + 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [2**20, 2**31 - 1, 2**31, 2**64 - 1])
@pytest.mark.parametrize("tag", [b"\x0a", b"\x12", b"\x1a", b"\x52"], ids=["meta", "data", "lane", "unknown"])
def test_a_length_that_is_only_claimed_allocates_nothing(tag, length):
    claim = bytearray()
    while length >> 7:
        claim.append(length & 0x7F | 0x80)
        length >>= 7
    data = tag + bytes((*claim, length)) + b"abc"
    tracemalloc.start()
    try:
        with pytest.raises(
            MalformedMessage, match=r"no inference\.v1\.Tensor message: (a field at|the number at) byte"
        ):
            decode_tensor(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "flood",
    [
        b"\x1a\x00" * (MAX_FIELDS + 1),  # empty tensors
        b"\x50\x00" * (MAX_FIELDS + 1),  # fields that nobody knows
        b"\x53" + b"\x50\x00" * (MAX_FIELDS + 1) + b"\x54",  # the same in a group
        proto.InferRequest(
            inputs=[proto.Tensor(meta=proto.TensorMeta(shape=[1] * (MAX_FIELDS + 1)))]
        ).SerializeToString(),
        proto.InferRequest(parameters={str(number): "" for number in range(MAX_FIELDS // 3)}).SerializeToString(),
    ],
    ids=["tensors", "unknown", "group", "dimensions", "parameters"],
)
def test_more_fields_than_are_read_are_refused_though_upb_reads_them(flood):
    proto.InferRequest.FromString(flood)
    with pytest.raises(MalformedMessage, match=f"more than {MAX_FIELDS} fields"):
        decode_infer_request(flood)


def test_a_thousand_tensors_are_read():
    request = InferFields(tensors=[TensorFields((1, 2, 3), 1, b"x", f"name {number}") for number in range(1000)])
    assert decode_infer_request(encode_infer_request(request)) == request


@pytest.mark.parametrize("depth", [99, 100, 101])
@pytest.mark.parametrize(
    ("kind", "around"),
    [(0, b""), (0, b"\x0a"), (1, b"\x1a"), (1, b"\x2a"), (3, b"\x12"), (3, b"\x0a")],
    ids=["tensor", "meta", "input", "parameter", "chunk", "header"],
)
def test_groups_are_read_as_deep_as_upb_reads_them(kind, around, depth):
    groups = b"\x7b" * depth + b"\x7c" * depth
    data = around + bytes((len(groups) & 0x7F | 0x80, len(groups) >> 7)) + groups if around else groups
    seen = tensor_fuzz.Seen()
    seen.judge(tensor_fuzz.KINDS[kind], data)
    assert (seen.crashes, seen.disagreements) == (0, 0)


def test_of_two_parts_of_a_frame_the_last_counts():
    chunk = encode_chunk_frame(ChunkFields(sequence=1, data=b"a"))
    header = proto.StreamInferRequest(header=proto.InferHeader(model="m")).SerializeToString()
    assert decode_frame(chunk + header) == b"\x0a\x01m"
    assert decode_frame(header + chunk) == ChunkFields(sequence=1, data=b"a")
    with pytest.raises(MalformedMessage, match="its header, or what stands beside it, is damaged"):
        decode_frame(b"\x0a\x01\x0a" + chunk)


@pytest.mark.parametrize("data", [b"", b"\x50\x00"], ids=["empty", "unknown"])
def test_a_frame_with_neither_header_nor_chunk_is_refused(data):
    proto.StreamInferRequest.FromString(data)
    with pytest.raises(MalformedMessage, match="neither a header nor a chunk"):
        decode_frame(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"\x12\x05abc",
            "the 5 bytes are no inference.v1.Tensor message: a field at byte 2 has 5 bytes, its message has 3",
        ),
        (b"\x0a\x03\x2a\x01\xff", "the string at byte 4 is not UTF-8 at byte 4"),
        (b"\x10\x80", "a number at byte 1 goes on behind the end of its message, byte 2"),
        (b"\x10" + b"\x80" * 11, "the number at byte 1 has more than 10 bytes"),
        (b"\x00\x00", "the tag before byte 1 is 0, there are 8 to 4294967295"),
        (b"\x0e", "the field before byte 1 has wire type 6, which cannot be there"),
        (b"\x54", "the field before byte 1 has wire type 4, which cannot be there"),
        (b"\x53\x5c", "the field before byte 2 has wire type 4, which cannot be there"),
        (b"\x53" * 101, "more than 100 deep"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(data, message):
    with pytest.raises(DecodeError):
        proto.Tensor.FromString(data)
    with pytest.raises(MalformedMessage) as caught:
        decode_tensor(data)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "request_",
    [
        InferFields(model="\ud800"),
        InferFields(tensors=[TensorFields(name="\ud800")]),
        InferFields(parameters={"a": "\ud800"}),
        InferFields(outputs=["\ud800"]),
    ],
)
def test_a_lone_surrogate_is_refused(request_):
    with pytest.raises(InvalidUsage, match="lone surrogate at index 0"):
        encode_infer_request(request_)


def test_a_message_of_more_than_two_gibibytes_is_refused_before_it_is_made():
    with mmap.mmap(-1, 2**31) as empty, memoryview(empty) as view, pytest.raises(InvalidUsage, match="2147483647"):
        encode_infer_request(InferFields(tensors=[TensorFields((2**31,), 8, view)]))
