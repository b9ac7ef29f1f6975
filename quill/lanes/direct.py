"""The lane socket: the elements go over a connection of their own, while the call that they belong to waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from quill.errors import InvalidArgument, InvalidUsage, ResourceExhausted, Unavailable
from quill.lanes.placing import Piece, Span, lay, spans
from quill.wire.tensor_codec import decode_infer_response, encode_infer_response

if TYPE_CHECKING:
    from quill.lanes.socket import Connection
    from quill.limits import Limits
    from quill.wire.tensor_fields import InferFields

MAX_HEAD_BYTES = 1024 * 1024
"""A reply without its elements: more than a thousand tensors with long names take."""

Rooms = Callable[[Sequence[Span]], list[memoryview]]
"""Memory for tensors that are to come, one place for each."""


class DirectHost:
    """The server's end.

    Args:
        connection: For this lane alone.
        rooms: Where inputs go.
    """

    kind: Literal["socket"] = "socket"
    brings_at_once = False
    """The caller is waited for."""
    is_kept = False
    """What has come is its receiver's."""
    size_bytes = 0
    """No memory is shared."""
    trailers: tuple[tuple[str, str], ...] = ()

    def __init__(self, connection: Connection, rooms: Rooms) -> None:
        self._connection = connection
        self._rooms = rooms

    @property
    def is_usable(self) -> bool:
        """Whether the client is there."""
        return self._connection.is_open

    def takes_at_once(self, _fields: InferFields) -> bool:
        """Never: the caller is waited for."""
        return False

    def is_left(self, _idle_s: float) -> bool:
        """Whether the client is gone."""
        return not self.is_usable

    def receive(self, spans: Iterable[Span], deadline_s: float) -> None:
        """Give tensors their elements, as they come.

        Raises:
            InvalidArgument: The references do not follow one another, or another number of bytes comes.
            ResourceExhausted: There is no memory for them.
            DeadlineExceeded: The deadline is reached.
            Unavailable: The connection is lost.
        """
        several = list(spans)
        frame = self._connection.receive_frame(0, deadline_s)
        check_row(several, frame.data_bytes)
        fill(self._connection, several, self._rooms(several), deadline_s)

    def reply(self, fields: InferFields, handle: str, deadline_s: float) -> bytes:
        """The serialized reply, whose elements have been sent.

        Raises:
            DeadlineExceeded: The deadline is reached.
            Unavailable: The connection is lost.
        """
        pieces = lay(fields, handle, packed=True)
        message = encode_infer_response(fields)
        if len(message) > MAX_HEAD_BYTES:
            raise ResourceExhausted(
                f"the reply has {len(message)} bytes without its elements, a lane takes {MAX_HEAD_BYTES}"
            )
        self._connection.send(message, [piece.data for piece in pieces], deadline_s)
        return message

    def close(self) -> None:
        """Close the connection, and wake who waits for it."""
        self._connection.close()


class DirectGuest:
    """The client's end.

    Args:
        handle: The lane's.
        connection: For this lane alone.
    """

    kind: Literal["socket"] = "socket"

    def __init__(self, handle: str, connection: Connection) -> None:
        self.handle = handle
        self._connection = connection
        self._pieces: list[Piece] = []

    @property
    def is_usable(self) -> bool:
        """Whether the server is there."""
        return self._connection.is_open

    @property
    def is_free(self) -> bool:
        """Always: what has come is its receiver's."""
        return True

    def holds(self, _size_bytes: int) -> bool:
        """Always: no memory is shared."""
        return True

    def put(self, request: InferFields) -> None:
        """Put references in the place of the elements of a request; ``carry`` sends these."""
        self._pieces = lay(request, self.handle, packed=True)

    def carry(self, limits: Limits, rooms: Rooms, deadline_s: float) -> InferFields:
        """Send the elements of the request, and receive those of the reply, while the call waits in another thread.

        Args:
            limits: What is accepted.
            rooms: Where outputs go.
            deadline_s: When to give up, on the monotonic clock.

        Returns:
            The reply with its elements. If the call ends with an error, nothing comes: closing the lane ends the wait.

        Raises:
            DeadlineExceeded: The deadline is reached.
            Unavailable: The connection is lost, or what comes is no reply.
            RpcError: The reply is not accepted, or there is no memory for it.
        """
        pieces, self._pieces = self._pieces, []
        self._connection.send(b"", [piece.data for piece in pieces], deadline_s)
        frame = self._connection.receive_frame(MAX_HEAD_BYTES, deadline_s)
        try:
            reply = decode_infer_response(frame.head)
            several = list(spans(reply, limits))
            check_row(several, frame.data_bytes)
            fill(self._connection, several, rooms(several), deadline_s)
        except BaseException as error:
            self.close()
            if isinstance(error, InvalidUsage | InvalidArgument):
                raise Unavailable(f"the lane is lost, its reply cannot be read: {error}") from None
            raise
        return reply

    def close(self) -> None:
        """Close the connection, and wake who waits for it."""
        self._connection.close()


def check_row(several: Sequence[Span], data_bytes: int) -> None:
    """Make sure that tensors lie one behind the other in the data of a frame, and that this is all of it.

    Raises:
        InvalidArgument: They do not, or it is not.
    """
    end = 0
    for span in several:
        if span.offset != end:
            raise InvalidArgument(f"{span.place} lies at byte {span.offset} of the lane, the one before ends at {end}")
        end += span.meta.size_bytes
    if data_bytes != end:
        raise InvalidArgument(f"the lane brings {data_bytes} bytes, and the tensors that lie in it have {end}")


def fill(connection: Connection, several: Sequence[Span], rooms: Sequence[memoryview], deadline_s: float) -> None:
    """Receive the elements of tensors."""
    connection.receive_data(rooms, deadline_s)
    for span, room in zip(several, rooms, strict=True):
        span.tensor.data = room
        span.tensor.lane = None
