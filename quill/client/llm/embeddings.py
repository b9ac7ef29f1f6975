"""Embeddings: what to embed as a request, and the reply as one array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from quill.client.calls import Question
from quill.client.llm.fields import filled, several, shown, token_ids
from quill.client.llm.fold import usage
from quill.dtype import DType
from quill.errors import Internal, InvalidType, InvalidUsage, QuillError
from quill.generation import Usage
from quill.tensor import Tensor
from quill.wire.tensor_codec import decode_embed_response
from quill.wire.tensor_fields import TensorFields

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quill import proto

Pooling = Literal["mean", "cls", "last", "max", "none"]
"""How token vectors become one vector: their mean, the first, the last, the largest value of each dimension, or not."""

EmbedInputs = Iterable[str | SupportsIndex | Iterable[SupportsIndex]]
"""A text, the token ids of one input, or several such inputs: one type, so that checkers need not choose."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """The vectors of some inputs, in the order of the inputs.

    ``len()`` is the number of inputs. ``embeddings[i]`` and iteration give the vector of an input: a view of shape
    (dimensions,), or of shape (tokens, dimensions) where each token has a vector of its own.
    """

    vectors: NDArray[np.floating[Any]]
    """One row per input, (inputs, dimensions); with pooling ``"none"`` one row per token, those of the first input
    first. C-contiguous, writable, of the type that was asked for: float32 where nothing was."""
    rows: tuple[int, ...] | None
    """How many rows each input has, where each token has one; None where each input has one."""
    model: str
    """The name of the model that ran."""
    usage: Usage
    """What the call consumed."""

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.vectors) if self.rows is None else len(self.rows)

    def __getitem__(self, index: SupportsIndex) -> NDArray[np.floating[Any]]:
        place = range(len(self))[index]  # an IndexError of its own, and negative ones from the end
        if self.rows is None:
            vector: NDArray[np.floating[Any]] = self.vectors[place]
            return vector
        start = sum(self.rows[:place])
        return self.vectors[start : start + self.rows[place]]

    def __iter__(self) -> Iterator[NDArray[np.floating[Any]]]:
        return (self[place] for place in range(len(self)))


def embedding(
    inputs: EmbedInputs,
    *,
    model: str | None,
    pooling: Pooling | None,
    normalize: bool | None,
    dimensions: int | None,
    dtype: DType | None,
) -> Question[Embeddings]:
    """The call for what ``LLM.embed`` was given.

    Raises:
        InvalidUsage: There is no input, or an option is out of range.
        InvalidType: An input or an option is of the wrong type.
    """
    from quill.proto import EmbedRequest

    if dtype is not None and not isinstance(dtype, DType):
        raise InvalidType(f"dtype must be a DType, got {shown(dtype)}")
    given = _inputs(inputs)
    options = {
        "model": model,
        "pooling": None if pooling is None else _pooling(pooling),
        "normalize": normalize,
        "dimensions": dimensions,
        "dtype": None if dtype is None else dtype.number,
    }
    request = filled(EmbedRequest(inputs=given), options, {})
    form = _Form(len(given), dimensions, dtype or DType.float32(), per_token=pooling == "none")
    # As bytes, so that the vectors are copied once, into the array.
    return Question("Embed", request.SerializeToString(), form.embeddings)


@dataclass(frozen=True, slots=True)
class _Form:
    """What a reply must have."""

    inputs: int
    dimensions: int | None
    dtype: DType
    per_token: bool

    def embeddings(self, serialized: bytes) -> Embeddings:
        """The value of a serialized EmbedResponse.

        Raises:
            Internal: The reply has not the form that was asked for.
        """
        import numpy as np

        tensors, reply = _taken_apart(serialized)
        if len(tensors) != self.inputs:
            raise Internal(f"the reply has {len(tensors)} embeddings for {self.inputs} inputs")
        arrays = [self._array(place, fields) for place, fields in enumerate(tensors)]
        widths = [array.shape[-1] for array in arrays]
        expected = widths[0] if self.dimensions is None else self.dimensions
        for place, width in enumerate(widths):
            if width != expected:
                raise Internal(f"embedding {place} of the reply has {width} dimensions, expected {expected}")
        if not self.per_token:
            return Embeddings(np.stack(arrays), None, reply.model, usage(reply.usage))
        rows = tuple(len(array) for array in arrays)
        return Embeddings(np.concatenate(arrays), rows, reply.model, usage(reply.usage))

    def _array(self, place: int, fields: TensorFields) -> NDArray[Any]:
        """A view of one tensor of the reply."""
        try:
            tensor = Tensor.from_fields(fields)
        except QuillError as error:
            raise Internal(f"embedding {place} of the reply is no tensor: {error}") from None
        if tensor.dtype != self.dtype:
            raise Internal(f"embedding {place} of the reply is {tensor.dtype}, expected {self.dtype}")
        axes = 1 + self.per_token
        if tensor.ndim != axes or 0 in tensor.shape:
            what = "[tokens, dimensions]" if self.per_token else "[dimensions]"
            raise Internal(f"embedding {place} of the reply has shape {tensor.shape}, expected {what}")
        return tensor.to_numpy()


def _taken_apart(serialized: bytes) -> tuple[list[TensorFields], proto.EmbedResponse]:
    """The tensors of an EmbedResponse, which view it, and the message without them."""
    from google.protobuf.message import DecodeError

    from quill.proto import EmbedResponse

    try:
        tensors, rest = decode_embed_response(serialized)
        return tensors, EmbedResponse.FromString(rest)
    except (InvalidUsage, DecodeError):
        raise Internal(f"the {len(serialized)} bytes of the reply are no inference.v1.EmbedResponse") from None


def _inputs(inputs: Any) -> list[proto.EmbedInput]:
    """One message for each input."""
    if isinstance(inputs, str):
        return [_input("inputs", inputs)]
    items = several("inputs", inputs)
    if not items:
        raise InvalidUsage("inputs is empty: there is nothing to embed")
    if all(isinstance(item, SupportsIndex) and not hasattr(item, "__len__") for item in items):
        return [_input("inputs", items)]
    return [_input(f"inputs[{place}]", item) for place, item in enumerate(items)]


def _input(name: str, item: Any) -> proto.EmbedInput:
    from quill.proto import EmbedInput, TokenIds

    if not isinstance(item, str):
        return EmbedInput(token_ids=TokenIds(ids=token_ids(name, item)))
    return filled(EmbedInput(), {"text": item}, {}, path=f"{name}.")


def _pooling(pooling: Any) -> int:
    from quill.proto import Pooling as Numbers

    names = {name.removeprefix("POOLING_").lower(): number for name, number in Numbers.items() if number}
    if not isinstance(pooling, str) or pooling not in names:
        raise InvalidUsage(f"pooling must be one of {', '.join(names)}, got {pooling!r}")
    return names[pooling]
