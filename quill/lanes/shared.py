"""The lane shm: a region that inputs are copied into, and where the model reads them; and likewise outputs.

The memory stays from call to call, because the first touch of its pages costs more than the copy. What a call views it
keeps: a region of which anything is still viewed is used for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from quill.errors import InvalidArgument, InvalidUsage, Unavailable
from quill.lanes.dialing import HANDSHAKE_S
from quill.lanes.placing import Piece, Span, end_of, lay
from quill.lanes.rooms import ALIGNMENT
from quill.lanes.shm import Region
from quill.wire.tensor_codec import encode_infer_response

if TYPE_CHECKING:
    from quill.wire.tensor_fields import InferFields

REGION_KEY = "quill-lane-region"
"""The key of the trailing metadata that names a larger region for a lane: ``NAME SIZE``."""

AT_ONCE_BYTES = 2 * 1024 * 1024
"""What is copied in half a millisecond."""

_STEP_BYTES = 2 * 1024 * 1024
"""What sizes of regions are multiples of."""


def region_bytes(size_bytes: int) -> int:
    """The size of a region for so many bytes of elements."""
    return -(-max(size_bytes, 1) // _STEP_BYTES) * _STEP_BYTES


class SharedHost:
    """The server's end.

    Args:
        region: Created for this lane.
        grow: Makes a larger one.
    """

    kind: Literal["shm"] = "shm"
    brings_at_once = True
    """The inputs are there when the call is."""

    def __init__(self, region: Region, grow: Callable[[int], Region]) -> None:
        self._region = region
        self._grow = grow
        self._end = 0
        self._was_seen = False
        self.trailers: tuple[tuple[str, str], ...] = ()
        """What the caller is told with the reply."""

    @property
    def size_bytes(self) -> int:
        """The memory that is shared."""
        return self._region.size_bytes

    @property
    def is_usable(self) -> bool:
        """Whether the caller is there, and nothing of an earlier call is still held."""
        self._was_seen = self._was_seen or self._region.has_other
        return self._region.has_other and not self.is_kept

    @property
    def is_kept(self) -> bool:
        """Whether somebody still views inputs."""
        return self._region.is_lent

    def takes_at_once(self, fields: InferFields) -> bool:
        """Whether the elements of a reply are put into the region in less time than an event loop has."""
        size_bytes = sum(len(tensor.data) + ALIGNMENT for tensor in fields.tensors)
        return size_bytes <= min(AT_ONCE_BYTES, self._region.size_bytes - self._end)

    def is_left(self, idle_s: float) -> bool:
        """Whether the caller is gone, or has not come for its region in time."""
        if self._region.has_other:
            self._was_seen = True
            return False
        return self._was_seen or idle_s > HANDSHAKE_S

    def receive(self, spans: Iterable[Span], _deadline_s: float) -> None:
        """Give tensors their elements: views of the region.

        Raises:
            InvalidArgument: They go past its end.
        """
        self._end = 0
        for span in spans:
            try:
                span.tensor.data = self._region.view(span.offset, span.meta.size_bytes)
            except InvalidUsage as error:
                raise InvalidArgument(f"{span.place}: {error}") from None
            span.tensor.lane = None
            self._end = max(self._end, span.offset + span.meta.size_bytes)

    def reply(self, fields: InferFields, handle: str, _deadline_s: float) -> bytes:
        """The serialized reply. Its elements go behind those of the request, which may be the same.

        Raises:
            ResourceExhausted: They do not fit, and there may be no larger region.
        """
        self.trailers = ()
        pieces = lay(fields, handle, start=self._end)
        if end_of(pieces) > self._region.size_bytes:
            larger = self._grow(region_bytes(end_of(pieces)))
            self._region.close()
            self._region, self._was_seen = larger, False
            self.trailers = ((REGION_KEY, f"{self._region.name} {self._region.size_bytes}"),)
        copy_into(self._region, pieces)
        return encode_infer_response(fields)

    def close(self) -> None:
        """Let go of the region."""
        self._region.close()


class SharedGuest:
    """The client's end.

    Args:
        handle: The lane's.
        region: Attached.
    """

    kind: Literal["shm"] = "shm"

    def __init__(self, handle: str, region: Region) -> None:
        self.handle = handle
        self._region = region

    def holds(self, size_bytes: int) -> bool:
        """Whether so many bytes of elements go into it."""
        return size_bytes <= self._region.size_bytes

    @property
    def is_usable(self) -> bool:
        """Whether the server is there."""
        return self._region.has_other

    @property
    def is_free(self) -> bool:
        """Whether nobody holds outputs that came by it."""
        return not self._region.is_lent

    def put(self, request: InferFields) -> None:
        """Copy the elements of a request, and put references in their place."""
        copy_into(self._region, lay(request, self.handle))

    def take(self, spans: Iterable[Span], grown: str | None) -> None:
        """Give the tensors of a reply their elements: views of the region.

        Args:
            spans: Where they are.
            grown: What the reply said under REGION_KEY.

        Raises:
            Unavailable: They are not where the reply says.
        """
        try:
            if grown is not None:
                self._swap(grown)
            for span in spans:
                span.tensor.data = self._region.view(span.offset, span.meta.size_bytes)
                span.tensor.lane = None
        except InvalidUsage as error:
            raise Unavailable(f"the lane is lost with the reply in it: {error}") from None

    def close(self) -> None:
        """Let go of the region."""
        self._region.close()

    def _swap(self, grown: str) -> None:
        name, _, size = grown.partition(" ")
        if not size.isascii() or not size.isdecimal():
            raise InvalidUsage(f"{grown[:100]!r} names no region")
        region = Region.attach(name, int(size))
        self._region.close()
        self._region = region


def copy_into(region: Region, pieces: Iterable[Piece]) -> None:
    """Copy elements into a region; other threads run meanwhile."""
    import numpy as np

    for piece in pieces:
        size_bytes = piece.data.nbytes
        np.frombuffer(region.view(piece.offset, size_bytes), np.uint8)[:] = np.frombuffer(piece.data, np.uint8)
