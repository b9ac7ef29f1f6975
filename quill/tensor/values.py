"""Arrays of whatever library as tensors: numpy's, and all that speak DLPack, without importing their libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from quill.errors import InvalidType, InvalidUsage
from quill.tensor.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ArrayLike: TypeAlias = "Tensor | NDArray[Any] | np.generic | Any"
"""A numpy array or scalar, a Tensor, or anything with ``__dlpack__`` in memory of the CPU."""


def tensor_of(name: str, value: ArrayLike) -> Tensor:
    """The tensor of a value. A view where its library allows that: C-contiguous, little-endian, in memory of the CPU.

    Raises:
        InvalidType: It is no array, or its elements are of a type that cannot be sent.
        InvalidUsage: Its library does not give its elements, or a bool array holds a byte other than 0 and 1.
    """
    import numpy as np

    try:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, np.ndarray | np.generic):
            return Tensor.from_numpy(value, name)
        if hasattr(value, "__dlpack__"):
            return Tensor.from_dlpack(value, name)
    except InvalidType as error:
        raise InvalidType(f"tensor {name!r}: {error}") from None
    except InvalidUsage as error:
        raise InvalidUsage(f"tensor {name!r}: {error}") from None
    raise InvalidType(
        f"tensor {name!r} must be a numpy array, a Tensor or an array that speaks DLPack, got {type(value).__name__}; "
        "numpy.asarray() makes one"
    )


def tensors_of(values: Mapping[str, ArrayLike]) -> dict[str, Tensor]:
    """The tensors of named values.

    Raises:
        InvalidType: As for ``tensor_of``; or ``values`` is no mapping from names.
        InvalidUsage: As for ``tensor_of``; or a name is empty.
    """
    if not isinstance(values, Mapping):
        raise InvalidType(f"tensors are given as a mapping by name, got {type(values).__name__}")
    for name in values:
        if not isinstance(name, str):
            raise InvalidType(f"the name of a tensor must be str, got {type(name).__name__}")
        if not name:
            raise InvalidUsage("a tensor has an empty name: models know tensors by their names")
    return {name: tensor_of(name, value) for name, value in values.items()}
