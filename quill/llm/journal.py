"""The journal of a run: what happened, numbered from 0, written by one task and read by any number.

Reading and writing happen on one event loop. A reader that waits has one future, and an append that finds nobody
waiting wakes nobody.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import dataclass

from quill.errors import OutOfRange, RpcError
from quill.proto import Completed, Delta, PromptProgress, SequenceDone, Started, Token

_ENTRY_OVERHEAD_BYTES = 64
"""What an entry costs beside its content, for the bound."""

_MAX_BATCH = 512
"""Entries that a reader is given at once, so that no message grows with the distance to the writer."""


@dataclass(slots=True)
class TokenEntry:
    """A token of a sequence; never changed once it is in a journal."""

    sequence_id: int
    token: Token


Entry = Started | TokenEntry | Delta | SequenceDone | Completed
"""What has a number of its own. A Delta stands here for reasoning or pieces of tool calls: it has no tokens."""


class Journal:
    """The entries of one run, bounded in bytes.

    The journal keeps ``max_bytes`` of entries. When it has more, the oldest go, but only those that the fastest
    reader has taken; while all of ``max_bytes`` are ahead of it, ``room`` keeps the writer waiting.

    Args:
        max_bytes: How much is kept, and how far the writer may be ahead of the fastest reader.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: list[Entry] = []
        self._ends: list[int] = []
        """Per kept entry: how many bytes had been written when it was, itself included."""
        self._first = 0
        """The number of the oldest kept entry."""
        self._trimmed_bytes = 0
        self._written_bytes = 0
        self.taken = 0
        """The number of the first entry that no reader has taken yet."""
        self._progress: PromptProgress | None = None
        self._writer: asyncio.Future[None] | None = None
        self.readers: list[Reader] = []
        """Who reads now."""
        self.closed = False
        self._error: RpcError | None = None

    @property
    def end(self) -> int:
        """The number of the next entry."""
        return self._first + len(self._entries)

    @property
    def is_trimmed(self) -> bool:
        """Whether the first entries are gone."""
        return self._first > 0

    @property
    def kept_bytes(self) -> int:
        """How much is kept now."""
        return self._written_bytes - self._trimmed_bytes

    def append(self, entry: Entry) -> None:
        """Write the next entry."""
        message = entry.token if isinstance(entry, TokenEntry) else entry
        self._written_bytes += message.ByteSize() + _ENTRY_OVERHEAD_BYTES
        self._entries.append(entry)
        self._ends.append(self._written_bytes)
        self._progress = None
        self._trim()
        self._wake_readers()

    def note(self, progress: PromptProgress) -> None:
        """Tell those who read now how far the engine is. No entry: the next entry makes it void."""
        self._progress = progress
        self._wake_readers()

    def close(self, error: RpcError | None = None) -> None:
        """End the journal, once: readers get what is there, then ``error`` where one is given."""
        if not self.closed:
            self.closed = True
            self._error = error
            self._wake_readers()

    async def room(self) -> None:
        """Return once less than ``max_bytes`` are ahead of the fastest reader. The caller bounds the wait."""
        while self.is_full():
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None

    def is_full(self) -> bool:
        """Whether ``max_bytes`` or more are ahead of the fastest reader."""
        return self._written_bytes - self._bytes_before(self.taken) >= self._max_bytes

    def follow(self, position: int = 0) -> Reader:
        """Read from an entry on. The reader counts as one until it is closed.

        Raises:
            OutOfRange: The entry was trimmed, or is further than the next one to be written.
        """
        if not self._first <= position <= self.end:
            raise OutOfRange(f"entry {position} is not there: the journal has entries {self._first} to {self.end - 1}")
        reader = Reader(self, position)
        self.readers.append(reader)
        return reader

    def read(self, position: int) -> list[Entry]:
        """The entries from a number on, as far as they are there and fit one batch.

        Raises:
            OutOfRange: The entry was trimmed.
        """
        start = position - self._first
        if start < 0:
            raise OutOfRange(f"entry {position} is gone: the journal begins at {self._first}; read faster")
        return self._entries[start : start + _MAX_BATCH]

    def progress(self) -> PromptProgress | None:
        """How far the engine is with the prompt; None once an entry came after."""
        return self._progress

    def take(self, position: int) -> None:
        """A reader has done with every entry before ``position``."""
        if position > self.taken:
            self.taken = position
            if self._writer is not None and not self._writer.done() and not self.is_full():
                self._writer.set_result(None)

    def raise_ending(self) -> None:
        """Raise the error that the journal was closed with, as an exception of the caller's own."""
        if self._error is not None:
            error = self._error
            raise RpcError.of(error.code, error.message, details=error.details, trailers=error.trailers)

    def _bytes_before(self, position: int) -> int:
        kept = position - self._first
        return self._ends[kept - 1] if kept > 0 else self._trimmed_bytes

    def _trim(self) -> None:
        """Forget the oldest taken entries when there is too much, half of the bound at once: deletion costs O(n)."""
        if self._written_bytes - self._trimmed_bytes <= self._max_bytes:
            return
        enough = bisect_left(self._ends, self._written_bytes - self._max_bytes // 2)
        count = min(enough, self.taken - self._first)
        if count > 0:
            self._trimmed_bytes = self._ends[count - 1]
            self._first += count
            del self._entries[:count]
            del self._ends[:count]

    def _wake_readers(self) -> None:
        for reader in self.readers:
            reader.wake()


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

    def wake(self) -> None:
        """Something was written."""
        # A reader whose task was cancelled has a cancelled future until it is closed.
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Count no longer as a reader. May be called again."""
        if self in self._journal.readers:
            self._journal.readers.remove(self)

    async def _changed(self) -> None:
        """Wait for the writer, who has deadlines of its own: a journal never stays open and silent."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
