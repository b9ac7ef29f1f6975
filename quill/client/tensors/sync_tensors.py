"""TensorService with the blocking client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Unpack

from quill.client.tensors.attempt import Attempt
from quill.client.tensors.inference import RECEIVE_BYTES, SERVICE, Inference, InferOptions
from quill.client.tensors.signature import TensorSignature, describing
from quill.errors import RpcError
from quill.lanes.memory import keep_warm
from quill.lanes.pool import ReceivePool
from quill.limits import Limits

if TYPE_CHECKING:
    from quill.client.calls import SyncCalls
    from quill.client.headers import Headers
    from quill.client.tensors.inference import Progress
    from quill.client.tensors.lanes import ClientLanes
    from quill.client.tensors.result import InferResult
    from quill.client.transport import ResponseMetadata
    from quill.lanes.lane import LaneChoice
    from quill.tensor.values import ArrayLike


class Tensors:
    """inference.v1.TensorService. Memory of outputs that nobody refers to any more is used again by later calls.

    Args:
        client: Whose connection and headers are used.
        lanes: Those that are negotiated.
    """

    def __init__(self, client: SyncCalls, lanes: ClientLanes) -> None:
        self._client = client
        self._lanes = lanes
        keep_warm()
        self._pool = ReceivePool(max_bytes=RECEIVE_BYTES, kept_bytes=RECEIVE_BYTES // 4)
        self._limits = Limits(max_message_bytes=client.max_message_bytes)

    def infer(
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
        """Run a model once.

            result = client.tensors.infer("scale", {"x": np.ones(3, np.float32)}, parameters={"by": "2"})
            result["y"]

        Args:
            model: Its name; may be empty where the server has one.
            inputs: By name: numpy arrays, Tensors, or arrays of any library that speaks DLPack, in memory of the CPU.
                C-contiguous little-endian ones are sent from where they lie, others are copied.
            lane: ``"inline"``: in one message, which both sides bound. ``"chunks"``: in pieces, of any size. ``"shm"``:
                by memory that both processes share, on one machine as one user. ``"socket"``: by a connection of their
                own. ``"auto"``: the best of the last three that can be had, where the inputs or the arrays of ``out``
                have more than 8 MiB together; else inline, but for calls from 512 KiB on that follow one another, which
                share memory. An output that is too large for a message while the inputs are small needs a lane that
                is named, or ``out``.
            timeout_ms: How long the call may take. Where None, the client's ``timeout_ms``; in chunks that bounds the
                wait for the first chunk of the reply after the last one was sent, and ``idle_timeout_ms`` the gaps.
            headers: Sent with this call, in place of the client's of the same names.
            response: Filled with the reply's headers and trailers.
            options: The others: see ``InferOptions``.

        Raises:
            InvalidUsage: An argument cannot be used; the lane cannot be had at this address; or the outputs do not
                fit ``out``.
            InvalidType: An argument is of the wrong type: an array of objects, for one.
            RpcError: The status that the call ended with.
        """
        inference = Inference(model, inputs, self._pool, self._limits, lane=lane, **options)
        return self._carry(inference, timeout_ms, headers, response)

    def stream(
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
        """As ``infer`` in chunks, with word of how far it has come.

        Args:
            model: As for ``infer``.
            inputs: As for ``infer``.
            progress: Called for each chunk that was sent or has come, from whichever thread sends or reads.
            timeout_ms: As for ``infer``.
            headers: As for ``infer``.
            response: As for ``infer``.
            options: As for ``infer``.
        """
        inference = Inference(model, inputs, self._pool, self._limits, lane="chunks", progress=progress, **options)
        return self._carry(inference, timeout_ms, headers, response)

    def model(
        self,
        name: str,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> TensorSignature:
        """The inputs and outputs of a model."""
        question = describing(name)
        reply = self._client.call(
            SERVICE, question.method, question.request, timeout_ms=timeout_ms, headers=headers, response=response
        )
        return question.read(reply)

    def _carry(
        self, inference: Inference, timeout_ms: int | None, headers: Headers | None, response: ResponseMetadata | None
    ) -> InferResult:
        headers = inference.headers(headers)
        if inference.negotiates is not None:
            result = self._by_lane(inference, inference.negotiates, timeout_ms, headers, response)
            if result is not None:
                return result
        if inference.lane == "inline":
            message = inference.message()
            reply = self._client.call(
                SERVICE, "Infer", message, codec="proto", timeout_ms=timeout_ms, headers=headers, response=response
            )
            return inference.read(reply)
        frames = inference.frames()
        with self._client.stream(
            SERVICE, "StreamInfer", frames, codec="proto", timeout_ms=timeout_ms, headers=headers, response=response
        ) as replies:
            for reply in replies:
                inference.feed(reply)
                inference.tell_progress()
        return inference.finish()

    def _by_lane(
        self,
        inference: Inference,
        wanted: str,
        timeout_ms: int | None,
        headers: Headers | None,
        response: ResponseMetadata | None,
    ) -> InferResult | None:
        """The result by a negotiated lane; None where there is none, and the caller leaves the choice."""
        timeout_ms = self._client.timeout_ms if timeout_ms is None else timeout_ms
        with Attempt(inference, wanted, self._lanes, timeout_ms=timeout_ms, response=response) as attempt:
            if (question := attempt.question) is not None:
                try:
                    attempt.open(
                        self._client.call(
                            SERVICE, question.method, question.request, timeout_ms=attempt.left_ms, headers=headers
                        )
                    )
                except RpcError as error:
                    attempt.refused(error)
                    return None
            if not attempt.has_lane:
                return None
            message, carried = attempt.lay(), attempt.carry()
            try:
                reply = self._client.call(
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
            return attempt.finish(reply, None if carried is None else carried.result())
