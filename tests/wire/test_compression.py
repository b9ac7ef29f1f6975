"""Compression against other encoders and decoders, and against input made to hurt."""

import gzip
import itertools
import subprocess
import sys
import textwrap
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import InvalidArgument, ResourceExhausted
from quill.wire.compression import ENCODINGS, ZstdBody, compress, decompress

MIB = 1024 * 1024
CODECS = ["gzip", "zstd"]
TEXT = b"".join(b"token %d, " % (number * number) for number in range(500))

some_bytes = st.binary(max_size=2000) | st.builds(lambda piece, times: piece * times, st.binary(), st.integers(0, 5000))


def expand(encoding, data, *, max_bytes=64 * MIB, max_window_bytes=8 * MIB):
    return decompress(encoding, data, max_bytes=max_bytes, max_window_bytes=max_window_bytes)


def streamed(data, **options):
    """A Zstandard frame without its content size, as encoders of streams write it."""
    encoder = zstandard.ZstdCompressor(**options).compressobj()
    return encoder.compress(data) + encoder.flush()


def frame(content, *, claimed_bytes, window_descriptor=0x48):
    """A Zstandard frame made by hand: one raw block, an eight-byte content size, no checksum (RFC 8878, 3.1.1)."""
    header = b"\x28\xb5\x2f\xfd" + b"\xc0" + bytes([window_descriptor]) + claimed_bytes.to_bytes(8, "little")
    return header + (len(content) << 3 | 1).to_bytes(3, "little") + content


@given(some_bytes)
def test_others_read_what_is_written(data):
    assert gzip.decompress(compress("gzip", data)) == data
    assert zstandard.ZstdDecompressor().decompress(compress("zstd", data), allow_extra_data=False) == data
    assert compress("identity", data) == data


def test_zstd_frames_tell_their_size_and_carry_a_checksum():
    parameters = zstandard.get_frame_parameters(compress("zstd", TEXT))
    assert parameters.content_size == len(TEXT)
    assert parameters.has_checksum


@given(some_bytes)
def test_what_others_write_is_read(data):
    assert expand("gzip", gzip.compress(data)) == data
    assert expand("zstd", zstandard.ZstdCompressor(level=19).compress(data)) == data
    assert expand("zstd", streamed(data, write_checksum=True)) == data
    assert expand("zstd", streamed(data)) == data
    assert expand("identity", data) == data


@pytest.mark.parametrize("encoding", CODECS)
def test_large_messages_of_many_pieces_are_read(encoding):
    data = b"".join(zlib.crc32(number.to_bytes(4, "big")).to_bytes(4, "big") for number in range(MIB // 4)) * 3
    assert expand(encoding, compress(encoding, data), max_bytes=len(data)) == data
    assert expand("zstd", streamed(data), max_bytes=len(data)) == data


@given(st.lists(some_bytes, min_size=1, max_size=5))
def test_gzip_members_are_joined(parts):
    assert expand("gzip", b"".join(map(gzip.compress, parts))) == b"".join(parts)


def test_the_number_of_gzip_members_is_bounded():
    assert expand("gzip", gzip.compress(b"") * 1024) == b""
    with pytest.raises(ResourceExhausted, match="more than 1024 members"):
        expand("gzip", gzip.compress(b"") * 1025)


# --- limits ---


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_limit_is_exact(encoding):
    assert expand(encoding, compress(encoding, TEXT), max_bytes=len(TEXT)) == TEXT
    with pytest.raises(ResourceExhausted, match=rf"\b{len(TEXT) - 1}\b"):
        expand(encoding, compress(encoding, TEXT), max_bytes=len(TEXT) - 1)


def test_the_limit_is_exact_for_zstd_frames_that_do_not_tell_their_size():
    assert expand("zstd", streamed(TEXT), max_bytes=len(TEXT)) == TEXT
    with pytest.raises(ResourceExhausted, match=rf"\b{len(TEXT) - 1} bytes"):
        expand("zstd", streamed(TEXT), max_bytes=len(TEXT) - 1)


def test_the_limit_is_exact_over_gzip_members():
    data = gzip.compress(b"a" * 10) + gzip.compress(b"b" * 10)
    assert len(expand("gzip", data, max_bytes=20)) == 20
    with pytest.raises(ResourceExhausted):
        expand("gzip", data, max_bytes=19)


def test_a_window_above_the_limit_is_refused_with_both_numbers():
    assert expand("zstd", frame(b"abc", claimed_bytes=3, window_descriptor=13 << 3)) == b"abc"
    with pytest.raises(ResourceExhausted, match=r"a window of 16777216 bytes, at most 8388608 are allowed"):
        expand("zstd", frame(b"abc", claimed_bytes=3, window_descriptor=14 << 3))


@pytest.mark.parametrize(
    "bomb",
    [
        "zstandard.ZstdCompressor().compress(bytes(1 << 30))",
        "(lambda encoder: b''.join([*(encoder.compress(bytes(1 << 20)) for _ in range(1024)), encoder.flush()]))"
        "(zstandard.ZstdCompressor().compressobj())",
        "(lambda encoder: b''.join([*(encoder.compress(bytes(1 << 20)) for _ in range(1024)), encoder.flush()]))"
        "(zlib.compressobj(9, wbits=31))",
        # 1 GiB claimed as a size within the limit, three bytes there.
        "bytes.fromhex('28b52ffdc048') + (1 << 30).to_bytes(8, 'little') + bytes.fromhex('190000616263')",
        # 1 GiB of repeated bytes in blocks of four bytes, the densest there is.
        "bytes.fromhex('28b52ffd0048') + bytes.fromhex('02001000') * 8192 + bytes.fromhex('010000')",
    ],
    ids=["zstd with size", "zstd without size", "gzip", "zstd with a false size", "zstd of repeated bytes"],
)
def test_a_bomb_is_refused_in_little_memory(bomb):
    program = textwrap.dedent(
        """
        import resource, sys, zlib, zstandard
        from quill.errors import InvalidArgument, ResourceExhausted
        from quill.wire.compression import decompress
        # The bomb comes from a process of its own, whose memory does not count here.
        bomb = sys.stdin.buffer.read()
        encoding = "gzip" if bomb[:2] == bytes([31, 139]) else "zstd"
        claims_to_fit = len(bomb) == 20
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            decompress(encoding, bomb, max_bytes=(2 << 30) if claims_to_fit else (8 << 20), max_window_bytes=8 << 20)
        except (InvalidArgument, ResourceExhausted) as error:
            print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
    )
    maker = f"import sys, zlib, zstandard; sys.stdout.buffer.write({bomb})"
    made = subprocess.run([sys.executable, "-c", maker], check=True, capture_output=True, timeout=60)
    assert len(made.stdout) < 1_200_000
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, timeout=60, input=made.stdout
    )
    kind, grown_kib = done.stdout.decode().split()
    assert kind == ("InvalidArgument" if len(made.stdout) == 20 else "ResourceExhausted")
    assert int(grown_kib) < 32 * 1024  # the limit, a window of at most 8 MiB, and one piece's worth


# --- damage ---


@pytest.mark.parametrize("encoding", CODECS)
def test_empty_input_is_refused(encoding):
    with pytest.raises(InvalidArgument, match=f"marked as compressed with {encoding} and is empty"):
        expand(encoding, b"")


SOUND = {
    "gzip": ("gzip", compress("gzip", TEXT), TEXT),
    "gzip members": ("gzip", gzip.compress(TEXT) + gzip.compress(b"more"), TEXT + b"more"),
    "zstd": ("zstd", compress("zstd", TEXT), TEXT),
    "zstd stream": ("zstd", streamed(TEXT, write_checksum=True), TEXT),
    "zstd empty": ("zstd", compress("zstd", b""), b""),
    "gzip empty": ("gzip", compress("gzip", b""), b""),
}


@pytest.mark.parametrize("name", SOUND)
def test_input_cut_off_anywhere_is_refused(name):
    encoding, data, _ = SOUND[name]
    whole_member = len(gzip.compress(TEXT)) if name == "gzip members" else None
    for length in range(len(data)):
        if length != whole_member:
            with pytest.raises(InvalidArgument):
                expand(encoding, data[:length])


def test_input_without_a_checksum_cut_off_anywhere_is_refused():
    data = streamed(TEXT)
    for length in range(len(data)):
        with pytest.raises(InvalidArgument):
            expand("zstd", data[:length])


@pytest.mark.parametrize("name", SOUND)
@settings(max_examples=100)
@given(tail=st.binary(min_size=1, max_size=40))
def test_whatever_follows_the_end_is_refused(name, tail):
    encoding, data, _ = SOUND[name]
    with pytest.raises(InvalidArgument):
        expand(encoding, data + tail)


def test_a_second_zstd_frame_is_refused():
    for data in (compress("zstd", TEXT), compress("zstd", b""), streamed(TEXT)):
        with pytest.raises(InvalidArgument):
            expand("zstd", data + compress("zstd", TEXT))
        with pytest.raises(InvalidArgument):
            expand("zstd", b"\x50\x2a\x4d\x18\x02\0\0\0xx" + data)  # a skippable frame before it
        with pytest.raises(InvalidArgument):
            expand("zstd", data + b"\x50\x2a\x4d\x18\x02\0\0\0xx")


@pytest.mark.parametrize("name", SOUND)
@settings(max_examples=300)
@given(data=st.data())
def test_a_flipped_bit_never_changes_the_message(name, data):
    encoding, sound, message = SOUND[name]
    bit = data.draw(st.integers(0, len(sound) * 8 - 1))
    damaged = bytearray(sound)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        read = expand(encoding, bytes(damaged))
    except (InvalidArgument, ResourceExhausted):
        return
    assert read == message  # a bit that says nothing about the content, such as gzip's time


@pytest.mark.parametrize("encoding", CODECS)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(encoding, data):
    for prefix in (b"", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08\x00"):
        try:
            expand(encoding, prefix + data)
        except (InvalidArgument, ResourceExhausted) as error:
            assert error.__cause__ is None  # noqa: PT017


def test_a_refused_message_leaves_no_trace_for_the_next():
    for bad in (compress("zstd", TEXT)[:-7], streamed(TEXT)[:-1], streamed(TEXT) + b"x"):
        with pytest.raises(InvalidArgument):
            expand("zstd", bad)
        assert expand("zstd", compress("zstd", TEXT)) == TEXT
        assert expand("zstd", streamed(TEXT)) == TEXT


def test_a_content_size_that_is_not_kept_is_refused():
    assert expand("zstd", frame(b"abc", claimed_bytes=3)) == b"abc"
    for claimed_bytes in (0, 1, 2, 4, 1000):
        with pytest.raises(InvalidArgument):
            expand("zstd", frame(b"abc", claimed_bytes=claimed_bytes))
    with pytest.raises(ResourceExhausted):
        expand("zstd", frame(b"abc", claimed_bytes=2**62))


def pieces_of(data, cuts=(), *, max_piece_bytes=MIB):
    """What a body becomes that comes in pieces, as it is asked for."""
    body, found = ZstdBody(max_piece_bytes, 8 * MIB), []
    for start, end in itertools.pairwise([0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]):
        body.feed(data[start:end])
        while piece := body.read():
            found.append(piece)
    return found


@given(st.lists(some_bytes, max_size=4), st.lists(st.integers(0, 5000), max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_body_reads_the_same_however_it_is_cut_and_into_however_many_frames(contents, cuts):
    data = b"".join(streamed(content) for content in contents)
    assert b"".join(pieces_of(data, cuts)) == b"".join(contents)


def test_what_was_flushed_can_be_read_before_the_body_ends():
    encoder = zstandard.ZstdCompressor().compressobj()
    body = ZstdBody(MIB, 8 * MIB)
    for content in (b"one", b"two"):
        body.feed(encoder.compress(content) + encoder.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        assert body.read() == content
        assert body.read() == b""


def test_a_bomb_in_a_body_comes_in_pieces():
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * MIB))
    pieces = pieces_of(bomb)
    assert sum(map(len, pieces)) == 64 * MIB
    assert max(map(len, pieces)) <= 3 * MIB


@pytest.mark.parametrize(
    "data", [b"no zstd at all", streamed(TEXT)[:20] + b"\xff" * 5000, streamed(TEXT) + b"behind", bytes(8)]
)
def test_a_damaged_body_is_refused(data):
    with pytest.raises(InvalidArgument):
        pieces_of(data)


def test_a_body_that_wants_a_large_window_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    data = streamed(bytes(100), compression_params=parameters)
    with pytest.raises(InvalidArgument, match="window"):
        pieces_of(data)
