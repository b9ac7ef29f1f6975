"""inference.v1.TokenColumns as arrays: what a session's frames are made of, without a loop over their tokens.

On the wire packed fixed32 and float are little-endian arrays behind a length, as bytes fields are. So a private
message with ``bytes`` under the same numbers writes and reads the same bytes, and an array becomes a field by a copy.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import repeat
from typing import Any, TypeAlias

_FIELDS = ("runs", "positions", "counts", "sequence_ids", "ids", "logprobs", "data_lengths", "data")
"""The fields of TokenColumns in the order of their numbers, from 1."""


_HEAD = 4
"""The numbers of a segment."""
_ONE = (1).to_bytes(4, "little")


Row: TypeAlias = tuple[int, int, int | None, float | None, bytes]
"""What Rows of one token have, with values in the place of columns. Most segments are of one, and a tuple as ``zip``
makes it takes half as long as any other object."""


@dataclass(slots=True)
class Rows:
    """Consecutive tokens of one sequence of one generation.

    Not to be changed; not frozen, because that takes four times as long to make.
    """

    position: int
    """The journal number of the first token."""
    sequence_id: int
    ids: Sequence[int] | None
    """The ids; None where they are not told."""
    logprobs: Sequence[float] | None
    """The log probabilities; None where they are not told."""
    data: Sequence[bytes]
    """The raw bytes of each token."""

    def without(self, count: int) -> Rows:
        """The same but for the first tokens."""
        return Rows(
            self.position + count,
            self.sequence_id,
            None if self.ids is None else self.ids[count:],
            None if self.logprobs is None else self.logprobs[count:],
            self.data[count:],
        )


class Columns:
    """The tokens of one frame. Either all of them have ids or none, and likewise log probabilities.

    Args:
        has_ids: Whether they have ids.
        has_logprobs: Whether they have log probabilities.
    """

    __slots__ = ("data", "has_ids", "has_logprobs", "heads", "ids", "logprobs")

    def __init__(self, *, has_ids: bool, has_logprobs: bool) -> None:
        self.has_ids = has_ids
        self.has_logprobs = has_logprobs
        self.heads: list[int] = []
        """Four numbers for each segment: the run, the number of its first token, how many tokens, which sequence."""
        self.ids = array("I")
        self.logprobs = array("f")
        self.data: list[bytes] = []
        """The raw bytes of each token."""

    def encode(self) -> bytes:
        """The serialized inference.v1.TokenColumns."""
        heads = array("I", self.heads)
        twin = _twin()()
        twin.runs = _little(heads[0::_HEAD])
        twin.positions = _little(heads[1::_HEAD])
        twin.counts = _little(heads[2::_HEAD])
        sequence_ids = heads[3::_HEAD]
        if any(sequence_ids):
            twin.sequence_ids = _little(sequence_ids)
        twin.ids = _little(self.ids)
        twin.logprobs = _little(self.logprobs)
        twin.data_lengths = _little(array("I", map(len, self.data)))
        twin.data = b"".join(self.data)
        encoded: bytes = twin.SerializeToString()
        return encoded


def segments(encoded: bytes) -> Iterator[tuple[int, Row | Rows]]:
    """The segments of a serialized TokenColumns whose repeated fields are packed, as every protobuf library does.

    Returns:
        For each, in order: the session's number of the generation, which is 0 outside sessions; and its tokens, a Row
        where it is one.

    Raises:
        ValueError: The columns do not fit together.
    """
    twin = _twin().FromString(encoded)
    positions, counts = _column("I", twin.positions), _column("I", twin.counts)
    runs, sequence_ids = _column("I", twin.runs), _column("I", twin.sequence_ids)
    ids, logprobs, lengths = _column("I", twin.ids), _column("f", twin.logprobs), _column("I", twin.data_lengths)
    total = sum(counts)
    _check("positions", len(positions), len(counts))
    _check("runs", len(runs) or len(counts), len(counts))
    _check("sequence_ids", len(sequence_ids) or len(counts), len(counts))
    _check("data_lengths", len(lengths), total)
    _check("ids", len(ids) or total, total)
    _check("logprobs", len(logprobs) or total, total)
    _check("data", len(twin.data), sum(lengths))
    pieces = map(BytesIO(twin.data).read, lengths)
    heads = positions, sequence_ids or repeat(0)
    if twin.counts == _ONE * len(counts):  # a token each, as while all keep the pace of their engine
        each: Iterable[Row | Rows] = zip(*heads, ids or repeat(None), logprobs or repeat(None), pieces, strict=False)
    else:
        each = _several(zip(*heads, counts, strict=False), ids, logprobs, list(pieces))
    return zip(runs or repeat(0), each, strict=False)


def _several(
    heads: Iterable[tuple[int, int, int]], ids: array[int], logprobs: array[float], pieces: list[bytes]
) -> Iterator[Row | Rows]:
    begin = 0
    for position, sequence_id, count in heads:
        end = begin + count
        if count == 1:
            id_, logprob = ids[begin] if ids else None, logprobs[begin] if logprobs else None
            yield position, sequence_id, id_, logprob, pieces[begin]
        else:
            told_ids, told_logprobs = ids[begin:end] if ids else None, logprobs[begin:end] if logprobs else None
            yield Rows(position, sequence_id, told_ids, told_logprobs, pieces[begin:end])
        begin = end


def _check(name: str, count: int, expected: int) -> None:
    if count != expected:
        raise ValueError(f"token columns: {name} has {count} and the others are made for {expected}")


def _little(column: array[Any]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _column(kind: str, data: bytes) -> array[Any]:
    column = array(kind)
    try:
        column.frombytes(data)
    except ValueError:
        raise ValueError(f"token columns: a column has {len(data)} bytes, no multiple of {column.itemsize}") from None
    if sys.byteorder == "big":
        column.byteswap()
    return column


@cache
def _twin() -> Any:
    """The class of the private message."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="columns.proto", package="columns", syntax="proto3")
    message = file.message_type.add(name="Twin")
    for number, name in enumerate(_FIELDS, 1):
        message.field.add(name=name, number=number, type="TYPE_BYTES", label="LABEL_OPTIONAL")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("columns.Twin"))
