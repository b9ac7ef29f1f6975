"""Both ends of the lane chunks, each against upb: what is written is read by upb, what upb writes is read."""

import itertools

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import InvalidArgument, ResourceExhausted
from quill.lanes.assembly import Assembly
from quill.lanes.chunks import Frames
from quill.lanes.parcel import Parcel
from quill.lanes.pool import ReceivePool
from quill.limits import Limits
from quill.proto import InferHeader, StreamInferRequest, TensorChunk, TensorMeta
from quill.tensor import Tensor

MIB = 2**20


def parcel(**arrays):
    tensors = {name: Tensor.from_numpy(array, name) for name, array in arrays.items()}
    return Parcel(model="m", request_id="r", tensors=tensors, outputs=("o",), parameters={"k": "v"})


def assembly(place=None, **limits):
    return Assembly(Limits(**limits), ReceivePool(max_bytes=2**30, kept_bytes=0), place)


def fed(messages, **limits):
    assembled = assembly(**limits)
    for message in messages:
        assembled.feed(message)
    return assembled.finish()


def header(*metas):
    return StreamInferRequest(header=InferHeader(tensors=metas)).SerializeToString()


def meta(size, name="x", **more):
    return TensorMeta(shape=[size], dtype=8, name=name, **more)


def chunk(data, offset, sequence, index=0, **more):
    piece = TensorChunk(data=data, offset=offset, sequence=sequence, tensor_index=index, **more)
    return StreamInferRequest(chunk=piece).SerializeToString()


def test_upb_reads_a_header_and_chunks_of_two_mebibytes():
    large = np.random.default_rng(0).integers(0, 256, 5 * MIB + 7, np.uint8)
    frames = Frames(parcel(large=large, empty=np.zeros(0, np.float32), scalar=np.array(7, np.int64)))
    read = [StreamInferRequest.FromString(message) for message in frames]
    assert len(read) == len(frames) == 5
    head = read[0].header
    assert (head.model, head.request_id, list(head.outputs), dict(head.parameters)) == ("m", "r", ["o"], {"k": "v"})
    assert [(one.name, list(one.shape), one.byte_size) for one in head.tensors] == [
        ("large", [5 * MIB + 7], 5 * MIB + 7),
        ("empty", [0], 0),
        ("scalar", [], 8),
    ]
    pieces = [one.chunk for one in read[1:]]
    assert b"".join(one.data for one in pieces[:3]) == large.tobytes()
    assert [(one.tensor_index, one.sequence, one.total_chunks, one.offset, one.is_final) for one in pieces] == [
        (0, 0, 3, 0, False),
        (0, 1, 3, 2 * MIB, False),
        (0, 2, 3, 4 * MIB, True),
        (2, 0, 1, 0, True),
    ]


def test_each_compressed_chunk_is_a_frame_and_what_does_not_shrink_is_left():
    zeros = np.zeros(3 * MIB, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, 3 * MIB, np.uint8)
    read = [StreamInferRequest.FromString(message) for message in Frames(parcel(zeros=zeros, noise=noise), zstd=True)]
    assert [one.compression for one in read[0].header.tensors] == [1, 0]
    pieces = [one.chunk for one in read[1:]]
    unpack = zstandard.ZstdDecompressor().decompress
    assert [len(unpack(one.data)) for one in pieces[:2]] == [2 * MIB, MIB]
    assert pieces[1].offset == 2 * MIB
    assert b"".join(one.data for one in pieces[2:]) == noise.tobytes()


def test_a_parcel_can_be_sent_again_from_its_beginning():
    frames = Frames(parcel(x=np.arange(3 * MIB, dtype=np.uint8)))
    assert list(frames) == list(frames) == [frames[index] for index in range(len(frames))]


@settings(deadline=None)
@given(st.data())
def test_pieces_of_any_size_in_any_interleaving_come_together(data):
    contents = data.draw(st.lists(st.binary(max_size=200), max_size=4))
    cuts = [sorted(data.draw(st.sets(st.integers(1, max(1, len(one)))))) for one in contents]
    queues = []
    for index, (content, places) in enumerate(zip(contents, cuts, strict=True)):
        bounds = [0, *(place for place in places if place < len(content)), len(content)]
        spans = [(start, end) for start, end in itertools.pairwise(bounds) if end > start]
        queues.append([chunk(content[a:b], a, n, index, is_final=b == len(content)) for n, (a, b) in enumerate(spans)])
    messages = [header(*(meta(len(one), str(index)) for index, one in enumerate(contents)))]
    while any(queues):
        messages.append(data.draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    received = fed(messages)
    assert [tensor.tobytes() for tensor in received.tensors.values()] == contents


def test_compressed_chunks_of_a_peer_are_unpacked_where_they_belong():
    content = bytes(1000) + b"end"
    pack = zstandard.ZstdCompressor(write_content_size=False).compress
    messages = [header(meta(1003, compression=1)), chunk(pack(content[:600]), 0, 0), chunk(pack(content[600:]), 600, 1)]
    assert fed(messages).tensors["x"].tobytes() == content


def test_all_tensors_lie_in_one_piece_of_memory_or_where_their_caller_wants_them():
    mine = np.zeros(3, np.uint8)
    assembled = assembly(place=lambda one: mine.data if one.name == "mine" else None)
    assembled.feed(header(meta(3, "mine"), meta(5, "a"), meta(70, "b")))
    assembled.feed(chunk(b"abc", 0, 0))
    assert mine.tobytes() == b"abc"
    assembled.feed(chunk(b"12345", 0, 0, 1))
    assembled.feed(chunk(bytes(70), 0, 0, 2))
    found = assembled.finish().tensors
    assert found["a"].data.obj is found["b"].data.obj
    assert found["a"].tobytes() == b"12345"


WHOLE = [header(meta(10)), chunk(b"01234", 0, 0), chunk(b"56789", 5, 1)]

REFUSED = [
    ([], "ended without a header"),
    ([WHOLE[1]], "a chunk came before the header"),
    ([*WHOLE[:2], WHOLE[0]], "a second header came after 5 of 10 bytes"),
    (WHOLE[:2], "'x', needs 10 bytes, the stream ended after 5"),
    ([*WHOLE[:2], chunk(b"789", 7, 1)], "chunk 1 of tensor 0 leaves a gap: it starts at byte 7, 5 have come"),
    ([*WHOLE[:2], chunk(b"456789", 4, 1)], "chunk 1 of tensor 0 overlaps: it starts at byte 4, 5 have come"),
    ([*WHOLE[:2], chunk(b"567890", 5, 1)], "goes past the end: it has 6 bytes and 5 are left"),
    ([*WHOLE, chunk(b"!", 10, 2)], "goes past the end: it has 1 bytes and 0 are left"),
    ([*WHOLE[:2], chunk(b"56789", 5, 2)], "chunk 2 of tensor 0 is out of order: chunk 1 is the next"),
    ([*WHOLE[:2], chunk(b"", 5, 1)], "chunk 1 of tensor 0 is empty"),
    ([WHOLE[0], chunk(b"0", 0, 0, is_final=True)], "says that it is the last at byte 1 of 10"),
    ([WHOLE[0], chunk(b"0", 0, 0, 1)], "a chunk is of tensor 1, and the header has 1"),
    ([header(meta(1), meta(1))], "tensor 1 has the name 'x', which another has"),
    ([header(meta(1, ""))], "tensor 0 has no name"),
    ([header(meta(1, compression=2))], "tensor 0 has compression 2; known are 0 none and 1 zstd"),
    ([header(TensorMeta(shape=[-1], dtype=8, name="x"))], "a dimension must be at least 0, got -1"),
    ([header(TensorMeta(shape=[3], dtype=9, name="x")), chunk(b"\0\1\2", 0, 0)], "byte 0 or 1, got 2"),
    ([header(meta(9, compression=1)), chunk(b"no zstd", 0, 0)], "the zstd data is damaged"),
    ([b"\xff"], "a message of the stream cannot be read"),
    ([b""], "it has neither a header nor a chunk"),
]


@pytest.mark.parametrize(("messages", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_what_does_not_fit_is_refused(messages, said):
    with pytest.raises(InvalidArgument, match=said.replace("(", r"\(")):
        fed(messages)


def test_sizes_are_bounded_before_memory_is_taken():
    class NoPool:
        def take(self, size_bytes):
            raise AssertionError(f"{size_bytes} bytes were taken")

    for metas, limits, said in [
        ([meta(11)], {"max_tensor_bytes": 10}, "has 11 bytes and max_tensor_bytes is 10"),
        (
            [TensorMeta(shape=[1] * 4, dtype=8, name="x")],
            {"max_tensor_rank": 3},
            "4 dimensions .*max_tensor_rank is 3",
        ),
        ([meta(1, "a"), meta(1, "b")], {"max_tensors": 1}, "the call has 2 tensors and max_tensors is 1"),
    ]:
        with pytest.raises(ResourceExhausted, match=said):
            Assembly(Limits(**limits), NoPool()).feed(header(*metas))


def test_a_chunk_becomes_no_larger_than_a_message_may_be():
    bomb = zstandard.ZstdCompressor().compress(bytes(5000))
    with pytest.raises(ResourceExhausted, match="become 5000, the limit is 4096"):
        fed([header(meta(10_000, compression=1)), chunk(bomb, 0, 0)], max_message_bytes=4096)
    with pytest.raises(ResourceExhausted, match="become 5000, the limit is 4999"):
        fed([header(meta(4999, compression=1)), chunk(bomb, 0, 0)])
