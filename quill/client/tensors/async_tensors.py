"""TensorService with the asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Unpack

from quill.client.tensors.attempt import Attempt
from quill.client.tensors.inference import RECEIVE_BYTES, SERVICE, Inference, InferOptions
from quill.client.tensors.signature import TensorSignature, describing
from quill.errors import RpcError
from quill.lanes.lane import INLINE_BYTES
from quill.lanes.memory import keep_warm
from quill.lanes.pool import ReceivePool
from quill.lanes.shared import AT_ONCE_BYTES
from quill.limits import Limits
from quill.wire.large import offload

if TYPE_CHECKING:
    from quill.client.calls import AsyncCalls
    from quill.client.headers import Headers
    from quill.client.tensors.inference import Progress
    from quill.client.tensors.lanes import ClientLanes
    from quill.client.tensors.result import InferResult
    from quill.client.transport import ResponseMetadata
    from quill.lanes.chunks import Frames
    from quill.lanes.lane import LaneChoice
    from quill.tensor.values import ArrayLike


class AsyncTensors:
    """inference.v1.TensorService, awaited. Arguments, results and errors are those of ``Tensors``.

    Args:
        client: Whose connection and headers are used.
        lanes: Those that are negotiated.
    """

    def __init__(self, client: AsyncCalls, lanes: ClientLanes) -> None:
        self._client = client
        self._lanes = lanes
        keep_warm()
        self._pool = ReceivePool(max_bytes=RECEIVE_BYTES, kept_bytes=RECEIVE_BYTES // 4)
        self._limits = Limits(max_message_bytes=client.max_message_bytes)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        lane: LaneChoice = "auto",
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
        **options: Unpack[InferOptions],
    ) -> InferResult:
        """As ``Tensors.infer``."""
        inference = Inference(model, inputs, self._pool, self._limits, lane=lane, **options)
        return await self._carry(inference, timeout_ms, headers, response)

    async def stream(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        progress: Progress | None = None,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
        **options: Unpack[InferOptions],
    ) -> InferResult:
        """As ``Tensors.stream``; ``progress`` is called on the event loop, or in threads with compression."""
        inference = Inference(model, inputs, self._pool, self._limits, lane="chunks", progress=progress, **options)
        return await self._carry(inference, timeout_ms, headers, response)

    async def model(
        self,
        name: str,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> TensorSignature:
        """As ``Tensors.model``."""
        question = describing(name)
        reply = await self._client.call(
            SERVICE, question.method, question.request, timeout_ms=timeout_ms, headers=headers, response=response
        )
        return question.read(reply)

    async def _carry(
        self, inference: Inference, timeout_ms: int | None, headers: Headers | None, response: ResponseMetadata | None
    ) -> InferResult:
        headers = inference.headers(headers)
        if inference.negotiates is not None:
            result = await self._by_lane(inference, inference.negotiates, timeout_ms, headers, response)
            if result is not None:
                return result
        if inference.lane == "inline":
            message = await offload(inference.size_bytes, inference.inline_bytes, inference.message)
            reply = await self._client.call(
                SERVICE, "Infer", message, codec="proto", timeout_ms=timeout_ms, headers=headers, response=response
            )
            return await offload(len(reply), inference.inline_bytes, inference.read, reply)
        frames = await offload(1, inference.inline_bytes, inference.frames)
        requests = _in_threads(frames) if frames.is_compressed else frames
        async with self._client.stream(
            SERVICE, "StreamInfer", requests, codec="proto", timeout_ms=timeout_ms, headers=headers, response=response
        ) as replies:
            async for reply in replies:
                await offload(len(reply), inference.assembly.inline_bytes, inference.feed, reply)
                inference.tell_progress()
        return await offload(inference.assembly.size_bytes, INLINE_BYTES, inference.finish)

    async def _by_lane(
        self,
        inference: Inference,
        wanted: str,
        timeout_ms: int | None,
        headers: Headers | None,
        response: ResponseMetadata | None,
    ) -> InferResult | None:
        """As ``Tensors._by_lane``."""
        timeout_ms = self._client.timeout_ms if timeout_ms is None else timeout_ms
        with Attempt(inference, wanted, self._lanes, timeout_ms=timeout_ms, response=response) as attempt:
            if (question := attempt.question) is not None:
                try:
                    granted = await self._client.call(
                        SERVICE, question.method, question.request, timeout_ms=attempt.left_ms, headers=headers
                    )
                    await asyncio.to_thread(attempt.open, granted)
                except RpcError as error:
                    attempt.refused(error)
                    return None
            if not attempt.has_lane:
                return None
            message, carried = await offload(inference.lane_bytes, AT_ONCE_BYTES, attempt.lay), attempt.carry()
            try:
                reply = await self._client.call(
                    SERVICE,
                    "Infer",
                    message,
                    codec="proto",
                    timeout_ms=attempt.left_ms,
                    headers=attempt.headers(headers),
                    response=attempt.response,
                )
            except RpcError as error:
                attempt.failed(error)
                return None
            if carried is None:
                return await asyncio.to_thread(attempt.finish, reply, None)
            brought = await asyncio.wrap_future(carried)
            return attempt.finish(reply, brought)


async def _in_threads(frames: Frames) -> AsyncGenerator[bytes, None]:
    """Messages that take longer to make than an event loop should."""
    each = iter(frames)
    while (frame := await asyncio.to_thread(next, each, None)) is not None:
        yield frame
