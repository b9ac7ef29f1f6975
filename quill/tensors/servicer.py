"""TensorService over TensorModels: a plain grpc.aio servicer."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar

from quill.boundary import Context, streaming, unary
from quill.errors import DeadlineExceeded, InvalidArgument, InvalidUsage, ResourceExhausted
from quill.lanes.assembly import Assembly
from quill.lanes.chunks import Frames
from quill.lanes.dialing import MakeTls
from quill.lanes.elements import CHUNK_BYTES
from quill.lanes.granted import GrantedLanes
from quill.lanes.inline import fields_of, parcel_of
from quill.lanes.lane import COMPRESSION_KEY, INLINE_BYTES, LANE_KEY, Lane
from quill.lanes.memory import keep_warm
from quill.lanes.parcel import Parcel
from quill.lanes.placing import handle_of
from quill.lanes.pool import ReceivePool
from quill.limits import Limits
from quill.proto import (
    GetTensorModelRequest,
    GetTensorModelResponse,
    InferRequest,
    InferResponse,
    NegotiateLaneRequest,
    NegotiateLaneResponse,
    StreamInferRequest,
    StreamInferResponse,
    TensorServiceServicer,
)
from quill.tensors.hosting import LaneHosting
from quill.tensors.models import TensorModels
from quill.tensors.running import Runner
from quill.wire.large import offload
from quill.wire.tensor_codec import decode_infer_request, encode_infer_response
from quill.wire.tensor_fields import InferFields

if TYPE_CHECKING:
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)

CHUNK_TIMEOUT_S = 60.0
"""How long a caller may take for the next message of a stream; what it has sent is held in memory meanwhile."""


class TensorServicer(TensorServiceServicer):
    """Serves inference.v1.TensorService, on ``grpc.aio.server()`` and ``quill.Server`` alike.

        servicer = TensorServicer(models)
        quill.tensors.add_to_server(servicer, server)
        ...
        await servicer.aclose()

    Added so, it is given bytes and gives bytes, and elements are copied once at most. The generated
    ``add_TensorServiceServicer_to_server`` works as well: then protobuf's library makes messages of them, by copying.

    Args:
        models: What it serves. Models may be added later.
        limits: How large tensors and messages may be, how many there may be, and how much memory they take together.
        socket_host: The address on which to listen for the connections of socket lanes, on ports that the system
            chooses: that of the gRPC port. None: there are none.
        socket_tls: Makes what they are encrypted with; None for clear text, as the calls have it.
    """

    def __init__(
        self,
        models: TensorModels,
        *,
        limits: Limits | None = None,
        socket_host: str | None = None,
        socket_tls: MakeTls | None = None,
    ) -> None:
        keep_warm()
        self._models = models
        self._limits = limits or Limits()
        self._runner = Runner()
        most_bytes = self._limits.max_receiving_bytes
        self._pool = ReceivePool(max_bytes=most_bytes, kept_bytes=most_bytes // 4)
        granted = GrantedLanes(self._limits, self._pool, socket_host=socket_host, tls=socket_tls)
        self._lanes = LaneHosting(granted, self._limits)

    async def aclose(self) -> None:
        """Run nothing more: what waits to be run ends with UNAVAILABLE. May be called again."""
        self._runner.close()
        await self._lanes.aclose()

    @unary
    async def Infer(self, request: InferRequest | bytes, context: Context) -> Any:
        """Run a model once; all elements are in the request and in the reply, or in a lane."""
        fields = _decoded(_serialized(request))
        told = _told(context)
        if (handle := handle_of(fields) or told.get(LANE_KEY)) is not None:
            return _as_given(request, await self._lanes.infer(fields, str(handle), context, self._run), InferResponse)
        compressed = any(one.compression for one in fields.tensors)
        parcel = await offload(1, 0 if compressed else 1, parcel_of, fields, self._limits)
        reply = await self._run(parcel)
        self._check_fits(reply)
        zstd = told.get(COMPRESSION_KEY) == "zstd"
        data = await offload(reply.size_bytes, 0 if zstd else INLINE_BYTES, _encoded, reply, zstd)
        _tell_lane(context, "inline")
        return _as_given(request, data, InferResponse)

    @streaming
    async def StreamInfer(
        self, request_iterator: AsyncIterator[StreamInferRequest | bytes], context: Context
    ) -> AsyncGenerator[Any, None]:
        """Run a model once; the elements come and go in chunks."""
        request: StreamInferRequest | bytes = b""
        assembly = Assembly(self._limits, self._pool)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CHUNK_TIMEOUT_S) as wait:
                async for request in request_iterator:
                    message = _serialized(request)
                    await offload(len(message), assembly.inline_bytes, assembly.feed, message)
                    wait.reschedule(loop.time() + CHUNK_TIMEOUT_S)
        except TimeoutError:
            if not wait.expired():
                raise
            raise DeadlineExceeded(
                f"no message came for {CHUNK_TIMEOUT_S:g} s, after {assembly.written_bytes} of "
                f"{assembly.size_bytes} bytes"
            ) from None
        parcel = await offload(assembly.size_bytes, INLINE_BYTES, assembly.finish)
        reply = await self._run(parcel)
        _tell_lane(context, "chunks")
        zstd = _told(context).get(COMPRESSION_KEY) == "zstd"
        frames = await offload(1, 0 if zstd else 1, Frames, reply, zstd=zstd)
        inline_bytes = 0 if frames.is_compressed else CHUNK_BYTES
        for index in range(len(frames)):
            frame = await offload(CHUNK_BYTES, inline_bytes, frames.__getitem__, index)
            yield _as_given(request, frame, StreamInferResponse)

    @unary
    async def GetTensorModel(self, request: GetTensorModelRequest, context: Context) -> GetTensorModelResponse:
        """Tell the inputs and outputs of a model; of one that takes or gives whatever comes, none."""
        model = self._models.resolve(request.name)
        return GetTensorModelResponse(
            name=model.name,
            inputs=[spec.to_proto(name) for name, spec in (model.inputs or {}).items()],
            outputs=[spec.to_proto(name) for name, spec in (model.outputs or {}).items()],
        )

    @unary
    async def NegotiateLane(self, request: NegotiateLaneRequest, context: Context) -> NegotiateLaneResponse:
        """Open a lane for a caller on this machine, or anywhere."""
        return await self._lanes.negotiate(request)

    async def _run(self, request: Parcel) -> Parcel:
        """The reply to a request."""
        model = self._models.resolve(request.model)
        arguments = model.arguments(request)
        outputs = await self._runner(model, arguments, frozenset(request.tensors))
        return model.reply(request, outputs, request.request_id or secrets.token_hex(8))

    def _check_fits(self, reply: Parcel) -> None:
        most_bytes = self._limits.max_reply_bytes
        if reply.size_bytes > most_bytes:
            raise ResourceExhausted(
                f"the outputs have {reply.size_bytes} bytes and max_reply_bytes is {most_bytes}: "
                "call StreamInfer, which sends them in chunks"
            )


def _serialized(request: Message | bytes) -> bytes:
    """A request as bytes, which it is already where no message was made of it."""
    return request if isinstance(request, bytes) else request.SerializeToString()


def _as_given(request: Message | bytes, reply: bytes, kind: type[M]) -> M | bytes:
    """A reply as its caller's registration wants it: bytes for bytes, a message for a message."""
    return reply if isinstance(request, bytes) else kind.FromString(reply)


def _decoded(message: bytes) -> InferFields:
    try:
        return decode_infer_request(message)
    except InvalidUsage as error:
        raise InvalidArgument(f"the request cannot be read: {error}") from None


def _encoded(reply: Parcel, zstd: bool) -> bytes:
    return encode_infer_response(fields_of(reply, zstd=zstd))


def _told(context: Context) -> dict[str, str | bytes]:
    """The metadata of a call; of a key that comes again, what came last."""
    return dict(context.invocation_metadata() or ())


def _tell_lane(context: Context, lane: Lane) -> None:
    """Say how the reply comes, behind what an interceptor may have put into the trailing metadata."""
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), (LANE_KEY, lane)))
