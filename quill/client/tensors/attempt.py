"""One call by a lane that is negotiated: what both clients do alike. They make the calls, and wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from quill.client.options import MAX_TIMEOUT_MS
from quill.client.transport import ResponseMetadata
from quill.errors import InvalidUsage, RpcError
from quill.lanes.direct import DirectGuest
from quill.lanes.lane import ENDS_KEY, LANE_KEY, LOST

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

    from quill.client.calls import Question
    from quill.client.headers import Headers
    from quill.client.tensors.inference import Inference
    from quill.client.tensors.lanes import ClientLanes, Guest
    from quill.client.tensors.result import InferResult
    from quill.proto import NegotiateLaneResponse
    from quill.wire.tensor_fields import InferFields


class Attempt:
    """A call whose elements lie in a lane, or that finds that there is none. As a context it has the lane for itself.

    A call that fails ends its lane: the server may still write to its memory, or read from its socket.

    Args:
        inference: What is called.
        wanted: Its lane; ``"auto"`` leaves the choice, and then there may be none.
        lanes: Those of the client.
        timeout_ms: How long all of it may take; None for no bound.
        response: Filled with the reply's headers and trailers.

    Raises:
        InvalidUsage: The lane cannot be had at this address.
    """

    def __init__(
        self,
        inference: Inference,
        wanted: str,
        lanes: ClientLanes,
        *,
        timeout_ms: int | None,
        response: ResponseMetadata | None,
    ) -> None:
        self._inference = inference
        self._is_choosy = wanted != "auto"
        self._lanes = lanes
        self._until_s = time.monotonic() + (MAX_TIMEOUT_MS if timeout_ms is None else timeout_ms) / 1000
        self.response = response or ResponseMetadata()
        """Filled with the reply's headers and trailers."""
        self._kinds = lanes.kinds(wanted, inference.lane_bytes)
        if self._is_choosy and not self._kinds:
            raise InvalidUsage(f"lane={wanted!r} needs one server, and a socket its host: this address has not")
        self._guest: Guest | None = None
        self._is_whole = self._is_over = False

    def __enter__(self) -> Self:
        size_bytes = self._inference.lane_bytes
        self._guest = self._lanes.at_hand(self._kinds, size_bytes)
        if self._guest is None and not (self._is_choosy or self._lanes.are_worth_asking_for(size_bytes)):
            self._kinds = ()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        guest = self._guest
        if guest is not None and self._is_whole:
            self._lanes.put_back(guest)
        elif guest is not None:
            guest.close()

    @property
    def left_ms(self) -> int:
        """How long the next call may take."""
        return max(1, int((self._until_s - time.monotonic()) * 1000))

    @property
    def question(self) -> Question[NegotiateLaneResponse] | None:
        """The call for a lane; None where there is one, or none is to be had."""
        if self._guest is not None or not self._kinds:
            return None
        return self._lanes.asking(self._kinds, self._inference.lane_bytes)

    @property
    def has_lane(self) -> bool:
        """Whether there is one."""
        return self._guest is not None

    def open(self, granted: NegotiateLaneResponse) -> None:
        """Go to the lane that the server has granted. Waits for its connection.

        Raises:
            Unavailable: There is no way to it.
        """
        kinds, self._kinds = self._kinds, ()  # what cannot be opened is refused there, and the others are not
        guest = self._guest = self._lanes.opened(kinds, granted, self.left_ms)
        if self._is_over:  # it was cancelled meanwhile, and this is its thread
            guest.close()

    def refused(self, error: RpcError) -> None:
        """There is no lane, and the call goes another way.

        Raises:
            RpcError: The error, where its caller wants this lane and no other.
        """
        if self._is_choosy:
            raise error
        self._lanes.refused(self._kinds)

    def lay(self) -> bytes:
        """The request, whose elements are in the lane, or on their way."""
        return self._inference.lay(self._lane)

    def headers(self, given: Headers | None) -> Headers:
        """The headers of the call: those that its caller gave, and the lane's."""
        return {**(given or {}), LANE_KEY: self._lane.handle}

    def carry(self) -> Future[InferFields] | None:
        """Let a thread bring the elements both ways while the call waits; None where they need no bringing."""
        lane = self._lane
        if not isinstance(lane, DirectGuest):
            return None
        return self._lanes.threads.submit(self._inference.carry, lane, self._until_s)

    def failed(self, error: RpcError) -> None:
        """The call has ended with an error: one of a lane that was lost, and then it goes another way.

        Raises:
            RpcError: The error, where it is another, or its caller wants this lane and no other.
        """
        if self._is_choosy or (LANE_KEY, LOST) not in error.trailers:
            raise error

    def finish(self, reply: bytes, carried: InferFields | None) -> InferResult:
        """The result.

        Args:
            reply: What the call gave.
            carried: What was brought meanwhile.

        Raises:
            RpcError: The outputs are not what they should be.
            InvalidUsage: They do not fit the arrays of ``out``.
        """
        lane = self._lane
        if isinstance(lane, DirectGuest):
            assert carried is not None  # noqa: S101 - ``carry`` was asked for it
            result = self._inference.read_carried(carried)
        else:
            result = self._inference.read_shared(lane, reply, self.response)
        self._is_whole = all(key != ENDS_KEY for key, _ in self.response.trailers)
        if not (self._is_whole or self._is_choosy):  # a new one for each call would cost more than other ways
            self._lanes.refused((lane.kind,))
        return result

    @property
    def _lane(self) -> Guest:
        assert self._guest is not None  # noqa: S101 - its user asked ``has_lane``
        return self._guest
