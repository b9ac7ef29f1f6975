"""What a server tells of a tensor model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quill.client.calls import Question
from quill.errors import Internal, InvalidType, InvalidUsage
from quill.tensor.spec import TensorSpec

if TYPE_CHECKING:
    from quill import proto


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """The inputs and outputs of a tensor model, by name. None of a kind: it takes or gives whatever comes."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


def describing(name: str) -> Question[TensorSignature]:
    """The call for what ``Tensors.model`` was given.

    Raises:
        InvalidType: The name is no text.
    """
    from quill.proto import GetTensorModelRequest

    if not isinstance(name, str):
        raise InvalidType(f"the name of a model must be str, got {type(name).__name__}")
    return Question("GetTensorModel", GetTensorModelRequest(name=name), _signature)


def _signature(reply: proto.GetTensorModelResponse) -> TensorSignature:
    return TensorSignature(reply.name, _specs(reply.inputs), _specs(reply.outputs))


def _specs(metas: Iterable[proto.TensorMeta]) -> dict[str, TensorSpec]:
    try:
        return {meta.name: TensorSpec.from_proto(meta) for meta in metas}
    except (InvalidType, InvalidUsage) as error:
        raise Internal(f"the reply's signature cannot be read: {error}") from None
