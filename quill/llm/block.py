"""What a journal is made of: blocks of tokens as columns, and entries that stand alone."""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from quill.proto import Completed, Delta, SequenceDone, Started, Token

_MESSAGE_BYTES = 640
"""What an entry that is a message costs beside its content: the objects that it is (measured)."""
_NESTED_BYTES = 224
"""What each candidate, or token of the prompt, within it costs besides."""
ROW_BYTES = 12
"""What a token in a block costs beside its bytes: its id, its log probability, where it ends."""
_MAX_BLOCK_BYTES = 4096
"""Some hundred tokens."""


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
    """What an entry costs: about the memory that it takes, as the bytes of a block are."""
    message = entry.token if isinstance(entry, TokenEntry) else entry
    nested = 0
    if isinstance(entry, TokenEntry):
        nested = len(entry.token.top_logprobs)
    elif isinstance(entry, Started):
        nested = len(entry.prompt_token_batch.tokens)
    return message.ByteSize() + _MESSAGE_BYTES + nested * _NESTED_BYTES


class Single:
    """One entry.

    Args:
        first: Its number.
        bytes_before: What all entries before it cost.
        entry: The entry.
    """

    __slots__ = ("bytes_before", "entry", "first", "size_bytes")

    def __init__(self, first: int, bytes_before: int, entry: Entry) -> None:
        self.first = first
        self.bytes_before = bytes_before
        self.entry = entry
        self.size_bytes = cost_bytes(entry)
        """What it costs."""

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
        max_bytes: What it should cost at most.
    """

    __slots__ = (
        "_max_bytes",
        "_size_bytes",
        "_sized",
        "bytes_before",
        "carried",
        "data",
        "first",
        "ids",
        "logprobs",
        "place",
        "sequence_id",
    )

    def __init__(self, first: int, bytes_before: int, rows: TokenRows, max_bytes: int) -> None:
        self.first = first
        self.bytes_before = bytes_before
        self.sequence_id = rows.sequence_id
        self.place = rows.place
        self.carried = rows.carried
        self.ids: array[int] | None = None if rows.ids is None else array("I")
        self.logprobs: array[float] | None = None if rows.logprobs is None else array("f")
        self.data: list[bytes] = []
        """By row. Engines give the same objects again and again; columns of bytes would be copied at each step."""
        self._max_bytes = min(max_bytes, _MAX_BLOCK_BYTES)
        self._size_bytes = 0
        self._sized = 0
        """How many rows that counts."""

    @property
    def end(self) -> int:
        """The number of the entry after the last row."""
        return self.first + len(self.data)

    @property
    def size_bytes(self) -> int:
        """What it costs."""
        rows = len(self.data)
        if self._sized < rows:
            self._size_bytes += sum(map(len, self.data[self._sized :])) + ROW_BYTES * (rows - self._sized)
            self._sized = rows
        return self._size_bytes

    @property
    def free_bytes(self) -> int:
        """What it may still cost; it takes more rows while that is above 0."""
        return self._max_bytes - self.size_bytes

    def takes(self, rows: TokenRows) -> bool:
        """Whether tokens that come next belong into this block."""
        return (
            self.free_bytes > 0
            and rows.sequence_id == self.sequence_id
            and (rows.ids is None) is (self.ids is None)
            and (rows.logprobs is None) is (self.logprobs is None)
        )

    def extend(self, rows: TokenRows) -> None:
        """Take rows.

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
        self.data += rows.data

    def bytes_until(self, position: int) -> int:
        """What all entries before a number cost."""
        row = position - self.first
        return self.bytes_before + sum(map(len, self.data[:row])) + ROW_BYTES * row

    def entries(self, position: int, limit: int) -> list[Entry]:
        """The rows from a number on as messages, ``limit`` at most."""
        row = position - self.first
        rest = self._incomplete_before(row)
        entries: list[Entry] = []
        for number, data in enumerate(self.data[row : row + limit], row):
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

    def _incomplete_before(self, row: int) -> bytes:
        """The bytes of an incomplete character before a row: UTF-8 tells from the last three."""
        before = b""
        while row and len(before) < 3:  # noqa: PLR2004  # what of a character of four bytes may be there
            row -= 1
            before = self.data[row] + before
        if not row:
            before = self.carried + before
        return before[codecs.utf_8_decode(before, "replace", False)[1] :]
