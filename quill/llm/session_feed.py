"""One generation of a session: from its run's journal into the session's frames, no further than its window."""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import Enum, auto

from quill.errors import Cancelled, InvalidArgument, RpcError
from quill.llm.block import Block
from quill.llm.journal import Reader
from quill.llm.replies import entry_message
from quill.llm.run import Run
from quill.llm.session_frame import MAX_TOKENS, Frame
from quill.llm.session_outbox import Outbox
from quill.proto import PromptProgress

WINDOW = 256
"""How many entries a run may be ahead of what its reader has acknowledged."""

_QUANTUM = 32
"""Entries that a run moves in one turn, so that none keeps the others waiting."""


class Turn(Enum):
    """How the turn of a generation ended."""

    IDLE = auto()
    """Nothing more is there, or it may not go out yet."""
    AGAIN = auto()
    """There is more."""
    NEXT_FRAME = auto()
    """There is more, which this frame cannot take."""
    OVER = auto()
    """The generation has ended, and its end is told."""


_IDLE, _AGAIN, _NEXT_FRAME, _ = Turn
"""Looked up for every turn, for less."""


class Feed:
    """Follows one run on behalf of a session.

    Args:
        number: The session's number of the generation.
        run: The run.
        position: The number of the first entry that is wanted.
        window: How many entries may be sent ahead of the acknowledgements.
        outbox: What goes out next, of all generations.

    Raises:
        OutOfRange: The run has no entry ``position``, or no longer.
    """

    __slots__ = (
        "_began",
        "_following",
        "_journal",
        "_limit",
        "_outbox",
        "_position",
        "_progress",
        "_queued",
        "_reader",
        "_run",
        "_window",
        "number",
        "skips",
    )

    def __init__(self, number: int, run: Run, position: int, window: int, outbox: Outbox) -> None:
        self.number = number
        self._run = run
        self._journal = run.journal
        self._window = window
        self._outbox = outbox
        self._position = self._began = position
        self._limit = position + window
        """The number of the first entry that may not be sent before more is acknowledged."""
        self.skips = False
        """Whether the client wants no more than to know that the run has ended."""
        self._progress: PromptProgress | None = None
        self._queued = False
        self._following: AbstractContextManager[Reader] = run.follow(position)
        self._reader = self._following.__enter__()
        self._reader.listen(self.wake, window, self.tell)
        self.wake()

    @property
    def is_new(self) -> bool:
        """Whether nothing of it was sent."""
        return self._position == self._began

    def wake(self) -> None:
        """Something was written, or may go out now."""
        if not self._queued and (self._position < self._limit or self.skips):
            self._queued = True
            self._outbox.queue(self)

    def tell(self, position: int, sequence_id: int, data: bytes, id_: int | None, logprob: float | None) -> None:
        """A token was written. It goes straight into a frame, if everything before it is in one."""
        outbox = self._outbox
        if outbox.takes_tokens and position == self._position and not self._queued and position < self._limit:
            frame = outbox.frame if outbox.frame.room > 0 else outbox.begin_frame()
            if frame.add_token((self.number, position, 1, sequence_id), data, id_, logprob):
                self._position = position + 1
                if frame.room == MAX_TOKENS - 1:
                    outbox.began()
                return
        self.wake()

    def acknowledge(self, position: int) -> None:
        """The client has taken every entry before ``position``.

        Raises:
            InvalidArgument: These were not even sent.
        """
        if position > self._position:
            raise InvalidArgument(
                f"run {self.number} is acknowledged up to entry {position}, and {self._position} entries were sent"
            )
        if position + self._window > self._limit:
            self._limit = position + self._window
            self._journal.take(position)
            self.wake()

    def acknowledge_sent(self) -> None:
        """Nobody acknowledges any more: what was sent counts as taken."""
        self.acknowledge(self._position)

    def send_by_turns(self) -> None:
        """Nobody acknowledges any more: nothing goes out but in a turn, after which ``acknowledge_sent`` is called."""
        self._reader.listen(self.wake, self._window)
        self.acknowledge_sent()

    def cancel(self, reason: str) -> None:
        """End the run, of which the client wants no more. Its end is told when the backend has been."""
        self.skips = True
        self._run.abort(Cancelled(f"run {self._run.key.request_id!r} was cancelled by its session: {reason[:200]}"))
        self.wake()

    def move(self, frame: Frame) -> Turn:
        """Have a turn: put into a frame what may go out."""
        try:
            turn = self._move(frame)
        except RpcError as error:
            frame.add_error(self.number, error)
            return Turn.OVER
        self._queued = turn is _AGAIN or turn is _NEXT_FRAME
        return turn

    def close(self) -> None:
        """Follow no longer."""
        self._following.__exit__(None, None, None)

    def _move(self, frame: Frame) -> Turn:
        journal, position, limit = self._journal, self._position, self._limit
        if self.skips:
            position = self._position = journal.end
        most = min(position + _QUANTUM, limit, journal.end)
        while position < most and frame.room:
            segment = journal.last
            if segment is None or segment.first > position:
                segment = journal.segment(position)
            if segment is None:
                break
            if isinstance(segment, Block):
                moved = frame.add_rows(self.number, segment, position, most - position)
            else:
                moved = int(frame.add_message(self.number, entry_message(position, segment.entry)))
            if not moved:
                return _NEXT_FRAME
            position = self._position = position + moved
        if position == journal.end:
            return self._at_end(frame) if journal.closed or journal.progress() is not None else _IDLE
        return _AGAIN if position < limit else _IDLE

    def _at_end(self, frame: Frame) -> Turn:
        journal = self._journal
        if journal.closed:
            journal.raise_ending()
            return Turn.OVER
        progress = journal.progress()
        if progress is not None and progress is not self._progress and not self.skips:
            self._progress = progress
            frame.add_message(self.number, entry_message(self._position, progress))
        return Turn.IDLE
