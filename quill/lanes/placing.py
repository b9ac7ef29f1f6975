"""Which bytes of a lane are which tensor's: references instead of elements, in a message that is sent, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from quill.errors import InvalidArgument, InvalidUsage
from quill.lanes.rooms import aligned
from quill.limits import Limits
from quill.tensor import TensorMeta
from quill.wire.tensor_fields import InferFields, LaneFields, TensorFields


class Span(NamedTuple):
    """Where the elements of a received tensor lie in a lane."""

    tensor: TensorFields
    place: str
    """Where the tensor stands in its message, for errors: ``tensor 0``."""
    meta: TensorMeta
    offset: int


class Piece(NamedTuple):
    """Elements that are to be put into a lane."""

    offset: int
    data: memoryview


def lay(fields: InferFields, handle: str, *, start: int = 0, packed: bool = False) -> list[Piece]:
    """Put references in the place of all elements of a message; what they refer to, in their order.

    Args:
        fields: Changed: a tensor that has elements then has a lane.
        handle: The lane's.
        start: The first byte that may be used.
        packed: Whether one begins where the last ended, be it aligned or not.
    """
    pieces = []
    for tensor in fields.tensors:
        data = memoryview(tensor.data)
        if not data.nbytes:
            continue
        start = start if packed else aligned(start)
        pieces.append(Piece(start, data))
        tensor.lane = LaneFields(handle, start)
        tensor.data = b""
        start += data.nbytes
    return pieces


def end_of(pieces: list[Piece]) -> int:
    """The first byte behind all of them."""
    return max((piece.offset + piece.data.nbytes for piece in pieces), default=0)


def handle_of(fields: InferFields) -> str | None:
    """The lane that a received message refers to; None where it has all its elements.

    Raises:
        InvalidArgument: It refers to several.
    """
    handles = {tensor.lane.handle for tensor in fields.tensors if tensor.lane is not None}
    if len(handles) > 1:
        raise InvalidArgument(f"the tensors of one message lie in {len(handles)} lanes; all must lie in one")
    return handles.pop() if handles else None


def spans(fields: InferFields, limits: Limits) -> Iterator[Span]:
    """Where the tensors of a received message lie, those in the message itself left out. Nothing is allocated.

    Raises:
        InvalidArgument: One is no tensor, or has elements in the message, too, or compressed ones.
        ResourceExhausted: One has more bytes or dimensions than are accepted.
    """
    for index, tensor in enumerate(fields.tensors):
        if tensor.lane is None:
            continue
        place = f"tensor {index}"
        if len(tensor.data) or tensor.compression:
            raise InvalidArgument(
                f"{place} lies in a lane, and has {len(tensor.data)} bytes in the message and compression "
                f"{tensor.compression}; it must have none"
            )
        try:
            meta = TensorMeta.from_fields(tensor, limits)
        except InvalidUsage as error:
            raise InvalidArgument(f"{place}: {error}") from None
        yield Span(tensor, place, meta, tensor.lane.offset)
