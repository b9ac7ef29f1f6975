"""One generation of a session, as far as both kinds of client have it in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, Protocol

from quill.client.llm.session_state import ack_is_due, end_of, weight_bytes
from quill.client.llm.view import GenerationView
from quill.errors import Cancelled, RpcError

if TYPE_CHECKING:
    from quill import proto
    from quill.generation import Delta
    from quill.wire.columns import Rows


class Home(Protocol):
    """What a generation needs of its session."""

    def acknowledge(self, number: int, position: int) -> None:
        """Its reader has taken everything before ``position``."""
        ...

    def leave(self, number: int) -> None:
        """Its reader has gone."""
        ...


class Flag(Protocol):
    """An event of asyncio or of threading."""

    def set(self) -> None:
        """Set it."""
        ...


class SessionView(GenerationView):
    """What has come of one generation and was not taken, then what was.

    Args:
        home: Its session.
        request: What is asked, with its id.
        now: A monotonic clock, in seconds.
        ended: Set when nothing more is to be read.
    """

    def __init__(self, home: Home, request: proto.GenerateRequest, now: Callable[[], float], ended: Flag) -> None:
        GenerationView.__init__(self, request, None, now)  # not super(): a stream stands between
        self.home = home
        self.number = 0
        """The session's number of it."""
        self._has_ended = ended
        self._inbox: deque[Rows | proto.StreamGenerateResponse] = deque()
        self._no_more = False
        self._ending: RpcError | None = None
        self._unacknowledged_bytes = 0

    def deliver(self, piece: Rows | proto.StreamGenerateResponse) -> None:
        """What the server told."""
        self._inbox.append(piece)
        self._wake()

    def lost(self, error: RpcError) -> float | None:
        """The call has ended. Returns how long to wait before the run is asked for again; None where it has ended."""
        wait_s = self._resumption.wait_s(error)
        if wait_s is None:
            self.end(error)
        return wait_s

    def request(self) -> proto.GenerateRequest:
        """What another call asks: to go on with what has not come, or to begin."""
        request = self._resumption.request()
        if request.stream_options.HasField("resume"):
            request.stream_options.resume.next_position = self._arrived()
        return request

    def end(self, error: RpcError | None) -> None:
        """Nothing more comes."""
        if not self._no_more:
            self._ending = error
            self._no_more = True
            self._wake()

    def take_all(self) -> list[Delta | None]:
        """What has come and was not taken, then None once it has ended; for whoever iterates over the whole session.

        Raises nothing.
        """
        pieces: list[Delta | None] = []
        try:
            while self._inbox:
                delta = self._fold_next()
                if delta is not None:
                    pieces.append(delta)
        except RpcError:
            pass  # the stream remembers it
        if self._no_more:
            if not self._fold.completed and self._failure is None:
                self._note_failure(self._ending)
            pieces.append(None)
        return pieces

    def _arrived(self) -> int:
        """The number of the first entry that has not come."""
        return end_of(self._inbox[-1]) if self._inbox else self._fold.position

    def _fold_next(self) -> Delta | None:
        """Take the next piece.

        Raises:
            RpcError: It does not fit to those before.
        """
        piece, fold = self._inbox.popleft(), self._fold
        try:
            delta = fold.add_rows(piece) if isinstance(piece, tuple) else fold.add(piece)
        except RpcError as error:
            failure = self._note_failure(error)
            self._leave()
            raise failure from (None if failure is error else error)
        self._unacknowledged_bytes += weight_bytes(piece)
        if ack_is_due(self._unacknowledged_bytes):
            self._unacknowledged_bytes = 0
            self.home.acknowledge(self.number, fold.position)
        if fold.completed:
            self._has_ended.set()
        return delta

    def _note_failure(self, error: RpcError | None) -> RpcError:
        """The exception for a generation that ended early, also for everybody who asks later."""
        self._failure = self._fold.interruption(error)
        return self._failure

    def _raise_ending(self) -> NoReturn:
        """Nothing comes any more, and it is not complete."""
        self._has_ended.set()
        failure = self._failure or self._note_failure(self._ending)
        raise failure from (None if failure is self._ending else self._ending)

    def _leave(self) -> None:
        """End the generation if it still runs."""
        self._has_ended.set()
        self._inbox.clear()
        if not self._no_more:
            self.home.leave(self.number)
            self.end(Cancelled("the stream was closed"))

    def _wake(self) -> None:
        """Tell whoever waits."""
        raise NotImplementedError
