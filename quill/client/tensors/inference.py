"""One call of a tensor model: what it sends on which lane, and what its reply becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from quill.client.tensors.destination import Destination
from quill.client.tensors.result import InferResult, TransferProgress
from quill.errors import Internal, InvalidArgument, InvalidType, InvalidUsage
from quill.lanes.assembly import Assembly
from quill.lanes.chunks import Frames
from quill.lanes.inline import fields_of, parcel_of
from quill.lanes.lane import COMPRESSION_KEY, INLINE_BYTES, SHARED_BYTES, Lane, LaneChoice, choose
from quill.lanes.parcel import Parcel
from quill.lanes.placing import Span, spans
from quill.lanes.rooms import aligned, rooms
from quill.lanes.shared import REGION_KEY
from quill.tensor import Tensor
from quill.tensor.values import ArrayLike, tensors_of
from quill.wire.tensor_codec import decode_infer_response, encode_infer_request

if TYPE_CHECKING:
    from quill.client.headers import Headers
    from quill.client.tensors.lanes import Guest
    from quill.client.transport import ResponseMetadata
    from quill.lanes.direct import DirectGuest
    from quill.lanes.pool import ReceivePool
    from quill.lanes.shared import SharedGuest
    from quill.limits import Limits
    from quill.wire.tensor_fields import InferFields

SERVICE = "inference.v1.TensorService"

RECEIVE_BYTES = 4 * 1024 * 1024 * 1024
"""The outputs that callers of one client hold at once, but for those that lie in arrays of their own. A quarter of it
is kept for later calls when they are gone."""

Progress = Callable[[TransferProgress], object]


class InferOptions(TypedDict, total=False):
    """What a call of a tensor model can be given besides its inputs."""

    out: Mapping[str, ArrayLike] | None
    """Arrays to write outputs into, by name: writable, C-contiguous, of the output's type and shape. What comes in
    chunks goes there straight from the messages. After an error their content is not defined."""
    outputs: Sequence[str] | None
    """The names of the outputs wanted; all where None."""
    parameters: Mapping[str, str] | None
    """Settings that the model documents."""
    request_id: str
    """The caller's name for the call; the server makes one where it is empty."""
    compression: Literal["zstd"] | None
    """Compress the elements both ways, but for tensors that do not become a tenth smaller. For slow networks."""


class Inference:
    """What both clients ask for and answer with; they only carry it.

    Args:
        model: The name of the model; may be empty where the server has one.
        inputs: Arrays by name.
        pool: Where memory for outputs comes from.
        limits: What is accepted of the reply; larger tensors where an array of ``out`` is larger.
        lane: How the elements travel.
        progress: Told how far they have come.
        options: What else the caller said.

    Raises:
        InvalidUsage: A value cannot be used.
        InvalidType: A value is of the wrong type.
    """

    def __init__(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        pool: ReceivePool,
        limits: Limits,
        *,
        lane: LaneChoice,
        progress: Progress | None = None,
        **options: Unpack[InferOptions],
    ) -> None:
        compression = options.get("compression")
        if compression not in (None, "zstd"):
            raise InvalidUsage(f"compression must be 'zstd' or None, got {compression!r}")
        self._parcel = Parcel(
            model=_text("model", model),
            request_id=_text("request_id", options.get("request_id", "")),
            tensors=tensors_of(inputs),
            outputs=tuple(_text("a name in outputs", name) for name in _several(options.get("outputs"))),
            parameters={
                _text("a parameter", key): _text("a parameter", text) for key, text in _items(options.get("parameters"))
            },
        )
        self._zstd = compression == "zstd"
        self._destination = Destination(options.get("out"))
        self._progress = progress
        self._sent_bytes = 0
        self.size_bytes = self._parcel.size_bytes
        """The elements of the inputs together."""
        self._larger_bytes = max(self.size_bytes, self._destination.size_bytes)
        self.lane: Lane = choose(lane, self._larger_bytes)
        """How the elements travel where no other lane is negotiated, or must."""
        self._wanted = "chunks" if self._zstd and lane == "auto" else lane
        self._pool = pool
        largest_bytes = self._destination.largest_bytes
        if largest_bytes > limits.max_tensor_bytes:
            limits = replace(limits, max_tensor_bytes=largest_bytes)
        self._limits = limits
        self.assembly = Assembly(self._limits, pool, self._destination.place)
        """The reply in chunks."""

    @property
    def negotiates(self) -> str | None:
        """The lane to negotiate: ``"auto"`` for any, and then it may be none; None for none at all."""
        if self._wanted == "auto":
            return "auto" if self._larger_bytes >= SHARED_BYTES else None
        return self._wanted if self._wanted in ("shm", "socket") else None

    @property
    def lane_bytes(self) -> int:
        """How much memory the lane should share: for the inputs and for the arrays of ``out``."""
        return sum(aligned(tensor.size_bytes) for tensor in self._parcel.tensors.values()) + aligned(
            self._destination.size_bytes
        )

    def lay(self, guest: Guest) -> bytes:
        """The request of a negotiated lane, into which the inputs are put."""
        fields = fields_of(self._parcel)
        guest.put(fields)
        return encode_infer_request(fields)

    def carry(self, guest: DirectGuest, deadline_s: float) -> InferFields:
        """Bring the inputs there and the outputs back, while another thread waits for the call's reply."""
        return guest.carry(self._limits, self._rooms, deadline_s)

    def read_shared(self, guest: SharedGuest, reply: bytes, response: ResponseMetadata) -> InferResult:
        """The result of a reply whose outputs lie in shared memory. Raises as ``read``."""
        fields = _decoded(reply)
        grown = next((str(value) for key, value in response.trailers if key == REGION_KEY), None)
        guest.take(list(spans(fields, self._limits)), grown)
        parcel = self._accepted(fields)
        return self._result(parcel, {name: self._lifted(tensor) for name, tensor in parcel.tensors.items()}, "shm")

    def read_carried(self, fields: InferFields) -> InferResult:
        """The result of a reply whose outputs a socket brought. Raises as ``read``."""
        parcel = self._accepted(fields)
        return self._result(parcel, parcel.tensors, "socket")

    def _rooms(self, several: Sequence[Span]) -> list[memoryview]:
        return rooms([span.meta for span in several], self._pool, self._destination.place)

    @property
    def inline_bytes(self) -> int:
        """How many bytes of elements an event loop joins itself; more are a thread's work."""
        return 0 if self._zstd else INLINE_BYTES

    def headers(self, given: Headers | None) -> Headers | None:
        """The headers of the call."""
        return {**(given or {}), COMPRESSION_KEY: "zstd"} if self._zstd else given

    def message(self) -> bytes:
        """The request of the lane inline."""
        return encode_infer_request(fields_of(self._parcel, zstd=self._zstd))

    def read(self, reply: bytes) -> InferResult:
        """The result of a reply inline.

        Raises:
            Internal: The reply cannot be read.
            ResourceExhausted: It has more than is accepted.
            InvalidUsage: It does not fit the arrays of ``out``.
        """
        parcel = self._accepted(_decoded(reply))
        tensors = {name: self._destination.fill(tensor) for name, tensor in parcel.tensors.items()}
        return self._result(parcel, tensors, "inline")

    def frames(self) -> Frames:
        """The requests of the lane chunks."""
        return Frames(self._parcel, zstd=self._zstd, sent=self._sent)

    def feed(self, reply: bytes) -> None:
        """Take a reply of the lane chunks. Raises as ``read``."""
        try:
            self.assembly.feed(reply)
        except InvalidArgument as error:
            raise Internal(f"the reply cannot be read: {error.message}") from None

    def finish(self) -> InferResult:
        """The result, after the last reply of the lane chunks. Raises as ``read``."""
        try:
            parcel = self.assembly.finish()
        except InvalidArgument as error:
            raise Internal(f"the reply cannot be read: {error.message}") from None
        return self._result(parcel, parcel.tensors, "chunks")

    def tell_progress(self) -> None:
        """Tell the caller how far it has come."""
        if self._progress is not None:
            assembly = self.assembly
            to_receive = assembly.size_bytes if assembly.has_begun else None
            self._progress(TransferProgress(self._sent_bytes, self.size_bytes, assembly.written_bytes, to_receive))

    def _accepted(self, fields: InferFields) -> Parcel:
        try:
            return parcel_of(fields, self._limits)
        except InvalidArgument as error:
            raise Internal(f"the reply cannot be read: {error.message}") from None

    def _lifted(self, tensor: Tensor) -> Tensor:
        """An output that lies in shared memory: where its caller wants it, or a copy unless it is large.

        Who keeps a copy does not keep the region, which the next call needs.
        """
        if tensor.name in self._destination.arrays:
            return self._destination.fill(tensor)
        if tensor.size_bytes > INLINE_BYTES:
            return tensor
        room = self._pool.take(tensor.size_bytes)
        room[:] = tensor.data
        return Tensor.from_meta(tensor.meta, room)

    def _sent(self, sent_bytes: int) -> None:
        self._sent_bytes = sent_bytes
        self.tell_progress()

    def _result(self, parcel: Parcel, tensors: Mapping[str, Tensor], lane: Lane) -> InferResult:
        self._destination.check_filled(tensors)
        return InferResult(tensors, parcel.model, parcel.request_id, parcel.parameters, lane, self._destination.arrays)


def _decoded(reply: bytes) -> InferFields:
    try:
        return decode_infer_response(reply)
    except InvalidUsage as error:
        raise Internal(f"the reply cannot be read: {error}") from None


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidType(f"{what} must be str, got {type(value).__name__}")
    return value


def _several(names: Sequence[str] | None) -> Sequence[str]:
    if isinstance(names, str):
        raise InvalidType("outputs must be a sequence of names, got str")
    return names or ()


def _items(parameters: Mapping[str, str] | None) -> Sequence[tuple[object, object]]:
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidType(f"parameters must be a mapping of names to texts, got {type(parameters).__name__}")
    return list((parameters or {}).items())
