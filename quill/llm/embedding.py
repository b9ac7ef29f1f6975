"""Embed: inputs checked and split, given to the embedder of a model, and its vectors as tensors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from quill.dtype import DType
from quill.errors import InvalidArgument, ResourceExhausted, Unimplemented
from quill.limits import Limits
from quill.llm.backend import Embedder, Embedding, ModelInfo, UsageReport
from quill.llm.options import takes_text
from quill.llm.patience import Patience
from quill.llm.prompt import check_room, split
from quill.llm.shown import shown
from quill.llm.usage import estimated_tokens
from quill.llm.validate import check_ids, check_text_bytes, check_token_count
from quill.proto import DataType, EmbedRequest, EmbedResponse, Pooling, Usage
from quill.wire.large import offload

if TYPE_CHECKING:
    from quill.tensor import Tensor

MAX_INPUTS = 2048

_DTYPES = (DType.float32(), DType.float16(), DType.bfloat16(), DType.float64())
"""What embeddings come as; the first where the request does not say."""

_INLINE_ELEMENTS = 16 * 1024

Input = str | Sequence[int]
"""A text, or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """What is to be made of the vectors of a model."""

    pooling: Pooling.ValueType
    normalize: bool
    dimensions: int
    dtype: DType
    per_token: bool
    full_dimensions: int

    @classmethod
    def of(cls, request: EmbedRequest, model: ModelInfo, embedder: Embedder) -> Self:
        """What a request asks for, with the model's habits where it says nothing.

        Raises:
            InvalidArgument: The model cannot do it. The message names the option and the value.
        """
        return cls(
            pooling=_pooling(request, model, embedder),
            normalize=_normalize(request, model, embedder),
            dimensions=_dimensions(request, model, embedder),
            dtype=_dtype(request),
            per_token=embedder.per_token,
            full_dimensions=embedder.dimensions,
        )

    async def tensor(self, embedding: Embedding) -> Tensor:
        """The tensor of what the embedder gave for one input.

        Raises:
            ValueError: Its shape is not what the embedder says of itself.
        """
        shape, expected = embedding.values.shape, (self.full_dimensions,)
        if shape[-1:] != expected or len(shape) != 1 + self.per_token or 0 in shape:
            raise ValueError(f"the embedder gave values of shape {shape}, and says that it has {expected} dimensions")
        return await offload(embedding.values.size, _INLINE_ELEMENTS, self._tensor, embedding)

    def _tensor(self, embedding: Embedding) -> Tensor:
        from quill.llm import vectors  # loads numpy

        values = vectors.pool(embedding.values, self.pooling if self.per_token else Pooling.POOLING_NONE)
        return vectors.shape(values, dimensions=self.dimensions, normalize=self.normalize, dtype=self.dtype)


async def embed(request: EmbedRequest, model: ModelInfo, limits: Limits, patience: Patience) -> EmbedResponse:
    """The embeddings of a request.

    Raises:
        Unimplemented: The model has no embedder.
        InvalidArgument: A value makes no sense or the model cannot do it; or an input is empty or does not fit.
        ResourceExhausted: The inputs or the reply are larger than the server takes.
    """
    embedder = model.embedder
    if embedder is None:
        raise Unimplemented(f"inference.v1.LLMService/Embed is not offered by model {model.name}")
    form = _Form.of(request, model, embedder)
    _check_inputs(request, model, limits)
    inputs = []
    for place in range(len(request.inputs)):
        inputs.append(await patience.wait(_prepared(request, place, model)))
        await asyncio.sleep(0)  # a tokenizer may never wait, and there are many inputs
    reply = EmbedResponse(model=model.name)
    reports: list[UsageReport] = []
    size = 0
    async with aclosing(_answers(embedder, inputs, patience)) as events:
        async for event in events:
            if isinstance(event, UsageReport):
                reports.append(event)
                continue
            tensor = (await form.tensor(event)).encode()
            size += len(tensor)
            _check_reply(size, len(reply.embeddings) + 1, len(inputs), limits)
            reply.embeddings.add().MergeFromString(tensor)
    if len(reply.embeddings) != len(inputs):
        raise ValueError(f"the embedder gave {len(reply.embeddings)} embeddings for {len(inputs)} inputs")
    reply.usage.CopyFrom(_usage(reports, inputs))
    return reply


def _check_reply(size: int, embeddings: int, inputs: int, limits: Limits) -> None:
    if size > limits.max_reply_bytes:
        raise ResourceExhausted(
            f"the embeddings of {embeddings} of {inputs} inputs have {size} bytes and max_reply_bytes is "
            f"{limits.max_reply_bytes}; ask for fewer at once"
        )


def _pooling(request: EmbedRequest, model: ModelInfo, embedder: Embedder) -> Pooling.ValueType:
    asked = request.pooling
    if asked not in Pooling.values():
        raise InvalidArgument(f"pooling={asked} is not known; there are 0 to {max(Pooling.values())}")
    if embedder.per_token:
        return asked or embedder.pooling
    if asked and asked != embedder.pooling:
        own = f"it pools by {Pooling.Name(embedder.pooling)}" if embedder.pooling else "leave pooling out"
        raise InvalidArgument(f"pooling={Pooling.Name(asked)} is not supported by model {model.name}: {own}")
    return embedder.pooling


def _normalize(request: EmbedRequest, model: ModelInfo, embedder: Embedder) -> bool:
    if embedder.normalized and request.HasField("normalize") and not request.normalize:
        raise InvalidArgument(
            f"normalize=false is not supported by model {model.name}: its vectors come scaled to length 1"
        )
    return request.normalize or embedder.normalized


def _dimensions(request: EmbedRequest, model: ModelInfo, embedder: Embedder) -> int:
    full = embedder.dimensions
    if not request.HasField("dimensions"):
        return full
    if not 1 <= request.dimensions <= full:
        raise InvalidArgument(f"dimensions={request.dimensions} must be from 1 to {full} for model {model.name}")
    if request.dimensions < full and not embedder.shortens:
        raise InvalidArgument(
            f"dimensions={request.dimensions} is not supported by model {model.name}: "
            f"its vectors are of use only with all {full} dimensions"
        )
    return request.dimensions


def _dtype(request: EmbedRequest) -> DType:
    for dtype in _DTYPES:
        if request.dtype in (DataType.DATA_TYPE_UNSPECIFIED, dtype.number):
            return dtype
    name = DataType.Name(request.dtype) if request.dtype in DataType.values() else request.dtype
    raise InvalidArgument(f"dtype={name} is not supported: embeddings come as {', '.join(map(str, _DTYPES))}")


def _check_inputs(request: EmbedRequest, model: ModelInfo, limits: Limits) -> None:
    if not 1 <= len(request.inputs) <= MAX_INPUTS:
        raise InvalidArgument(f"inputs has {len(request.inputs)} inputs, must be from 1 to {MAX_INPUTS}")
    check_text_bytes("inputs", sum(len(item.text.encode()) for item in request.inputs), limits)
    check_token_count("inputs", sum(len(item.token_ids.ids) for item in request.inputs), limits)
    for place, item in enumerate(request.inputs):
        name = f"inputs[{place}]"
        kind = item.WhichOneof("input")
        if kind is None:
            raise InvalidArgument(f"{name} has no input: give text or token_ids")
        if not (item.text or item.token_ids.ids):
            raise InvalidArgument(f"{name}.{kind} is empty: there is nothing to embed")
        if not (takes_text(model) if kind == "text" else model.token_prompt):
            raise InvalidArgument(f"{name}.{kind} is not supported by model {model.name}")
        check_room(name, len(item.token_ids.ids), model, most=model.context_length)
        check_ids(f"{name}.token_ids", item.token_ids.ids, model)


async def _prepared(request: EmbedRequest, place: int, model: ModelInfo) -> Input:
    """One input as the embedder takes it."""
    name, item = f"inputs[{place}]", request.inputs[place]
    if item.HasField("token_ids"):
        return list(item.token_ids.ids)
    if model.text_prompt:
        return item.text
    columns = await split(name, item.text, model, most=model.context_length)
    if not columns.ids:
        raise InvalidArgument(f"{name}.text={shown(item.text)} has no tokens: there is nothing to embed")
    return columns.ids


async def _answers(
    embedder: Embedder, inputs: Sequence[Input], patience: Patience
) -> AsyncGenerator[Embedding | UsageReport, None]:
    """What the embedder tells. Others have their turn before each event, whether it waits or not."""
    iterator = embedder.embed(inputs)
    try:
        while True:
            await asyncio.sleep(0)
            event = await patience.wait(anext(iterator, None))
            if event is None:
                return
            yield event
    finally:
        await patience.close(iterator)


def _usage(reports: Sequence[UsageReport], inputs: Sequence[Input]) -> Usage:
    """The engine's own counts; where it tells none, the tokens that it was given, or an estimate for text."""
    if reports:
        told = [report.usage for report in reports]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in told),
            cached_tokens=sum(usage.cached_tokens for usage in told),
            estimated=any(usage.estimated for usage in told),
        )
    texts = [item for item in inputs if isinstance(item, str)]
    counted = sum(len(item) for item in inputs if not isinstance(item, str))
    estimate = sum(estimated_tokens(len(text.encode())) for text in texts)
    return Usage(prompt_tokens=counted + estimate, estimated=bool(texts))
