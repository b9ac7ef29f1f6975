"""Token columns as arrays, against protobuf's own reading and writing of them."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.proto import TokenColumns
from quill.wire.columns import Columns, Rows, segments

U32 = st.integers(0, 2**32 - 1)
FLOAT = st.floats(width=32, allow_nan=False)


@st.composite
def frames(draw):
    """Rows of one frame: all with ids or none, all with log probabilities or none."""
    has_ids, has_logprobs = draw(st.booleans()), draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(0, 6))):
        count = draw(st.integers(1, 5))
        several = {"min_size": count, "max_size": count}
        rows.append(
            (
                draw(U32),
                Rows(
                    draw(U32),
                    draw(st.one_of(st.just(0), U32)),
                    draw(st.lists(U32, **several)) if has_ids else None,
                    draw(st.lists(FLOAT, **several)) if has_logprobs else None,
                    draw(st.lists(st.binary(max_size=9), **several)),
                ),
            )
        )
    return has_ids, has_logprobs, rows


def packed(has_ids, has_logprobs, rows):
    columns = Columns(has_ids=has_ids, has_logprobs=has_logprobs)
    for run, one in rows:
        columns.heads += (run, one.position, len(one.data), one.sequence_id)
        columns.ids.extend(one.ids or [])
        columns.logprobs.extend(one.logprobs or [])
        columns.data += one.data
    return columns.encode()


def message(rows):
    """The same by protobuf's repeated fields."""
    made = TokenColumns(data=b"".join(piece for _, one in rows for piece in one.data))
    for run, one in rows:
        made.runs.append(run)
        made.positions.append(one.position)
        made.counts.append(len(one.data))
        if any(other.sequence_id for _, other in rows):
            made.sequence_ids.append(one.sequence_id)
        made.ids.extend(one.ids or [])
        made.logprobs.extend(one.logprobs or [])
        made.data_lengths.extend(map(len, one.data))
    return made


@settings(max_examples=300, deadline=None)
@given(frames())
def test_the_bytes_are_those_that_protobuf_writes(frame):
    assert packed(*frame) == message(frame[2]).SerializeToString()


def as_lists(segment):
    """A segment as it was drawn: one of one token has its values, and columns may be any sequence."""
    run, told = segment
    if isinstance(told, tuple):
        *head, token_id, logprob, data = told
        ids, logprobs = None if token_id is None else [token_id], None if logprob is None else [logprob]
        return run, Rows(*head, ids, logprobs, [data])
    ids, logprobs = told.ids and list(told.ids), told.logprobs and list(told.logprobs)
    return run, replace(told, ids=ids, logprobs=logprobs, data=list(told.data))


@settings(max_examples=300, deadline=None)
@given(frames())
def test_what_protobuf_wrote_is_read(frame):
    assert [as_lists(segment) for segment in segments(message(frame[2]).SerializeToString())] == frame[2]


@settings(max_examples=100, deadline=None)
@given(frames(), st.integers(0, 5))
def test_rows_without_the_first_are_the_others(frame, count):
    for _, rows in frame[2]:
        if count <= len(rows.data):
            rest = rows.without(count)
            assert (rest.position, rest.data) == (rows.position + count, rows.data[count:])
            assert rest.ids == (rows.ids and rows.ids[count:])
            assert rest.logprobs == (rows.logprobs and rows.logprobs[count:])


def test_the_wire_is_little_endian_fixed32():
    columns = Columns(has_ids=True, has_logprobs=True)
    columns.heads += (1, 2, 1, 0)
    columns.ids.append(258)
    columns.logprobs.append(-0.5)
    columns.data.append(b"hi")
    words = [(1, struct.pack("<I", 1)), (2, struct.pack("<I", 2)), (3, struct.pack("<I", 1))]
    words += [(5, struct.pack("<I", 258)), (6, struct.pack("<f", -0.5)), (7, struct.pack("<I", 2)), (8, b"hi")]
    assert columns.encode() == b"".join(bytes([number << 3 | 2, len(data)]) + data for number, data in words)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("positions", {"positions": [1, 2]}),
        ("runs", {"runs": [1, 2]}),
        ("sequence_ids", {"sequence_ids": [1, 2]}),
        ("data_lengths", {"counts": [3]}),
        ("ids", {"ids": [1]}),
        ("logprobs", {"logprobs": [1.0]}),
        ("data", {"data": b"abc"}),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(name, broken):
    fitting = {"runs": [1], "positions": [1], "counts": [2], "data_lengths": [1, 1], "data": b"ab"}
    with pytest.raises(ValueError, match=f"token columns: {name} has"):
        list(segments(TokenColumns(**(fitting | broken)).SerializeToString()))
