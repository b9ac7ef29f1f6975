"""One generation: from its request through its results to its end, which comes exactly once.

    NEW → SUBMITTING → WAITING → STREAMING → DONE | FAILED | CANCELLED

Results are put in from one side, by the demultiplexer or a WebSocket; events are taken out on the other. Deadlines are
watched here, so that they hold whoever is slow. No socket.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

from quill.errors import DataLoss, DeadlineExceeded, ResourceExhausted, RpcError, Unavailable
from quill.generation import FinishReason, StreamInterrupted
from quill.shard import faults
from quill.shard.config import SidecarConfig
from quill.shard.messages import Item, shown
from quill.shard.reorder import Reorder, TooManyWait
from quill.shard.request import MAX_DRAFT_TOKENS, ShardRequest

_LINGER_S = 0.1
"""How long numbered results are waited for behind an end without a number, which may have overtaken them."""
_LIMIT_SLACK_S = 0.5


class State(Enum):
    """Where a generation is."""

    NEW = "new"
    SUBMITTING = "submitting"
    WAITING = "waiting"
    STREAMING = "streaming"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL: Final = frozenset({State.DONE, State.FAILED, State.CANCELLED})


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one token, or what the sidecar sends as one. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a generation. Nothing comes after it."""

    reason: FinishReason
    """STOP where the sidecar said the end, LENGTH at the cap, OTHER where tokens may be missing."""
    warnings: tuple[str, ...] = ()
    """What the caller should know, for people."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """``request_id``; of a draft ``draft`` (``unverified``), ``peer_id``; ``incomplete``, ``fallback`` (``true``)."""

    @property
    def incomplete(self) -> bool:
        """Whether tokens may be missing, because a reply was lost on its way."""
        return "incomplete" in self.metadata


ShardEvent: TypeAlias = Piece | Ended


@dataclass(frozen=True, slots=True)
class Restarted:
    """The sidecar has forgotten this generation, of which nothing has come yet: it may be submitted once more."""


def new_request_id() -> str:
    """An id that no other request has."""
    return f"sdk-{secrets.token_hex(16)}"


class Live:
    """A generation while it lives. Made in the loop that it lives in; everything is called from there.

    Args:
        request: What is asked.
        config: The bounds.
    """

    def __init__(self, request: ShardRequest, config: SidecarConfig) -> None:
        self.request = request
        self.request_id = request.request_id or new_request_id()
        self.state = State.NEW
        self.submitted_s = 0.0
        """When the sidecar took it, on the loop's clock."""
        self.settled = False
        """Whether nothing of it is left at the sidecar, which said the end or never took it."""
        self.limited = False
        """Whether it comes over a WebSocket, which the sidecar may end at its limit of time."""
        self.duplicates = 0
        self.drafts_dropped = 0
        self.warnings: list[str] = []
        self.metadata: dict[str, str] = {}
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._queue: deque[Piece] = deque()
        self._queued_characters = 0
        self._outcome: Ended | RpcError | Restarted | None = None
        self._texts: list[str] = []
        self._tokens = 0
        self._numbered = False
        self._order: Reorder[Item] = Reorder(config.max_reordered)
        self._peer_id: str | None = None
        self._lost = ""
        self._resubmitted = False
        self._ending = False
        self._gap_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._watch_deadlines()

    # What happens to it

    def submitting(self) -> None:
        """The request is on its way."""
        if self.state is State.NEW:
            self.state = State.SUBMITTING

    def accepted(self) -> None:
        """The sidecar took the request; its first results may have come before."""
        self.submitted_s = self._loop.time()
        if self.state is State.SUBMITTING:
            self.state = State.WAITING

    def take(self, item: Item, *, whole: bool = False) -> None:
        """A result, or a frame. ``whole``: it is the whole answer."""
        if self.state in TERMINAL:
            return
        if item.is_draft and not self._take_peer(item):
            return
        if item.number is None or whole:
            self._apply(item, last=whole or (item.is_draft and bool(item.texts)))
            return
        self._numbered = True
        try:
            ready = self._order.put(item.number, item)
        except TooManyWait:
            self.fail(DataLoss(f"result {self._order.missing} of {self._place} is missing, and too many came after it"))
            return
        if ready is None:
            self.duplicates += 1
            return
        self._apply_all(ready)
        if not self._order.gap and self._gap_timer is not None:
            self._gap_timer.cancel()
            self._gap_timer = None
        if self._order.gap and self._gap_timer is None:
            self._gap_timer = self._loop.call_later(self._config.reorder_wait_s, self._give_up_gap)

    def nothing_there(self) -> None:
        """A poll found nothing: an end that waited for numbered results behind it is the end."""
        if self._ending and not self._order.gap:
            self._finish()

    def lost_reply(self, why: str) -> None:
        """A reply that may have held a result of this generation never came, or could not be read."""
        self._lost = why

    def closed(self) -> None:
        """The WebSocket was closed by the sidecar."""
        if self._ending and not self._order.gap:
            self._finish()
        elif not self._ending:
            self.fail(Unavailable(f"{self._place} closed the stream before its end"))
        else:
            self._give_up_gap()

    def restarted(self) -> None:
        """The sidecar was restarted, and has forgotten this generation."""
        if self.state is State.WAITING and not self._resubmitted and not self._order.gap:
            self._end_with(Restarted(), self.state)
        elif self.state in {State.WAITING, State.STREAMING}:
            again = " again" if self._resubmitted else ""
            self.fail(Unavailable(f"{self._place} was restarted{again} and has forgotten the generation"))

    def renew(self) -> None:
        """Begin anew under another id, after ``Restarted`` was taken out."""
        self.request_id = new_request_id()
        self._resubmitted = True
        self._outcome = None
        self._lost = ""
        self._peer_id = None
        self._numbered = self._ending = False
        self._order = Reorder(self._config.max_reordered)
        self.settled = False
        self.state = State.NEW

    def fail(self, error: RpcError) -> None:
        """It ends with this error, unless it has ended."""
        if self._texts and not isinstance(error, StreamInterrupted):
            error = self._interrupted(error)
        self._end_with(error, State.FAILED)

    def cancel(self) -> None:
        """Nobody takes anything out any more."""
        if self.state not in TERMINAL:
            self.state = State.CANCELLED
        self._stop_timers()
        self._queue.clear()

    # What comes out of it

    async def next(self) -> ShardEvent | Restarted:
        """The next event, as soon as it is there. It waits at most until the deadlines.

        Raises:
            RpcError: The generation failed; StreamInterrupted where text had come.
        """
        while not self._queue:
            if self._outcome is not None:
                if isinstance(self._outcome, RpcError):
                    raise self._outcome
                return self._outcome
            self._arrived.clear()
            await self._arrived.wait()
        piece = self._queue.popleft()
        self._queued_characters -= len(piece.text)
        return piece

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._texts)

    @property
    def expires_s(self) -> float:
        """When the first token or the end must have come, on the loop's clock."""
        return min(self._total_s, self._first_s)

    def expired(self) -> RpcError:
        """The error for the deadline that passes first, before anything has come."""
        if self._total_s <= self._first_s:
            return DeadlineExceeded(f"the generation did not end within {self._total_ms:g} ms")
        maybe = f"; {self._lost}" if self._lost else ""
        return DeadlineExceeded(f"no token came within {self._first_ms:g} ms{maybe}")

    # Inside

    @property
    def _place(self) -> str:
        return self._config.place

    def _take_peer(self, item: Item) -> bool:
        """Whether a draft counts: it is of the peer that wrote the first one that is not empty."""
        if item.texts and self._peer_id is None:
            self._peer_id = item.peer_id or ""
            self.metadata["draft"] = "unverified"
            if item.peer_id:
                self.metadata["peer_id"] = shown(item.peer_id)
        if not item.texts and not item.ended and item.error is None:
            return False
        if item.texts and (item.peer_id or "") != self._peer_id:
            self.drafts_dropped += 1
            return False
        return True

    def _apply_all(self, items: list[Item]) -> None:
        for item in items:
            if self.state not in TERMINAL:
                self._apply(item, last=False)
        if self._ending and not self._order.gap and self.state not in TERMINAL:
            self._finish()

    def _apply(self, item: Item, *, last: bool) -> None:
        for text in item.texts:
            if not self._put(text):
                return
            if self._tokens >= self._cap(item):
                self.settled = item.ended
                self._end(FinishReason.LENGTH, whole=item.is_draft)
                return
        if item.error is not None:  # even where the end is said beside it
            self.settled = item.ended
            self.fail(faults.told(self._place, item.error))
        elif item.ended:
            self.settled = True
            self._take_end(numbered=item.number is not None)
        elif last:
            self._end(FinishReason.STOP, whole=True)

    def _cap(self, item: Item) -> int:
        """A draft has at most so many tokens as a sidecar can be asked for."""
        return min(self.request.max_tokens, MAX_DRAFT_TOKENS) if item.is_draft else self.request.max_tokens

    def _take_end(self, *, numbered: bool) -> None:
        if numbered or (not self._numbered and not self._order.gap):
            self._finish()
            return
        if not self._ending:
            # It has no number, the others have: what it overtook is still to come.
            self._ending = True
            self._linger_timer = self._loop.call_later(_LINGER_S, self.nothing_there)

    def _finish(self) -> None:
        """The sidecar said the end."""
        if not self._texts:
            self._end_with(Unavailable(f"{self._place} ended the generation without a token"), State.FAILED)
            return
        elapsed_s = self._loop.time() - self.submitted_s
        limit_s = self._config.websocket_limit_s
        if self.limited and elapsed_s >= limit_s - min(_LIMIT_SLACK_S, limit_s / 10):
            self.warnings.append(
                f"the sidecar ended the stream after {elapsed_s:.1f} s, which is its limit of {limit_s:g} s: "
                "the text may be cut off"
            )
        self._end(FinishReason.STOP)

    def _end(self, reason: FinishReason, *, whole: bool = False) -> None:
        """A good end; ``whole``: the answer came in one, so that no lost reply can have held a part of it."""
        if self._lost and not self._numbered and not whole:
            self.warnings.append(f"incomplete: {self._lost}, which may have held tokens of this text")
            self.metadata["incomplete"] = "true"
            reason = FinishReason.OTHER
        metadata = {"request_id": self.request_id, **self.metadata}
        self._end_with(Ended(reason, tuple(self.warnings), metadata), State.DONE)

    def _put(self, text: str) -> bool:
        if len(self._queue) >= self._config.max_queued_pieces:
            bound = f"max_queued_pieces is {self._config.max_queued_pieces}"
        elif self._queued_characters + len(text) > self._config.max_queued_characters:
            bound = f"max_queued_characters is {self._config.max_queued_characters}"
        else:
            first = not self._texts
            self._tokens += 1
            self._texts.append(text)
            self._queue.append(Piece(text))
            self._queued_characters += len(text)
            self._latest_s = self._loop.time()
            self._arrived.set()
            if first:
                self.state = State.STREAMING
                self._deadline_timer.cancel()
                self._check_deadlines()  # the wait for the next token may end before the one for the first would have
            return True
        self.fail(ResourceExhausted(f"the reader of the stream is too slow: {bound}, and more text came"))
        return False

    def _end_with(self, outcome: Ended | RpcError | Restarted, state: State) -> None:
        if self.state in TERMINAL:
            return
        self.state = state
        self._outcome = outcome
        if state in TERMINAL:
            self._stop_timers()
        self._arrived.set()

    def _interrupted(self, error: RpcError) -> StreamInterrupted:
        """The error, with what has come."""
        broken = StreamInterrupted(
            error.message,
            code=error.code,
            text=self.text,
            details=error.details,
            metadata=error.metadata,
            trailers=error.trailers,
        )
        broken.__cause__ = error
        return broken

    # Deadlines

    def _watch_deadlines(self) -> None:
        request, config, now_s = self.request, self._config, self._loop.time()
        self._first_ms = _or(request.first_token_timeout_ms, config.first_token_timeout_ms)
        self._idle_ms = _or(request.idle_timeout_ms, config.idle_timeout_ms)
        self._total_ms = _or(request.timeout_ms, config.timeout_ms)
        self._first_s = now_s + self._first_ms / 1000
        self._total_s = now_s + self._total_ms / 1000
        self._latest_s = now_s
        self._deadline_timer = self._loop.call_at(min(self._first_s, self._total_s), self._check_deadlines)

    def _check_deadlines(self) -> None:
        # Re-armed only when it rings: a timer for every token would cost more than the token.
        now_s = self._loop.time()
        idle_s = self._latest_s + self._idle_ms / 1000
        due_s = min(self._total_s, idle_s) if self._texts else self.expires_s
        if now_s < due_s:
            self._deadline_timer = self._loop.call_at(due_s, self._check_deadlines)
        elif not self._texts:
            self.fail(self.expired())
        elif now_s >= self._total_s:
            self.fail(DeadlineExceeded(f"the generation did not end within {self._total_ms:g} ms"))
        else:
            maybe = f"; {self._lost}" if self._lost else ""
            self.fail(DeadlineExceeded(f"no token came for {self._idle_ms:g} ms, and no end{maybe}"))

    def _give_up_gap(self) -> None:
        self._gap_timer = None
        if self.state in TERMINAL or not self._order.gap:
            return
        if not self._texts:
            self._apply_all(self._order.begin_with_one())
        if self._order.gap and self.state not in TERMINAL:
            self.fail(DataLoss(f"result {self._order.missing} of {self._place} never came, though later ones did"))

    def _stop_timers(self) -> None:
        for timer in (self._deadline_timer, self._gap_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
