"""Calls of TensorService that are wrong in one thing each, with the status that they must end with.

The messages are upb's, so that nothing of Quill's own writing can be wrong in the same way as its reading.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from quill.errors import Code
from quill.proto import (
    Compression,
    InferHeader,
    InferRequest,
    StreamInferRequest,
    Tensor,
    TensorChunk,
    TensorMeta,
)

UINT8, FLOAT32, BOOL = 8, 1, 9
INVALID, EXHAUSTED = Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED
WRONG_META = 0.4
"""How many of the unary calls are wrong in what they say of a tensor."""
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class Attack:
    """A call."""

    name: str
    method: str
    """``"Infer"`` or ``"StreamInfer"``."""
    messages: list[bytes]
    expected: frozenset[Code]
    names_numbers: bool = True
    """Whether the message must name what is and what may be."""


def meta(shape: list[int], dtype: int = UINT8, **fields: object) -> TensorMeta:
    """A TensorMeta; the stubs give enums int types of their own."""
    made: TensorMeta = TensorMeta(shape=shape, dtype=dtype, **{"name": "x", **fields})  # type: ignore[arg-type]
    return made


def forged_frame(size_bytes: int, content: bytes) -> bytes:
    """A Zstandard frame that says another size than it has (RFC 8878, section 3.1.1.1)."""
    honest = zstandard.ZstdCompressor(write_content_size=False).compress(content)
    # Single segment, a content size of eight bytes; then the blocks of the honest frame, behind its own head.
    head_bytes = zstandard.frame_header_size(honest)
    return _ZSTD_MAGIC + b"\xe0" + size_bytes.to_bytes(8, "little") + honest[head_bytes:]


def wrong_meta(chance: random.Random) -> tuple[str, TensorMeta, frozenset[Code]]:
    """A tensor that is none, or is too large."""
    big = chance.randint(2**31, 2**62)
    kinds: list[tuple[str, Callable[[], TensorMeta], frozenset[Code]]] = [
        ("overflow", lambda: meta([big, big, chance.randint(2, 9)]), frozenset({INVALID, EXHAUSTED})),
        ("wraps to nothing", lambda: meta([2**32, 2**32], FLOAT32), frozenset({INVALID, EXHAUSTED})),
        ("negative", lambda: meta([chance.randint(-(2**63), -1), 2]), frozenset({INVALID})),
        ("rank", lambda: meta([1] * chance.randint(33, 5000)), frozenset({EXHAUSTED, INVALID})),
        ("dtype", lambda: meta([1], chance.choice((0, 17, 99, -1, 2**31 - 1))), frozenset({INVALID})),
        ("too large", lambda: meta([chance.randint(2**31, 2**40)]), frozenset({EXHAUSTED})),
        ("byte_size", lambda: meta([4], byte_size=chance.choice((1, 3, 5, 2**63, 2**64 - 1))), frozenset({INVALID})),
        ("strides", lambda: meta([2, 3], strides=[1, chance.randint(2, 2**62)]), frozenset({INVALID})),
        ("compression", lambda: meta([4], compression=chance.randint(2, 99)), frozenset({INVALID})),
    ]
    name, make, expected = chance.choice(kinds)
    return name, make(), expected


def bad_infer(chance: random.Random) -> Attack:
    """A unary call."""
    size = chance.randint(1, 5000)
    data = chance.randbytes(size)
    packed = zstandard.ZstdCompressor().compress(data)
    zstd = Compression.COMPRESSION_ZSTD
    told = meta([size], compression=zstd)
    forged = forged_frame(chance.choice((size + 1, 2**20, 2**30, 2**40, 2**63)), data)
    bomb = zstandard.ZstdCompressor().compress(bytes(2**22))
    whole = Tensor(meta=meta([size]), data=data)
    cut = packed[: chance.randint(1, len(packed) - 1)]
    short = meta([size + chance.randint(1, 2**20)])
    cases: list[tuple[str, list[Tensor], Code, bool]] = [
        ("short data", [Tensor(meta=short, data=data)], INVALID, True),
        ("long data", [Tensor(meta=meta([size - 1]), data=data)], INVALID, True),
        ("twice a name", [whole, whole], INVALID, False),
        ("no name", [Tensor(meta=meta([size], name=""), data=data)], INVALID, False),
        ("bool of 2", [Tensor(meta=meta([3], BOOL), data=b"\x00\x01\x02")], INVALID, True),
        ("cut zstd", [Tensor(meta=told, data=cut)], INVALID, False),
        ("forged zstd", [Tensor(meta=told, data=forged)], EXHAUSTED, True),
        ("zstd bomb", [Tensor(meta=meta([64], compression=zstd), data=bomb)], EXHAUSTED, True),
    ]
    name, inputs, code, names_numbers = chance.choice(cases)
    expected = frozenset({code})
    if chance.random() < WRONG_META:
        name, wrong, expected = wrong_meta(chance)
        inputs, names_numbers = [Tensor(meta=wrong, data=data[:9])], True
    message = InferRequest(model="identity", inputs=inputs).SerializeToString()
    return Attack(f"infer: {name}", "Infer", [message], expected, names_numbers)


def header(tensors: list[TensorMeta]) -> bytes:
    """The first message of a stream."""
    return StreamInferRequest(header=InferHeader(model="identity", tensors=tensors)).SerializeToString()


def chunk(data: bytes, offset: int, sequence: int, tensor: int = 0, *, last: bool = False) -> bytes:
    """A piece."""
    piece = TensorChunk(data=data, offset=offset, sequence=sequence, tensor_index=tensor, is_final=last)
    return StreamInferRequest(chunk=piece).SerializeToString()


def bad_stream(chance: random.Random) -> Attack:
    """A call in chunks."""
    size = chance.randint(20, 5000)
    half = size // 2
    data = chance.randbytes(size)
    begin = header([meta([size])])
    first, second = chunk(data[:half], 0, 0), chunk(data[half:], half, 1)
    name, messages, expected, names_numbers = chance.choice(
        [
            ("gap", [begin, first, chunk(data[half:], half + chance.randint(1, 2**40), 1)], INVALID, True),
            ("overlap", [begin, first, chunk(data[half:], half - 1, 1)], INVALID, True),
            ("repeated", [begin, first, first], INVALID, True),
            ("past the end", [begin, first, second, chunk(b"more", size, 2)], INVALID, True),
            ("longer than the rest", [begin, first, chunk(data, half, 1)], INVALID, True),
            ("second header", [begin, first, begin, second], INVALID, True),
            ("no header", [first], INVALID, False),
            ("nothing", [], INVALID, False),
            ("unknown tensor", [begin, chunk(data, 0, 0, chance.randint(1, 2**32 - 1))], INVALID, True),
            ("cut off", [begin, first], INVALID, True),
            ("final too early", [begin, chunk(data[:half], 0, 0, last=True)], INVALID, True),
            ("sequence", [begin, first, chunk(data[half:], half, chance.randint(2, 2**32 - 1))], INVALID, True),
            ("empty chunk", [begin, chunk(b"", 0, 0)], INVALID, True),
            ("too many", [header([meta([0], name=str(n)) for n in range(1025)])], EXHAUSTED, True),
            ("too much", [header([meta([2**30], name=str(n)) for n in range(9)])], EXHAUSTED, True),
            ("no frame", [begin, b""], INVALID, False),
            ("forged zstd", _forged_stream(chance, data), EXHAUSTED, True),
            ("wrong meta", None, INVALID, True),
        ]
    )
    if messages is None:
        name, told, codes = wrong_meta(chance)
        return Attack(f"stream: {name}", "StreamInfer", [header([told])], codes)
    return Attack(f"stream: {name}", "StreamInfer", messages, frozenset({expected}), names_numbers)


def _forged_stream(chance: random.Random, data: bytes) -> list[bytes]:
    claims = chance.choice((len(data) + 1, 2**31, 2**50))
    told = meta([len(data)], compression=Compression.COMPRESSION_ZSTD)
    return [header([told]), chunk(forged_frame(claims, data), 0, 0)]
