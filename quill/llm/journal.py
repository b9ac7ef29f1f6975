"""The journal of a run: what happened, numbered from 0, written by one task and read by any number.

Tokens lie in blocks of columns; messages are made of them when a reader asks. Reading and writing happen on one event
loop. A reader that waits has one future, and an append that finds nobody waiting wakes nobody.
"""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_right
from collections.abc import Callable
from typing import TypeAlias

from quill.errors import OutOfRange, RpcError
from quill.llm.block import ROW_BYTES, Block, Entry, Single, TokenRows
from quill.proto import PromptProgress

GRANTED_BYTES = 32
"""How long a token may be that the journal does not look at."""
_Told: TypeAlias = tuple[int, int, bytes, int | None, float | None]
Tell: TypeAlias = Callable[[*_Told], None]
"""Tells of one token: its number, its sequence, its bytes, its id and its log probability where it has one."""
_MAX_BATCH = 512
"""Entries that a reader is given at once, so that no message grows with the distance to the writer."""


class Journal:
    """The entries of one run, bounded in bytes.

    The journal keeps ``max_bytes`` of entries. When it has more, the oldest go, but only those that the fastest
    reader has taken; while all of ``max_bytes`` are ahead of it, it is ``full``, and the writer should wait.

    Args:
        max_bytes: How much is kept, and how far the writer may be ahead of the fastest reader.
    """

    __slots__ = (
        "_error",
        "_first_bytes",
        "_first_end",
        "_max_block_bytes",
        "_max_bytes",
        "_progress",
        "_progress_at",
        "_segments",
        "_window",
        "closed",
        "full",
        "last",
        "on_turn",
        "readers",
        "taken",
    )

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_block_bytes = max_bytes // 8
        """Small beside the bound: blocks are forgotten as a whole."""
        self._segments: list[Block | Single] = []
        self.last: Block | Single | None = None
        """What holds the newest entry."""
        self._first_end = 0
        """While nothing is kept: the number of the next entry."""
        self._first_bytes = 0
        """While nothing is kept: what all entries before it cost."""
        self.full = False
        """Whether ``max_bytes`` or more are ahead of the fastest reader, or as many entries as its window has."""
        self.taken = 0
        """The number of the first entry that no reader has taken yet."""
        self._window = sys.maxsize
        """How many entries the writer may be ahead of the fastest reader, beside the bytes."""
        self.on_turn: Callable[[], None] = nobody
        """Called when readers have come or gone, or made room in a full journal; must not raise."""
        self._progress: PromptProgress | None = None
        self._progress_at = 0
        """The number of the entry that makes it void."""
        self.readers: list[Reader] = []
        """Who reads now."""
        self.closed = False
        self._error: RpcError | None = None

    @property
    def end(self) -> int:
        """The number of the next entry."""
        return self._first_end if self.last is None else self.last.end

    @property
    def _written_bytes(self) -> int:
        last = self.last
        return self._first_bytes if last is None else last.bytes_before + last.size_bytes

    @property
    def first(self) -> int:
        """The number of the oldest kept entry; of the next where none is kept."""
        return self._segments[0].first if self._segments else self.end

    @property
    def is_trimmed(self) -> bool:
        """Whether the first entries are gone."""
        return self.first > 0

    @property
    def kept_bytes(self) -> int:
        """How much is kept now."""
        return self._written_bytes - self._segments[0].bytes_before if self._segments else 0

    def append(self, entry: Entry) -> None:
        """Write the next entry."""
        self._add(Single(self.end, self._written_bytes, entry))
        self._wrote()

    def append_tokens(self, rows: TokenRows) -> None:
        """Write tokens, each an entry of its own."""
        block = self.last
        if not isinstance(block, Block) or not block.takes(rows):
            block = Block(self.end, self._written_bytes, rows, self._max_block_bytes)
            self._add(block)
        block.extend(rows)
        self._wrote()

    def grant(self, block: Block) -> int:
        """How many tokens may be added to the last block without the journal, of GRANTED_BYTES at most each.

        Whoever adds them to its columns calls ``tell`` for each, and ``look`` after the last.
        """
        if block is not self.last or self.full:
            return 0
        kept_bytes = self._written_bytes - self._segments[0].bytes_before
        rows = min(block.free_bytes, self._max_bytes - kept_bytes) // (GRANTED_BYTES + ROW_BYTES)
        return max(0, min(rows, self.taken + self._window - self.end))

    @property
    def tell(self) -> Tell:
        """What is to be called for each token that is added to the last block, until ``on_turn``."""
        return self.readers[0].tell if len(self.readers) == 1 else self._tell_all

    def look(self) -> None:
        """See to the bounds after something was written."""
        if self._written_bytes - self._segments[0].bytes_before > self._max_bytes:
            self._trim()
        self.full = self._is_full()

    def _add(self, segment: Block | Single) -> None:
        self._segments.append(segment)
        self.last = segment

    def _wrote(self) -> None:
        self.look()
        self._wake_readers()

    def note(self, progress: PromptProgress) -> None:
        """Tell those who read now how far the engine is. No entry: the next entry makes it void."""
        self._progress, self._progress_at = progress, self.end
        self._wake_readers()

    def close(self, error: RpcError | None = None) -> None:
        """End the journal, once: readers get what is there, then ``error`` where one is given."""
        if not self.closed:
            self.closed = True
            self._error = error
            self._wake_readers()

    @property
    def is_overrun(self) -> bool:
        """Whether twice ``max_bytes`` are ahead of the fastest reader."""
        return self._written_bytes - self._bytes_before(self.taken) >= 2 * self._max_bytes

    def follow(self, position: int = 0) -> Reader:
        """Read from an entry on. The reader counts as one until it is closed.

        Raises:
            OutOfRange: The entry was trimmed, or is further than the next one to be written.
        """
        if not self.first <= position <= self.end:
            raise OutOfRange(f"entry {position} is not there: the journal has entries {self.first} to {self.end - 1}")
        reader = Reader(self, position)
        self.readers.append(reader)
        self.readers_changed()
        return reader

    def readers_changed(self) -> None:
        """The window is that of the widest reader; without readers there is none."""
        self._window = max((reader.window for reader in self.readers), default=sys.maxsize)
        self.full = self._is_full()
        self.on_turn()

    def segment(self, position: int) -> Block | Single | None:
        """What holds an entry; None where it is yet to be written.

        Raises:
            OutOfRange: The entry was trimmed.
        """
        last = self.last
        if position >= self.end or last is None:
            return None
        if last.first <= position:
            return last
        if position < self.first:
            raise OutOfRange(f"entry {position} is gone: the journal begins at {self.first}; read faster")
        return self._segments[bisect_right(self._segments, position, key=_first) - 1]

    def read(self, position: int) -> list[Entry]:
        """The entries from a number on, as far as they are there and fit one batch.

        Raises:
            OutOfRange: The entry was trimmed.
        """
        entries: list[Entry] = []
        while len(entries) < _MAX_BATCH:
            segment = self.segment(position + len(entries))
            if segment is None:
                break
            entries += segment.entries(position + len(entries), _MAX_BATCH - len(entries))
        return entries

    def progress(self) -> PromptProgress | None:
        """How far the engine is with the prompt; None once an entry came after."""
        return self._progress if self._progress_at == self.end else None

    def take(self, position: int) -> None:
        """A reader has done with every entry before ``position``."""
        if position > self.taken:
            self.taken = position
            if self.full and not self._is_full():
                self.full = False
                self.on_turn()

    def raise_ending(self) -> None:
        """Raise the error that the journal was closed with, as an exception of the caller's own."""
        if self._error is not None:
            error = self._error
            raise RpcError.of(error.code, error.message, details=error.details, trailers=error.trailers)

    def _is_full(self) -> bool:
        last = self.last
        if last is None:  # all was taken
            return False
        if last.end - self.taken >= self._window:
            return True
        written_bytes = last.bytes_before + last.size_bytes
        if written_bytes - self._segments[0].bytes_before < self._max_bytes:
            return False
        return written_bytes - self._bytes_before(self.taken) >= self._max_bytes

    def _bytes_before(self, position: int) -> int:
        segment = self.segment(position)
        return self._written_bytes if segment is None else segment.bytes_until(position)

    def _trim(self) -> None:
        """Forget the oldest taken segments, half of the bound at once: deletion costs O(n)."""
        self._first_end, self._first_bytes = self.end, self._written_bytes
        enough = self._first_bytes - self._max_bytes // 2
        count = 0
        for segment in self._segments:
            if segment.end > self.taken or segment.bytes_before >= enough:
                break
            count += 1
        del self._segments[:count]
        self.last = self._segments[-1] if self._segments else None

    def _tell_all(self, *token: *_Told) -> None:
        for reader in self.readers:
            reader.tell(*token)

    def _wake_readers(self) -> None:
        for reader in self.readers:
            reader.wake()


def _first(segment: Block | Single) -> int:
    return segment.first


def nobody() -> None:
    """What a journal calls without a writer."""


def tell_nobody(*_token: *_Told) -> None:
    """What tells of tokens while there is nobody to be told."""


class Reader:
    """Follows a journal: an async iterator of (number of the first entry, entries), as many as are there.

    What was given counts as taken when the next is asked for. How far the engine is with the prompt comes as a
    list with one PromptProgress under the number of the entry that follows.

    Raises:
        OutOfRange: What comes next was trimmed, because another reader is faster.
        RpcError: The journal ended with it.
    """

    def __init__(self, journal: Journal, position: int) -> None:
        self._journal = journal
        self._position = position
        self._progress: PromptProgress | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.window = sys.maxsize
        """How many entries the writer may be ahead of it."""
        self.wake: Callable[[], None] = self._wake
        """Called when something was written."""
        self.tell: Tell = self._tell
        """Called in its place for one token that was added to a block."""

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> tuple[int, list[Entry] | list[PromptProgress]]:
        journal, position = self._journal, self._position
        journal.take(position)
        while True:
            entries = journal.read(position)
            if entries:
                self._position += len(entries)
                return position, entries
            progress = journal.progress()
            if progress is not None and progress is not self._progress:
                self._progress = progress
                return position, [progress]
            if journal.closed:
                journal.raise_ending()
                raise StopAsyncIteration
            await self._changed()

    def listen(self, wake: Callable[[], None], window: int, tell: Tell | None = None) -> None:
        """Have everything told that is written, in place of iterating. Both are called by the writer; must not raise.

        Args:
            wake: Called when something was written.
            window: How many entries the writer may be ahead of what ``Journal.take`` was told.
            tell: Called in place of ``wake`` for one token.
        """
        self.wake = wake
        self.tell = tell or self._tell
        self.window = window
        self._journal.readers_changed()

    def _wake(self) -> None:
        # A reader whose task was cancelled has a cancelled future until it is closed.
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _tell(self, *_token: *_Told) -> None:
        self.wake()

    def close(self) -> None:
        """Count no longer as a reader. May be called again."""
        self.wake, self.tell = nobody, tell_nobody  # bound methods keep what they are of, and that this
        if self in self._journal.readers:
            self._journal.readers.remove(self)
            self._journal.readers_changed()

    async def _changed(self) -> None:
        """Wait for the writer, who has deadlines of its own: a journal never stays open and silent."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
