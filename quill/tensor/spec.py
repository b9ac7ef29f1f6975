"""What a model takes or gives under one name: a type, and a shape in which dimensions may be open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from quill.dtype import DType
from quill.errors import InvalidType, InvalidUsage
from quill.limits import MAX_TENSOR_RANK
from quill.tensor.meta import TensorMeta

if TYPE_CHECKING:
    import numpy.typing as npt

    from quill import proto

OPEN = -1
"""In a shape: any size."""

Specs: TypeAlias = "Mapping[str, TensorSpec | tuple[DType | npt.DTypeLike, Sequence[int]]]"
"""Specifications by name: TensorSpecs, or type and shape: ``{"x": ("float32", [-1, 3])}``."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The type and the shape of an input or an output of a model.

    Raises:
        InvalidType: ``dtype`` is no DType.
        InvalidUsage: A dimension is below -1, or there are more than 64.
    """

    dtype: DType
    shape: tuple[int, ...]
    """The dimensions, outermost first; -1 where any size will do."""

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, DType):
            raise InvalidType(f"dtype must be a DType, got {self.dtype!r}")
        if any(isinstance(size, bool) or not isinstance(size, int) for size in self.shape):
            raise InvalidType(f"a dimension must be an int, got {self.shape!r}")
        if len(self.shape) > MAX_TENSOR_RANK:
            raise InvalidUsage(f"a tensor has at most {MAX_TENSOR_RANK} dimensions, got {len(self.shape)}")
        if any(size < OPEN for size in self.shape):
            raise InvalidUsage(f"a dimension must be at least 0, or -1 for any size, got {min(self.shape)}")

    def fits(self, meta: TensorMeta) -> bool:
        """Whether a tensor is such a one."""
        return (
            meta.dtype.number == self.dtype.number
            and meta.ndim == len(self.shape)
            and all(want in (OPEN, size) for want, size in zip(self.shape, meta.shape, strict=True))
        )

    def to_proto(self, name: str) -> proto.TensorMeta:
        """The inference.v1.TensorMeta message of a signature."""
        from quill import proto

        number: Any = self.dtype.number  # the stub gives each enum an int type of its own
        return proto.TensorMeta(shape=self.shape, dtype=number, name=name)

    @classmethod
    def from_proto(cls, message: proto.TensorMeta) -> TensorSpec:
        """The specification that a signature's TensorMeta stands for.

        Raises:
            InvalidType: Its type is not known.
            InvalidUsage: Its shape is none.
        """
        return cls(DType.from_number(message.dtype), tuple(message.shape))

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def specs_of(given: Specs) -> dict[str, TensorSpec]:
    """Specifications as people write them.

    Raises:
        InvalidType: They are no mapping from names to pairs of type and shape.
        InvalidUsage: As for TensorSpec.
    """
    if not isinstance(given, Mapping):
        raise InvalidType(f"specifications are a mapping by name, got {type(given).__name__}")
    return {_name(name): _spec(name, one) for name, one in given.items()}


def _spec(name: str, given: Any) -> TensorSpec:
    if isinstance(given, TensorSpec):
        return given
    try:
        dtype, shape = given
        dimensions = tuple(shape)
    except (TypeError, ValueError):
        raise InvalidType(
            f"{name!r} must be a pair of type and shape, as ('float32', [-1, 3]), got {given!r}"
        ) from None
    return TensorSpec(dtype if isinstance(dtype, DType) else DType.from_numpy(dtype), dimensions)


def _name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidType(f"the name of a tensor must be a text of at least one character, got {name!r}")
    return name
