"""What a call of a tensor model gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quill.lanes.lane import Lane
from quill.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class InferResult(Mapping[str, "NDArray[Any]"]):
    """The outputs of one call, by name: a mapping to numpy arrays.

    Arrays that were given as ``out=`` are there themselves. Others are views of what was received: read-only where they
    came in one message, writable otherwise. Of shared memory those above 8 MiB together keep the region: no other
    call uses it meanwhile.
    """

    tensors: Mapping[str, Tensor]
    """The same as Tensors, which other libraries take without a copy: ``torch.from_dlpack(result.tensors["y"])``."""
    model: str
    """The name of the model that ran."""
    request_id: str
    """The caller's name for the call, or the one that the server made."""
    parameters: Mapping[str, str]
    """What the model said of this run."""
    lane: Lane
    """How the elements of the reply came."""
    _own: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    """The arrays of ``out=``."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        own = self._own.get(name)
        return self.tensors[name].to_numpy() if own is None else own

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far the elements of a call have come, in bytes."""

    sent_bytes: int
    to_send_bytes: int
    received_bytes: int
    to_receive_bytes: int | None
    """None until the server has said how many there are."""
