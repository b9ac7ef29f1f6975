"""The lane chunks, inwards: messages in, each piece straight to its place, a parcel at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quill.errors import InvalidArgument, InvalidUsage
from quill.lanes.elements import check_compression, named_meta, over, plain
from quill.lanes.inline import check_count
from quill.lanes.parcel import Parcel
from quill.lanes.rooms import Place, rooms
from quill.limits import Limits
from quill.tensor import Tensor, TensorMeta
from quill.tensor.meta import fields_of
from quill.wire.tensor_codec import decode_frame
from quill.wire.tensor_fields import ChunkFields

if TYPE_CHECKING:
    from quill import proto
    from quill.lanes.pool import ReceivePool

_INLINE_COPY_BYTES = 4 * 1024 * 1024
"""What is copied in half a millisecond, or somewhat more where the pages are fresh."""


class _Incoming:
    """One tensor on its way in."""

    __slots__ = ("chunks", "compression", "meta", "room", "size_bytes", "written_bytes")

    def __init__(self, meta: TensorMeta, compression: int) -> None:
        self.meta = meta
        self.compression = compression
        self.size_bytes = meta.size_bytes
        self.room: memoryview
        self.written_bytes = 0
        self.chunks = 0


class Assembly:
    """The messages of one direction of a StreamInfer call as they come.

    The header says what memory it takes, and is refused before any is taken where that is too much; then all of it is
    taken at once. What is there when the last message has come is whole.

    Args:
        limits: What is accepted.
        pool: Where memory comes from.
        place: Where the caller wants a tensor.
    """

    def __init__(self, limits: Limits, pool: ReceivePool, place: Place | None = None) -> None:
        self._limits = limits
        self._pool = pool
        self._place = place
        self._header: proto.InferHeader | None = None
        self._tensors: list[_Incoming] = []
        self.size_bytes = 0
        """The elements of all tensors together; 0 before the header has come."""
        self.written_bytes = 0
        """Those of them that have come."""

    @property
    def has_begun(self) -> bool:
        """Whether the header has come."""
        return self._header is not None

    @property
    def inline_bytes(self) -> int:
        """How large a message an event loop feeds itself; larger ones are a thread's work."""
        return 0 if any(one.compression for one in self._tensors) else _INLINE_COPY_BYTES

    def feed(self, message: bytes) -> None:
        """Take a StreamInferRequest or a StreamInferResponse.

        Raises:
            InvalidArgument: It is none, comes out of turn, or is no piece of a tensor that is awaited: one that leaves
                a gap, repeats bytes or goes past the end.
            ResourceExhausted: The header's tensors are larger or more than are accepted, or a chunk becomes more than
                is left of its tensor.
        """
        try:
            part = decode_frame(message)
        except InvalidUsage as error:
            raise InvalidArgument(f"a message of the stream cannot be read: {error}") from None
        if isinstance(part, ChunkFields):
            self._take(part)
        else:
            self._begin(part)

    def finish(self) -> Parcel:
        """What has come, after the last message.

        Raises:
            InvalidArgument: The header or bytes of a tensor have not come, or a byte of a bool tensor is not 0 or 1.
        """
        header = self._header
        if header is None:
            raise InvalidArgument("the stream ended without a header")
        tensors: dict[str, Tensor] = {}
        for index, one in enumerate(self._tensors):
            if one.written_bytes != one.size_bytes:
                raise InvalidArgument(
                    f"tensor {index}, {one.meta.name!r}, needs {one.size_bytes} bytes, "
                    f"the stream ended after {one.written_bytes}"
                )
            tensors[one.meta.name or ""] = over(one.meta, one.room, f"tensor {index}")
        return Parcel(
            model=header.model,
            request_id=header.request_id,
            tensors=tensors,
            outputs=tuple(header.outputs),
            parameters=dict(header.parameters),
        )

    def _begin(self, serialized: bytes) -> None:
        from google.protobuf.message import DecodeError

        from quill.proto import InferHeader

        if self._header is not None:
            raise InvalidArgument(
                f"a second header came after {self.written_bytes} of {self.size_bytes} bytes; a stream has one"
            )
        try:
            header = InferHeader.FromString(serialized)
        except DecodeError:
            raise InvalidArgument(f"the header ({len(serialized)} bytes) is no inference.v1.InferHeader") from None
        check_count(len(header.tensors), self._limits)
        names: dict[str, None] = {}
        for index, told in enumerate(header.tensors):
            meta = named_meta(fields_of(told), f"tensor {index}", names, self._limits)
            check_compression(told.compression, f"tensor {index}")
            names[told.name] = None
            self._tensors.append(_Incoming(meta, told.compression))
        self.size_bytes = sum(one.size_bytes for one in self._tensors)
        places = rooms([one.meta for one in self._tensors], self._pool, self._place)
        for one, room in zip(self._tensors, places, strict=True):
            one.room = room
        self._header = header

    def _take(self, chunk: ChunkFields) -> None:
        if self._header is None:
            raise InvalidArgument("a chunk came before the header")
        index = chunk.tensor_index
        if index >= len(self._tensors):
            raise InvalidArgument(f"a chunk is of tensor {index}, and the header has {len(self._tensors)}")
        one = self._tensors[index]
        place = f"chunk {chunk.sequence} of tensor {index}"
        if chunk.offset != one.written_bytes:
            what = "leaves a gap" if chunk.offset > one.written_bytes else "overlaps"
            raise InvalidArgument(f"{place} {what}: it starts at byte {chunk.offset}, {one.written_bytes} have come")
        if chunk.sequence != one.chunks:
            raise InvalidArgument(f"{place} is out of order: chunk {one.chunks} is the next")
        self._write(one, chunk, place)
        if chunk.is_final and one.written_bytes != one.size_bytes:
            raise InvalidArgument(f"{place} says that it is the last at byte {one.written_bytes} of {one.size_bytes}")

    def _write(self, one: _Incoming, chunk: ChunkFields, place: str) -> None:
        left_bytes = one.size_bytes - one.written_bytes
        most_bytes = min(left_bytes, self._limits.max_message_bytes)
        data = plain(chunk.data, one.compression, most_bytes=most_bytes, limits=self._limits)
        count = len(data)
        if count > left_bytes:
            raise InvalidArgument(f"{place} goes past the end: it has {count} bytes and {left_bytes} are left")
        if not count and (one.size_bytes or one.chunks):
            raise InvalidArgument(f"{place} is empty")
        one.room[one.written_bytes : one.written_bytes + count] = data
        one.written_bytes += count
        one.chunks += 1
        self.written_bytes += count
