"""A session as the client knows it, without I/O: who waits for what, and what is to be told to the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from quill.errors import Cancelled, Code, ErrorDetail, Internal, RpcError
from quill.wire.columns import segments

if TYPE_CHECKING:
    from quill import proto
    from quill.wire.columns import Rows

WINDOW = 256
"""How many entries the server sends ahead of the acknowledgements."""
_ACK_EVERY_BYTES = 16 * 1024
_BYTES_AN_ENTRY = 4 * _ACK_EVERY_BYTES // WINDOW
"""What an entry counts for beside its content: a quarter of the window is acknowledged whatever its size."""
_BYTES_A_MESSAGE = 1024
"""What one counts for that is a message: the server counts its objects as well."""
_STARTS_A_FRAME = 256
_MAX_START_BYTES = 1024 * 1024


class Inbox(Protocol):
    """One generation of the session, as its reader sees it."""

    def deliver(self, piece: Rows | proto.StreamGenerateResponse) -> None:
        """What the server told of it."""
        ...

    def end(self, error: RpcError | None) -> None:
        """Nothing more comes. Without an error, because it is complete."""
        ...

    def lost(self, error: RpcError) -> float | None:
        """The call has ended. Returns how long to wait before the run is asked for again; None where it has ended."""
        ...

    def request(self) -> proto.GenerateRequest:
        """What is asked: to begin, or to go on with what has not come."""
        ...


class SessionState:
    """The generations of one session by their numbers, and what has not been sent yet."""

    def __init__(self) -> None:
        self._inboxes: dict[int, Inbox] = {}
        self._last = 0
        self._starts: dict[int, Inbox] = {}
        self._acks: dict[int, int] = {}
        self._cancels: dict[int, str] = {}
        self._cancelled: dict[int, str] = {}
        """Those of which the server was told, and which have not ended."""

    @property
    def live(self) -> int:
        """How many generations have not ended."""
        return len(self._inboxes)

    def start(self, inbox: Inbox) -> int:
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
                self._deliver(event.run, event.response)
            else:
                later.append(event)
        if response.HasField("tokens"):
            try:
                for rows in segments(response.tokens.SerializeToString()):
                    inbox = self._inboxes.get(rows[0])
                    if inbox is not None:
                        inbox.deliver(rows)
            except ValueError as error:
                raise Internal(f"a frame of the session cannot be read: {error}") from None
        for event in later:
            if event.HasField("error"):
                self._end(event.run, _status(event.error))
            else:
                self._deliver(event.run, event.response)
                if event.response.HasField("completed"):
                    self._end(event.run, None)

    def lost(self, error: RpcError) -> float | None:
        """The call has ended: so have the generations that do not outlive it.

        Returns:
            How long to wait before another call asks for those that are left; None where none is.
        """
        waits_s = {number: inbox.lost(error) for number, inbox in self._inboxes.items()}
        self._inboxes = {number: inbox for number, inbox in self._inboxes.items() if waits_s[number] is not None}
        return min((wait_s for wait_s in waits_s.values() if wait_s is not None), default=None)

    def fail(self, error: RpcError) -> None:
        """End all generations that have not ended."""
        while self._inboxes:
            self._inboxes.popitem()[1].end(error)

    def _deliver(self, number: int, piece: Rows | proto.StreamGenerateResponse) -> None:
        inbox = self._inboxes.get(number)
        if inbox is not None:
            inbox.deliver(piece)

    def _end(self, number: int, error: RpcError | None) -> None:
        inbox = self._inboxes.get(number)
        if inbox is not None:
            self.forget(number)
            inbox.end(error)


def ack_is_due(unacknowledged_bytes: int) -> bool:
    """Whether a reader has taken so much that the server should know: long before its window or its journal is full."""
    return unacknowledged_bytes >= _ACK_EVERY_BYTES


def weight_bytes(piece: Rows | proto.StreamGenerateResponse) -> int:
    """What a piece counts for."""
    if isinstance(piece, tuple):
        data = piece.data
        if len(data) == 1:  # as most have
            return _BYTES_AN_ENTRY + len(data[0])
        return len(data) * _BYTES_AN_ENTRY + sum(map(len, data))
    return (end_of(piece) - piece.position) * _BYTES_A_MESSAGE + piece.ByteSize()


def end_of(piece: Rows | proto.StreamGenerateResponse) -> int:
    """The number of the entry that comes after a piece."""
    if isinstance(piece, tuple):
        return piece.position + len(piece.data)
    event = piece.WhichOneof("event")
    if event == "progress":  # not an entry
        return piece.position
    return piece.position + (max(1, len(piece.delta.tokens.tokens)) if event == "delta" else 1)


def _status(error: proto.SessionError) -> RpcError:
    details = [ErrorDetail(detail.type_url.rpartition("/")[2], detail.value) for detail in error.details]
    return RpcError.of(Code.from_grpc(error.code), error.message, details=details)
