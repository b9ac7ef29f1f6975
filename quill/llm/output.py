"""Where a backend puts what it generates: the output of one start, which goes into its run's journal.

Both kinds of backends end here. What ``generate`` yields, ``pump`` puts into an output in the run's own task, and waits
where it is full. An engine that steps many generations at once (``quill.llm.stepping``) holds an output for each, and
puts tokens into all of them in one call: no task is woken for a token, but for the reader's.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable

from quill.llm.backend import BackendEvent, PromptTokens, Tokens
from quill.llm.block import Block
from quill.llm.journal import GRANTED_BYTES, Journal, Tell, nobody, tell_nobody
from quill.llm.record import Record
from quill.llm.sequence import Sequence
from quill.llm.turns import Turns

_SLICE_S = 0.002
"""How long a backend that never waits may keep the event loop from everybody else."""


class Output:
    """What one start of a backend gives. Belongs to the event loop of its run.

    It raises nothing at the engine: what is wrong with an event ends its own run.

    Args:
        record: Writes the events of the run.
        sequences: The sequences that the backend was asked for, in its own numbering.
        journal: Where the record writes.
        turns: Those of the event loop.
    """

    __slots__ = (
        "_armed",
        "_data",
        "_failure",
        "_first",
        "_ids",
        "_journal",
        "_logprobs",
        "_loop",
        "_next",
        "_on_room",
        "_record",
        "_sequence_id",
        "_sequences",
        "_stop",
        "_tell",
        "_tells_logprobs",
        "_turns",
        "_waiter",
        "heard_s",
        "is_full",
        "wanted",
    )

    def __init__(self, record: Record, sequences: list[Sequence], journal: Journal, turns: Turns) -> None:
        self._record = record
        self._sequences = sequences
        self._first = sequences[0]
        self._journal = journal
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._tells_logprobs = self._first.tells_logprobs
        self._sequence_id = self._first.sequence_id
        self._data: list[bytes] = []
        """The column of the journal's last block where tokens go that take the short way; so are ids and logprobs."""
        self._ids: array[int] | None = None
        self._logprobs: array[float] | None = None
        self._armed = 0
        """The number of the first entry that took the short way; the sequence has not been told of those that did."""
        self._next = 0
        """The number of the next entry that does."""
        self._stop = 0
        """The number of the first one that may not."""
        self._tell: Tell = tell_nobody
        """Tells the readers of one."""
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        """The run's task, which waits for room or for the end."""
        self._on_room: Callable[[], None] | None = None
        self.heard_s = self._loop.time()
        """When something was put last, or a reader made room."""
        self.is_full = journal.full
        """Whether it should be given nothing for now, because its reader is behind. What is put is taken all the same,
        for a step may have begun before. Who goes on regardless is ended at twice the bound of the journal."""
        self.wanted = True
        """Whether anything more is wanted. No longer once it has ended or failed, at a stop string or at max_tokens, or
        when the run is aborted. What is put then is dropped."""
        journal.on_turn = self._turned

    def when_room(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when an output that was full is so no longer, for an engine that sleeps meanwhile.

        Args:
            callback: Called in the task of a reader; must not raise.
        """
        self._on_room = callback

    def put(self, event: BackendEvent) -> None:
        """Take an event; PromptTokens by ``put_prompt``."""
        now_s = self._loop.time()
        if isinstance(event, Tokens) and _is_plain_token(event):
            id_ = None if event.ids is None else event.ids[0]
            logprob = None if event.logprobs is None else event.logprobs[0]
            if self.put_token(event.data[0], id_, logprob, now_s):
                return
        self._put(event, now_s)

    async def put_prompt(self, event: PromptTokens) -> None:
        """Take the tokens of the prompt. Many of them are read in a thread."""
        if self.wanted:
            self.heard_s = self._loop.time()
            try:
                await self._record.write_prompt(event)
            except Exception as error:  # noqa: BLE001  # whatever is wrong with an event is the run's end
                self.fail(error)

    def put_token(self, data: bytes, id_: int | None, logprob: float | None, now_s: float) -> bool:
        """Take one token of sequence 0 the short way, where nothing is to be seen to but its place.

        Args:
            data: Its raw bytes.
            id_: Its id; None where the engine does not tell it.
            logprob: Its log probability; None where it has none.
            now_s: The time of the event loop.

        Returns:
            Whether it was taken. If not, it has to be ``put``.
        """
        position, ids, logprobs = self._next, self._ids, self._logprobs
        if logprob is not None and not self._tells_logprobs:
            logprob = None
        if (
            position == self._stop
            or type(data) is not bytes
            or len(data) > GRANTED_BYTES
            or not data.isascii()
            or (id_ is None) is not (ids is None)
            or (logprob is None) is not (logprobs is None)
        ):
            return False
        self.heard_s = now_s
        try:
            if ids is not None and id_ is not None:
                ids.append(id_)
            if logprobs is not None and logprob is not None:
                logprobs.append(logprob)
        except Exception as error:  # noqa: BLE001  # an id that is none, say
            if ids is not None:
                del ids[len(self._data) :]
            self.fail(error)
            return True
        self._data.append(data)
        self._next = position = position + 1
        self._tell(position - 1, self._sequence_id, data, id_, logprob)
        if position == self._stop:
            self._settle()
            self._arm()
        return True

    def end(self) -> None:
        """Nothing more comes: the start has come to its end."""
        if self.wanted:
            self.wanted = False
            self._settle()
            self._journal.on_turn = nobody  # else each would keep the other until garbage is collected, which is seldom
            self._wake()

    def fail(self, error: Exception) -> None:
        """The start has failed. An RpcError is the status of the run; others are INTERNAL, and in the log."""
        if self.wanted:
            self._failure = error
            self.end()

    async def pump(self, events: AsyncIterator[BackendEvent]) -> None:
        """Put all that an iterator gives, until it or what is wanted ends; where the output is full, wait."""
        turns, record, has_tokens = self._turns, self._record, False
        slice_began_s, turn = self.heard_s, turns.ask()
        async for event in events:
            if isinstance(event, PromptTokens):
                await self.put_prompt(event)
            else:
                self.put(event)
            if not self.wanted:
                return
            while self.is_full:
                await self._change()
            if not has_tokens and record.has_tokens:
                has_tokens = True
                await asyncio.sleep(0)  # the first token goes out at once
            elif self.heard_s - slice_began_s > _SLICE_S:
                if turns.count == turn:
                    await asyncio.sleep(0)
                slice_began_s, turn = self.heard_s, turns.ask()

    async def over(self) -> None:
        """Return when nothing more is wanted. The run's own deadlines bound the wait."""
        while self.wanted:
            await self._change()

    def raise_failure(self) -> None:
        """Raise what the start failed with, if it did."""
        if self._failure is not None:
            raise self._failure

    def _put(self, event: BackendEvent, now_s: float) -> None:
        if not self.wanted:
            return
        self.heard_s = now_s
        self._settle()
        try:
            self._check_bound()
            self._record.write(event, self._sequences)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with an event is the run's end
            self.fail(error)
            return
        first = self._first
        self._arm()
        if first.ended and all(one.ended for one in self._sequences) and any(one.cut for one in self._sequences):
            self.end()

    def _arm(self) -> None:
        """Let tokens take the short way, as many as need not be looked at."""
        first, last = self._first, self._journal.last
        self.is_full = self._journal.full
        if isinstance(last, Block) and last.sequence_id == first.sequence_id and self._record.has_tokens:
            self._armed = self._next = last.end
            self._stop = last.end + max(0, min(first.plain_left(), self._journal.grant(last)))
            if self._stop > self._next:
                self._data, self._ids, self._logprobs = last.data, last.ids, last.logprobs
                self._tell = self._journal.tell

    def _settle(self) -> None:
        """Tell the sequence and the journal of tokens that took the short way, and let no more take it."""
        if self._armed < self._stop:
            self._first.tokens += self._next - self._armed
            self._armed = self._stop = self._next
            self._tell = tell_nobody  # a reader holds the run, which holds this
            self._journal.look()

    def _check_bound(self) -> None:
        """Make sure that an engine that does not care for ``is_full`` does not fill the memory."""
        if self.is_full and self._journal.is_overrun:
            raise RuntimeError("the engine went on, though its output was full; it has to look at Output.is_full")

    def _turned(self) -> None:
        """Readers have come or gone, or made room."""
        self._settle()
        self.is_full = self._journal.full
        if not self.is_full:
            self.heard_s = self._loop.time()
            if self._on_room is not None:
                self._on_room()
            self._wake()

    def _wake(self) -> None:
        # A task that was cancelled has a cancelled future until it has had its turn.
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _change(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


def _is_plain_token(columns: Tokens) -> bool:
    """Whether it is one token of sequence 0 that has an id and a log probability at most."""
    return (
        len(columns.data) == 1
        and columns.special is None
        and columns.top_logprobs is None
        and not columns.sequence
        and (columns.ids is None or len(columns.ids) == 1)
        and (columns.logprobs is None or len(columns.logprobs) == 1)
    )
