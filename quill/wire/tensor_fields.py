"""The messages around tensors as plain fields: what the wire says, without a meaning and without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class LaneFields:
    """An inference.v1.LaneRef."""

    handle: str = ""
    offset: int = 0


@dataclass(slots=True)
class TensorFields:
    """An inference.v1.Tensor with its TensorMeta, or a TensorMeta alone. Nothing of it has been checked.

    What is read into it views the message. What is written from it may be any contiguous buffer.
    """

    shape: Sequence[int] = ()
    dtype: int = 0
    data: memoryview | bytes = b""
    name: str | None = None
    device: int = 0
    strides: Sequence[int] = ()
    requires_grad: bool | None = None
    byte_size: int = 0
    compression: int = 0
    lane: LaneFields | None = None


@dataclass(slots=True)
class InferFields:
    """An inference.v1.InferRequest with its inputs, or an InferResponse with its outputs as ``tensors``."""

    model: str = ""
    request_id: str = ""
    tensors: list[TensorFields] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    """The names of the outputs wanted; a response has none."""
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class ChunkFields:
    """An inference.v1.TensorChunk."""

    sequence: int = 0
    total_chunks: int = 0
    data: memoryview | bytes = b""
    is_final: bool = False
    tensor_index: int = 0
    offset: int = 0
    crc32c: int = 0
