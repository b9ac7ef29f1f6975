"""A session as the client knows it, without I/O: who waits for what, and what is to be told to the server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

from quill.client import faults
from quill.errors import Cancelled, Code, ErrorDetail, Internal, RpcError
from quill.wire.columns import segments

if TYPE_CHECKING:
    from quill import proto
    from quill.wire.columns import Row, Rows

    Piece: TypeAlias = Row | Rows | proto.StreamGenerateResponse
    """What the server tells of a generation at once."""

_STARTS_A_FRAME = 256
_MAX_START_BYTES = 1024 * 1024


class Inbox(Protocol):
    """One generation of the session, as its reader sees it."""

    pieces: list[Piece] | tuple[()]
    """What has come and was not taken. There is a list only then: thousands that are empty would not stay in caches."""

    @property
    def waiter(self) -> object | None:
        """Of whoever waits for a piece."""
        ...

    def wake(self) -> None:
        """Tell whoever waits."""
        ...

    def end(self, error: RpcError | None) -> None:
        """Nothing more comes. Without an error, because it is complete."""
        ...

    @property
    def is_known(self) -> bool:
        """Whether the server has told of it."""
        ...

    def lost(self, error: RpcError) -> float | None:
        """The call has ended. Returns how long to wait before the run is asked for again; None where it has ended."""
        ...

    def request(self) -> proto.GenerateRequest:
        """What is asked: to begin, or to go on with what has not come."""
        ...


InboxT = TypeVar("InboxT", bound=Inbox)


class SessionState(Generic[InboxT]):
    """The generations of one session by their numbers, and what has not been sent yet."""

    def __init__(self) -> None:
        self.batch: Iterator[InboxT] = iter(())
        """For whoever iterates over the whole session: those with something to take that nobody waits for, as far as
        nobody has got to them. They may have been read meanwhile."""
        self._fresh: dict[InboxT, None] = {}
        """Those of the next batch."""
        self._inboxes: dict[int, InboxT] = {}
        self._last = 0
        self._starts: dict[int, InboxT] = {}
        self._acks: dict[int, int] = {}
        self._cancels: dict[int, str] = {}
        self._cancelled: dict[int, str] = {}
        """Those of which the server was told, and which have not ended."""

    @property
    def live(self) -> int:
        """How many generations have not ended."""
        return len(self._inboxes)

    def start(self, inbox: InboxT) -> int:
        """Have a generation started. Returns its number."""
        self._last += 1
        self._inboxes[self._last] = self._starts[self._last] = inbox
        return self._last

    def cancel(self, number: int, reason: str) -> bool:
        """Have a generation ended. Returns whether it is one that has not."""
        if number not in self._inboxes:
            return False
        if self._starts.pop(number, None) is None:
            self._cancels[number] = reason
        else:  # the server has not heard of it, and need not
            self._end(number, Cancelled("the generation was cancelled before it was sent"))
        return True

    def next_batch(self) -> bool:
        """After the end of a batch: whether there is another."""
        if not self._fresh:
            return False
        self.batch, self._fresh = iter(self._fresh), {}
        return True

    def note(self, inbox: InboxT) -> None:
        """There is something to take, or nothing more will be."""
        if inbox.waiter is None:
            self._fresh[inbox] = None
        else:
            inbox.wake()

    def read(self, inbox: InboxT) -> None:
        """There is nothing more to take."""
        self._fresh.pop(inbox, None)

    def forget(self, number: int) -> None:
        """Nobody reads from a generation any more."""
        self._inboxes.pop(number, None)
        self._acks.pop(number, None)
        self._cancelled.pop(number, None)

    def acknowledge(self, number: int, position: int) -> None:
        """A reader has taken everything before ``position``."""
        if number in self._inboxes:
            self._acks[number] = position

    def begin(self) -> None:
        """Another call begins, or another attempt of one that was refused: it has to be told of all that live."""
        self._starts = dict(self._inboxes)
        self._acks.clear()
        self._cancels |= self._cancelled

    def next_request(self) -> proto.SessionRequest | None:
        """What is to be sent now; None where there is nothing."""
        if not (self._starts or self._acks or self._cancels):
            return None
        from quill.proto import SessionAck, SessionCancel, SessionRequest, SessionStart

        request = SessionRequest(
            acks=[SessionAck(run=run, position=position) for run, position in self._acks.items()],
            cancels=[SessionCancel(run=run, reason=reason) for run, reason in self._cancels.items()],
        )
        self._acks.clear()
        self._cancelled |= {run: reason for run, reason in self._cancels.items() if run in self._inboxes}
        self._cancels.clear()
        size = 0
        while self._starts and len(request.starts) < _STARTS_A_FRAME and size < _MAX_START_BYTES:
            number = next(iter(self._starts))
            start = SessionStart(run=number, request=self._starts.pop(number).request())
            size += start.ByteSize()
            request.starts.append(start)
        return request

    def take(self, response: proto.SessionResponse) -> None:
        """Hand out a frame. Order within a frame: starts, tokens, ends.

        Raises:
            Internal: The frame cannot be read.
        """
        later = []
        for event in response.events:
            if event.response.HasField("started"):
                self._deliver([(event.run, event.response)])
            else:
                later.append(event)
        if response.HasField("tokens"):
            try:
                self._deliver(segments(response.tokens.SerializeToString()))
            except ValueError as error:
                raise Internal(f"a frame of the session cannot be read: {error}") from None
        for event in later:
            if event.HasField("error"):
                self._end(event.run, _status(event.error))
            else:
                self._deliver([(event.run, event.response)])
                if event.response.HasField("completed"):
                    self._end(event.run, None)

    def lost(self, error: RpcError) -> float | None:
        """The call has ended: so have the generations that do not outlive it.

        Returns:
            How long to wait before another call asks for those that are left; None where none is.
        """
        waits_s = {number: inbox.lost(error) for number, inbox in self._inboxes.items() if inbox.is_known}
        if not faults.did_not_run(error) or all(wait_s is None for wait_s in waits_s.values()):
            waits_s |= {number: inbox.lost(error) for number, inbox in self._inboxes.items() if not inbox.is_known}
        # Else what was begun meanwhile comes along with what is asked for again.
        over = {number for number, wait_s in waits_s.items() if wait_s is None}
        self._inboxes = {number: inbox for number, inbox in self._inboxes.items() if number not in over}
        return min((wait_s for wait_s in waits_s.values() if wait_s is not None), default=None)

    def fail(self, error: RpcError) -> None:
        """End all generations that have not ended."""
        while self._inboxes:
            self._inboxes.popitem()[1].end(error)

    def _deliver(self, told: Iterable[tuple[int, Piece]]) -> None:
        """Hand out pieces by the numbers of generations. They may be thousands, so that nothing is called for each."""
        inboxes, fresh = self._inboxes, self._fresh
        for number, piece in told:
            inbox = inboxes.get(number)
            if inbox is None:
                continue
            if inbox.pieces:
                inbox.pieces.append(piece)
            else:
                inbox.pieces = [piece]
            if inbox.waiter is None:
                fresh[inbox] = None
            else:
                inbox.wake()

    def _end(self, number: int, error: RpcError | None) -> None:
        inbox = self._inboxes.get(number)
        if inbox is not None:
            self.forget(number)
            inbox.end(error)


def _status(error: proto.SessionError) -> RpcError:
    details = [ErrorDetail(detail.type_url.rpartition("/")[2], detail.value) for detail in error.details]
    return RpcError.of(Code.from_grpc(error.code), error.message, details=details)
