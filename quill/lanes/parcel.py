"""What a call of TensorService moves in one direction, whatever the lane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quill.tensor import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """Named tensors, and what is said about them: a request with its inputs, or a reply with its outputs."""

    model: str = ""
    """The name of the model; a request may leave it empty where the server has one."""
    request_id: str = ""
    """The caller's name for the call."""
    tensors: Mapping[str, Tensor]
    """By name, in their order. Each has its name."""
    outputs: tuple[str, ...] = ()
    """Of a request: the names of the outputs wanted; all where empty."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Settings that the model documents."""

    @property
    def size_bytes(self) -> int:
        """The elements of all tensors together."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())
