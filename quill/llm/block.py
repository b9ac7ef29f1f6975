"""What a journal is made of: blocks of tokens as columns, and entries that stand alone."""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from quill.proto import Completed, Delta, SequenceDone, Started, Token

_ENTRY_OVERHEAD_BYTES = 64
"""What an entry costs beside its content, for the bound."""
ROW_BYTES = 12
"""What a token in a block costs beside its bytes: its id, its log probability, where it ends."""
_MAX_ROWS = 256


@dataclass(slots=True)
class TokenEntry:
    """A token of a sequence that is no row of a block; never changed once it is in a journal."""

    sequence_id: int
    token: Token


Entry = Started | TokenEntry | Delta | SequenceDone | Completed
"""What has a number of its own. A Delta stands here for reasoning or pieces of tool calls: it has no tokens."""


@dataclass(slots=True)
class TokenRows:
    """Consecutive tokens of one sequence that need no message of their own. Never changed; frozen, it would cost more.

    Their texts are what an incremental decoder of UTF-8 makes of their bytes, one after the other; none is special,
    none has candidates.
    """

    sequence_id: int
    place: int
    """The place of the first token within its sequence."""
    data: Sequence[bytes]
    ids: Sequence[int] | None
    logprobs: Sequence[float] | None
    carried: bytes = b""
    """The bytes of an incomplete character that the rows before them ended with."""


def cost_bytes(entry: Entry) -> int:
    """What an entry costs."""
    message = entry.token if isinstance(entry, TokenEntry) else entry
    return message.ByteSize() + _ENTRY_OVERHEAD_BYTES


class Single:
    """One entry.

    Args:
        first: Its number.
        bytes_before: What all entries before it cost.
        entry: The entry.
    """

    __slots__ = ("bytes_before", "entry", "first")

    def __init__(self, first: int, bytes_before: int, entry: Entry) -> None:
        self.first = first
        self.bytes_before = bytes_before
        self.entry = entry

    @property
    def end(self) -> int:
        """The number of the entry after it."""
        return self.first + 1

    def entries(self, _position: int, _limit: int) -> list[Entry]:
        """The entry."""
        return [self.entry]

    def bytes_until(self, _position: int) -> int:
        """What all entries before it cost."""
        return self.bytes_before


class Block:
    """Consecutive tokens of one sequence as columns, all with ids or none, all with log probabilities or none.

    Args:
        first: The number of the first.
        bytes_before: What all entries before it cost.
        rows: What it is for; they are yet to be given to ``extend``.
    """

    __slots__ = ("bytes_before", "carried", "data", "ends", "first", "ids", "logprobs", "place", "sequence_id")

    def __init__(self, first: int, bytes_before: int, rows: TokenRows) -> None:
        self.first = first
        self.bytes_before = bytes_before
        self.sequence_id = rows.sequence_id
        self.place = rows.place
        self.carried = rows.carried
        self.ids: array[int] | None = None if rows.ids is None else array("I")
        self.logprobs: array[float] | None = None if rows.logprobs is None else array("f")
        self.ends = array("I")
        """By row: where its bytes end in ``data``."""
        self.data = bytearray()

    @property
    def end(self) -> int:
        """The number of the entry after the last row."""
        return self.first + len(self.ends)

    def takes(self, rows: TokenRows, max_bytes: int) -> bool:
        """Whether rows that come next belong into this block, which should not have many more than ``max_bytes``."""
        return (
            len(self.ends) < _MAX_ROWS
            and rows.sequence_id == self.sequence_id
            and (rows.ids is None) is (self.ids is None)
            and (rows.logprobs is None) is (self.logprobs is None)
            and len(self.data) + ROW_BYTES * len(self.ends) <= max_bytes
        )

    def extend(self, rows: TokenRows) -> int:
        """Take rows. Returns what they cost.

        Raises:
            OverflowError: An id is none.
        """
        # Both before anything is changed, because they may raise.
        ids = None if rows.ids is None else array("I", rows.ids)
        logprobs = None if rows.logprobs is None else array("f", rows.logprobs)
        if self.ids is not None and ids is not None:
            self.ids.extend(ids)
        if self.logprobs is not None and logprobs is not None:
            self.logprobs.extend(logprobs)
        data = self.data
        begin = len(data)
        for piece in rows.data:
            data += piece
            self.ends.append(len(data))
        return len(data) - begin + ROW_BYTES * len(rows.data)

    def add(self, sequence_id: int, data: bytes, id_: int | None, logprob: float | None, max_bytes: int) -> bool:
        """Take one token that comes next, where it belongs into this block: as ``takes`` and ``extend``, for less.

        Raises:
            OverflowError: The id is none.
        """
        ends, own, ids, logprobs = self.ends, self.data, self.ids, self.logprobs
        if (
            sequence_id != self.sequence_id
            or (id_ is None) is not (ids is None)
            or (logprob is None) is not (logprobs is None)
            or len(ends) >= _MAX_ROWS
            or len(own) + ROW_BYTES * len(ends) > max_bytes
        ):
            return False
        if ids is not None and id_ is not None:
            ids.append(id_)
        if logprobs is not None and logprob is not None:
            logprobs.append(logprob)
        own += data
        ends.append(len(own))
        return True

    def start_of(self, row: int) -> int:
        """Where the bytes of a row begin in ``data``."""
        return self.ends[row - 1] if row else 0

    def bytes_until(self, position: int) -> int:
        """What all entries before a number cost."""
        row = position - self.first
        return self.bytes_before + self.start_of(row) + ROW_BYTES * row

    def entries(self, position: int, limit: int) -> list[Entry]:
        """The rows from a number on as messages, ``limit`` at most."""
        row = position - self.first
        begin = self.start_of(row)
        rest = self._incomplete_before(begin)
        entries: list[Entry] = []
        for number in range(row, min(len(self.ends), row + limit)):
            end = self.ends[number]
            data = bytes(self.data[begin:end])
            begin = end
            so_far = rest + data
            text, used = codecs.utf_8_decode(so_far, "replace", False)
            rest = so_far[used:]
            token = Token(position=self.place + number, data=data, text=text)
            if self.ids is not None:
                token.id = self.ids[number]
            if self.logprobs is not None:
                token.logprob = self.logprobs[number]
            entries.append(TokenEntry(self.sequence_id, token))
        return entries

    def _incomplete_before(self, begin: int) -> bytes:
        """The bytes of an incomplete character that end at a place in ``data``: UTF-8 tells from the last three."""
        before = bytes(self.data[max(0, begin - 3) : begin])
        if begin < 3:  # noqa: PLR2004  # what of a character of four bytes may be there
            before = self.carried + before
        return before[codecs.utf_8_decode(before, "replace", False)[1] :]
