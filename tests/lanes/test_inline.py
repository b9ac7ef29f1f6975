"""All elements in one message: names, limits, and what compressed elements may become."""

import numpy as np
import pytest
import zstandard

from quill.errors import InvalidArgument, InvalidUsage, ResourceExhausted
from quill.lanes.inline import fields_of, parcel_of
from quill.lanes.lane import INLINE_BYTES, choose
from quill.lanes.parcel import Parcel
from quill.limits import Limits
from quill.proto import InferRequest, InferResponse, LaneRef, TensorMeta
from quill.proto import Tensor as TensorMessage
from quill.tensor import Tensor
from quill.wire.tensor_codec import decode_infer_request, encode_infer_response

ZEROS = Tensor.from_numpy(np.zeros(5000, np.uint8))
NOISE = Tensor.from_numpy(np.random.default_rng(0).integers(0, 256, 5000, np.uint8))


def received(*inputs, **limits):
    return parcel_of(decode_infer_request(InferRequest(inputs=inputs).SerializeToString()), Limits(**limits))


def message(data, size, *, name="x", compression=0, **more):
    return TensorMessage(meta=TensorMeta(shape=[size], dtype=8, name=name, compression=compression), data=data, **more)


def test_elements_are_viewed_where_they_lie_in_the_message():
    data = InferRequest(inputs=[message(b"abc", 3)]).SerializeToString()
    tensor = parcel_of(decode_infer_request(data), Limits()).tensors["x"]
    assert tensor.data.obj is data
    assert tensor.tobytes() == b"abc"


def test_what_does_not_shrink_by_a_tenth_is_sent_as_it_is():
    parcel = Parcel(tensors={"zeros": ZEROS, "noise": NOISE})
    sent = InferResponse.FromString(encode_infer_response(fields_of(parcel, zstd=True)))
    zeros, noise = sent.outputs
    assert (zeros.meta.compression, zeros.meta.byte_size, noise.meta.compression) == (1, 5000, 0)
    assert zstandard.ZstdDecompressor().decompress(zeros.data) == bytes(5000)
    assert noise.data == NOISE.tobytes()


def test_compressed_elements_are_unpacked():
    packed = zstandard.ZstdCompressor().compress(bytes(5000))
    assert received(message(packed, 5000, compression=1)).tensors["x"].tobytes() == bytes(5000)


@pytest.mark.parametrize(
    ("inputs", "limits", "kind", "said"),
    [
        ([message(b"ab", 3)], {}, InvalidArgument, r"tensor 0, 'x': tensor \[3\] uint8 needs 3 bytes, got 2"),
        ([message(b"abcd", 3)], {}, InvalidArgument, "needs 3 bytes, got 4"),
        ([message(b"a", 1)] * 2, {}, InvalidArgument, "tensor 1 has the name 'x', which another has"),
        ([message(b"a", 1, name="")], {}, InvalidArgument, "tensor 0 has no name"),
        ([message(b"", 1, lane=LaneRef(handle="h"))], {}, InvalidArgument, "lies in a lane, and this call has none"),
        (
            [message(b"ab", 2, name=str(n)) for n in range(3)],
            {"max_tensors": 2},
            ResourceExhausted,
            "3 tensors",
        ),
        ([message(b"abc", 3)], {"max_tensor_bytes": 2}, ResourceExhausted, "3 bytes and max_tensor_bytes is 2"),
        ([message(b"x", 9, compression=3)], {}, InvalidArgument, "compression 3; known are 0 none and 1 zstd"),
        ([message(b"x", 9, compression=1)], {}, InvalidArgument, "the zstd data is damaged"),
    ],
)
def test_what_is_no_tensor_is_refused(inputs, limits, kind, said):
    with pytest.raises(kind, match=said):
        received(*inputs, **limits)


def test_compressed_tensors_become_no_more_than_a_message_may_have():
    packed = zstandard.ZstdCompressor().compress(bytes(3000))
    one, two = (message(packed, 3000, name=name, compression=1) for name in "ab")
    assert len(received(one, max_message_bytes=5000).tensors) == 1
    with pytest.raises(ResourceExhausted, match="become 6000 bytes and max_message_bytes is 5000"):
        received(one, two, max_message_bytes=5000)


def test_a_forged_size_is_refused_before_it_is_allocated():
    for size, said in ((2999, "become 3000, the limit is 2999"), (3001, "needs 3001 bytes, got 3000")):
        packed = zstandard.ZstdCompressor().compress(bytes(3000))
        with pytest.raises((ResourceExhausted, InvalidArgument), match=said):
            received(message(packed, size, compression=1))


def test_the_lane_follows_the_size_unless_it_is_said():
    assert [choose("auto", size) for size in (0, INLINE_BYTES, INLINE_BYTES + 1)] == ["inline", "inline", "chunks"]
    assert choose("chunks", 0) == "chunks"
    with pytest.raises(InvalidUsage, match="lane must be one of auto, inline, chunks, shm, socket, got 'fast'"):
        choose("fast", 0)
