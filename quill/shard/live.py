"""One generation: from its request through its results to its end, which comes exactly once.

Results are put in from one side, by the demultiplexer or a WebSocket; events are taken out on the other. Its deadlines
are timers of its own, so that they hold whoever is slow. No socket.
"""

from __future__ import annotations

import asyncio

from quill.errors import DataLoss, ResourceExhausted, RpcError, Unavailable
from quill.generation import FinishReason, StreamInterrupted
from quill.shard import faults
from quill.shard.config import SidecarConfig
from quill.shard.deadlines import Deadlines
from quill.shard.events import Ended, Restarted, ShardEvent
from quill.shard.messages import Item, shown
from quill.shard.outbox import Outbox
from quill.shard.reorder import Reorder, TooManyWait
from quill.shard.request import MAX_DRAFT_TOKENS, ShardRequest, new_request_id
from quill.shard.state import TERMINAL, State

_LINGER_S = 0.1
"""How long numbered results are waited for behind an end without a number, which may have overtaken them."""
_LIMIT_SLACK_S = 0.5


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
        self._outbox = Outbox(config)
        self._texts: list[str] = []
        self._tokens = 0
        self._numbered = False
        self._order: Reorder[Item] = Reorder(config.max_reordered)
        self._peer_id: str | None = None
        self._resubmitted = False
        self._ending = False
        self._gap_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._deadlines = Deadlines(request, config, self.fail)

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
        self._deadlines.lost = why

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
        self._outbox.outcome = None
        self._deadlines.lost = ""
        self._peer_id = None
        self._numbered = self._ending = False
        self._order = Reorder(self._config.max_reordered)
        self.settled = False
        self.submitted_s = 0.0
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
        self._outbox.clear()

    # What comes out of it

    async def next(self) -> ShardEvent | Restarted:
        """The next event, as soon as it is there. It waits at most until the deadlines.

        Raises:
            RpcError: The generation failed; StreamInterrupted where text had come.
        """
        return await self._outbox.next()

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._texts)

    @property
    def expires_s(self) -> float:
        """When the first token or the end must have come, on the loop's clock."""
        return self._deadlines.expires_s

    def expired(self) -> RpcError:
        """The error for the deadline that passes first, before anything has come."""
        return self._deadlines.expired()

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
        lost = self._deadlines.lost
        if lost and not self._numbered and not whole:
            self.warnings.append(f"incomplete: {lost}, which may have held tokens of this text")
            self.metadata["incomplete"] = "true"
            reason = FinishReason.OTHER
        metadata = {"request_id": self.request_id, **self.metadata}
        self._end_with(Ended(reason, tuple(self.warnings), metadata), State.DONE)

    def _put(self, text: str) -> bool:
        if bound := self._outbox.put(text):
            self.fail(ResourceExhausted(f"the reader of the stream is too slow: {bound}, and more text came"))
            return False
        self._tokens += 1
        self._texts.append(text)
        if self.state in {State.SUBMITTING, State.WAITING}:
            self.state = State.STREAMING
        self._deadlines.token()
        return True

    def _end_with(self, outcome: Ended | RpcError | Restarted, state: State) -> None:
        if self.state in TERMINAL:
            return
        self.state = state
        if state in TERMINAL:
            self._stop_timers()
        self._outbox.end(outcome)

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

    def _give_up_gap(self) -> None:
        self._gap_timer = None
        if self.state in TERMINAL or not self._order.gap:
            return
        if not self._texts:
            self._apply_all(self._order.begin_with_one())
        if self._order.gap and self.state not in TERMINAL:
            self.fail(DataLoss(f"result {self._order.missing} of {self._place} never came, though later ones did"))

    def _stop_timers(self) -> None:
        self._deadlines.stop()
        for timer in (self._gap_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
