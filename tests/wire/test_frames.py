"""Frames against bytes written by hand from their description, and against protobuf's own varints."""

import itertools

import pytest
from google.protobuf.internal.encoder import _VarintBytes
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import InvalidArgument, ResourceExhausted
from quill.wire.frames import CANCEL, CREDIT, DATA, END_STREAM, FrameReader, encode_frame
from quill.wire.protobuf import encoded_varint

MIB = 1024 * 1024

GOLDEN = [
    ("05 01 68656c6c6f", (DATA, b"hello")),
    ("05 03 48656c6c6f", (DATA | END_STREAM, b"Hello")),
    ("00 01", (DATA, b"")),
    ("00 02", (END_STREAM, b"")),
    ("00 03", (DATA | END_STREAM, b"")),
    ("00 04", (CANCEL, b"")),
    ("01 08 64", (CREDIT, b"\x64")),
    ("05 08 ffffffff0f", (CREDIT, b"\xff\xff\xff\xff\x0f")),
    ("7f 01" + 127 * "61", (DATA, b"a" * 127)),
    ("8001 01" + 128 * "61", (DATA, b"a" * 128)),
    ("9601 01" + 150 * "61", (DATA, b"a" * 150)),
]

frames = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([DATA, DATA | END_STREAM, CANCEL]), st.binary(max_size=300)),
        st.tuples(st.just(END_STREAM), st.just(b"")),
        st.tuples(st.just(CREDIT), st.integers(0, 2**32 - 1).map(encoded_varint)),
    ),
    max_size=8,
)


def read(data, cuts=(), limit=10_000):
    """The frames of data that comes in pieces."""
    reader, found = FrameReader(limit), []
    for start, end in itertools.pairwise([0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]):
        reader.feed(data[start:end])
        while (frame := reader.next_frame()) is not None:
            found.append(frame)
    return found


@pytest.mark.parametrize(("encoded", "frame"), GOLDEN, ids=[encoded[:8] for encoded, _ in GOLDEN])
def test_frames_are_these_bytes(encoded, frame):
    assert encode_frame(*frame) == bytes.fromhex(encoded)
    assert read(bytes.fromhex(encoded)) == [frame]


@given(st.integers(0, 2**35 - 1))
def test_numbers_are_the_varints_of_protobuf(value):
    assert encoded_varint(value) == _VarintBytes(value)


@given(frames, st.lists(st.integers(0, 3000), max_size=10))
@settings(max_examples=200, deadline=None)
def test_frames_read_the_same_however_they_are_cut(sent, cuts):
    assert read(b"".join(encode_frame(*frame) for frame in sent), cuts) == sent


def test_frames_are_read_byte_by_byte():
    data = bytes.fromhex("".join(encoded for encoded, _ in GOLDEN).replace(" ", ""))
    assert read(data, range(len(data))) == [frame for _, frame in GOLDEN]


@pytest.mark.parametrize(
    "encoded", ["8000 03", "808000 03", "80808000 03", "8080808000 03", "8580808000 01 68656c6c6f"]
)
def test_a_length_of_up_to_five_bytes_is_read(encoded):
    (frame,) = read(bytes.fromhex(encoded))
    assert frame in {(DATA | END_STREAM, b""), (DATA, b"hello")}


@pytest.mark.parametrize("encoded", ["8080808080", "ffffffffff", "808080808001 01"])
def test_a_length_of_more_than_five_bytes_is_refused_as_soon_as_it_shows(encoded):
    with pytest.raises(InvalidArgument, match="more than 5 bytes"):
        read(bytes.fromhex(encoded)[:5])


@pytest.mark.parametrize("flags", [0, 5, 6, 9, 10, 12, 16, 0x11, 0x80, 0xFF])
def test_flags_that_mean_nothing_together_are_refused_before_the_payload_has_come(flags):
    with pytest.raises(InvalidArgument, match=f"0x{flags:02x}"):
        read(b"\x05" + bytes([flags]))


def test_data_in_the_frame_of_the_end_is_not_dropped_without_a_word():
    with pytest.raises(InvalidArgument, match="1 bytes"):
        read(bytes.fromhex("01 02 61"))


@pytest.mark.parametrize("credit", ["", "80", "0100", "ffffffff1f", "ffffffffff01", "808080808000"])
def test_credit_is_one_number_of_32_bits(credit):
    payload = bytes.fromhex(credit)
    with pytest.raises(InvalidArgument):
        read(bytes([len(payload), CREDIT]) + payload)


@pytest.mark.parametrize(("limit", "length"), [(10, 11), (64 * MIB, 4 * MIB + 1), (64 * MIB, 2**35 - 1)])
def test_a_payload_is_refused_by_its_length_alone(limit, length):
    with pytest.raises(ResourceExhausted, match=f"{length} bytes, the limit is {min(limit, 4 * MIB)}"):
        read(encoded_varint(length), limit=limit)


def test_the_largest_payload_is_read():
    data = bytes(4 * MIB)
    assert read(encode_frame(DATA, data), [1, 5, MIB], limit=64 * MIB) == [(DATA, data)]


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data, cuts):
    try:
        found = read(data, cuts, limit=20)
    except (InvalidArgument, ResourceExhausted):
        return
    assert len(data) >= sum(2 + len(payload) for _, payload in found)
