"""One generation of a session, as far as both kinds of client have it in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from quill.client.llm.view import GenerationView
from quill.errors import Cancelled, RpcError
from quill.wire.columns import Rows

if TYPE_CHECKING:
    from quill import proto
    from quill.client.llm.session_state import Piece
    from quill.generation import Delta

_WINDOW = 256
"""How many entries the server sends ahead of the acknowledgements."""
_UNIT_BITS = 6
"""What was read is counted in units of 64 bytes: Python keeps the ints up to 256, and makes others anew."""
_ACK_EVERY = 16 * 1024 >> _UNIT_BITS
"""How much is read until the server is told: long before its window or its journal is full."""
_AN_ENTRY = 4 * _ACK_EVERY // _WINDOW
"""What an entry counts for beside its content: a quarter of the window is acknowledged whatever its size."""
_A_MESSAGE = 1024 >> _UNIT_BITS
"""What one counts for that is a message: the server counts its objects as well."""


class Home(Protocol):
    """What a generation needs of its session."""

    def acknowledge(self, number: int, position: int) -> None:
        """Its reader has taken everything before ``position``."""
        ...

    def leave(self, number: int) -> None:
        """Its reader has gone."""
        ...

    def noted(self, stream: Any) -> None:
        """Nothing more comes of it."""
        ...

    def read(self, stream: Any) -> None:
        """It has nothing more to take."""
        ...


class SessionView(GenerationView):
    """What has come of one generation and was not taken, then what was.

    Args:
        home: Its session.
        request: What is asked, with its id.
        now: A monotonic clock, in seconds.
    """

    def __init__(self, home: Home, request: proto.GenerateRequest, now: Callable[[], float]) -> None:
        self.pieces: list[Piece] | tuple[()] = ()
        """What has come and was not taken."""
        GenerationView.__init__(self, request, None, now)  # not super(): a stream stands between
        self.home = home
        self.number = 0
        """The session's number of it."""
        self._gathers = False
        """Whether who waits does so for the end, and for no piece."""
        self._no_more = False
        self._is_told = False
        """Whether an iterator over the session was told that it has ended."""
        self._ending: RpcError | None = None
        self._unacknowledged = 0

    @property
    def is_known(self) -> bool:
        """Whether the server has told of it."""
        return bool(self._fold.epoch)

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
            self.home.noted(self)
            if self._ended:  # it was read to its end
                self.home.read(self)

    def take_all(self) -> list[Delta | None]:
        """What has come and was not taken, then None once it has ended; for whoever iterates over the whole session.

        Raises nothing.
        """
        pieces, self.pieces = self.pieces, ()
        if not pieces and (self._ended or self._is_told):  # somebody else has read to the end
            return []
        deltas: list[Delta | None] = []
        try:
            for piece in pieces:
                delta = self._fold_piece(piece)
                if delta is not None:
                    deltas.append(delta)
        except RpcError:
            pass  # the stream remembers it
        if self._no_more:
            if not self._fold.completed and self._failure is None:
                self._note_failure(self._ending)
            self._is_told = True
            deltas.append(None)
        return deltas

    def _is_due(self) -> bool:
        """Whether whoever waits has to have a turn. For who waits for the end, what has come is taken here."""
        if self._gathers:
            self.take_all()
        return not self._gathers or self._ended or self._no_more

    def _arrived(self) -> int:
        """The number of the first entry that has not come."""
        return _end_of(self.pieces[-1]) if self.pieces else self._fold.position

    def _fold_next(self) -> Delta | None:
        """Take the first piece; there is one.

        Raises:
            RpcError: It does not fit to those before.
        """
        return self._fold_piece(self.pieces.pop(0))  # type: ignore[union-attr]  # then it is a list

    def _fold_piece(self, piece: Piece) -> Delta | None:
        """Take a piece.

        Raises:
            RpcError: It does not fit to those before.
        """
        fold = self._fold
        try:
            if isinstance(piece, tuple):
                delta = fold.add_row(piece)
                weight = _AN_ENTRY + (len(piece[-1]) >> _UNIT_BITS)
            elif isinstance(piece, Rows):
                delta = fold.add_rows(piece)
                weight = len(piece.data) * _AN_ENTRY + (sum(map(len, piece.data)) >> _UNIT_BITS)
            else:
                delta = fold.add(piece)
                weight = (_end_of(piece) - piece.position) * _A_MESSAGE + (piece.ByteSize() >> _UNIT_BITS)
                if fold.completed:
                    self._ended = True
                    self.home.read(self)
        except RpcError as error:
            failure = self._note_failure(error)
            self._leave()
            raise failure from (None if failure is error else error)
        self._unacknowledged += weight
        if self._unacknowledged >= _ACK_EVERY:
            self._unacknowledged = 0
            self.home.acknowledge(self.number, fold.position)
        return delta

    def _note_failure(self, error: RpcError | None) -> RpcError:
        """The exception for a generation that ended early, also for everybody who asks later."""
        self._failure = self._fold.interruption(error)
        return self._failure

    def _raise_ending(self) -> NoReturn:
        """Nothing comes any more, and it is not complete."""
        self._ended = True
        failure = self._failure or self._note_failure(self._ending)
        raise failure from (None if failure is self._ending else self._ending)

    def _leave(self) -> None:
        """End the generation if it still runs."""
        self._ended = True
        self.pieces = ()
        if not self._no_more:
            self.home.leave(self.number)
            self.end(Cancelled("the stream was closed"))


def _end_of(piece: Piece) -> int:
    """The number of the entry that comes after a piece."""
    if isinstance(piece, tuple):
        return piece[0] + 1
    if isinstance(piece, Rows):
        return piece.position + len(piece.data)
    event = piece.WhichOneof("event")
    if event == "progress":  # not an entry
        return piece.position
    return piece.position + (max(1, len(piece.delta.tokens.tokens)) if event == "delta" else 1)
