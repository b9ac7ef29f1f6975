"""Where a caller wants its outputs: arrays of its own, written to without a copy between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from quill.dtype import DType
from quill.errors import InvalidType, InvalidUsage
from quill.tensor import Tensor, TensorMeta
from quill.tensor.values import ArrayLike, tensor_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Destination:
    """The arrays of ``out=``.

    Args:
        out: By name of the output: writable, C-contiguous, little-endian, in memory of the CPU. None for none.

    Raises:
        InvalidUsage: An array cannot be written to in place.
        InvalidType: One is no array, or ``out`` no mapping.
    """

    def __init__(self, out: Mapping[str, ArrayLike] | None) -> None:
        if out is not None and not isinstance(out, Mapping):
            raise InvalidType(f"out must be a mapping of names to arrays, got {type(out).__name__}")
        self.arrays: dict[str, NDArray[Any]] = {name: _array(name, value) for name, value in (out or {}).items()}
        """What is written to, by name."""
        self._metas = {
            name: TensorMeta(array.shape, DType.from_numpy(array.dtype), name) for name, array in self.arrays.items()
        }

    @property
    def size_bytes(self) -> int:
        """All arrays together."""
        return sum(meta.size_bytes for meta in self._metas.values())

    @property
    def largest_bytes(self) -> int:
        """The largest of them."""
        return max((meta.size_bytes for meta in self._metas.values()), default=0)

    def place(self, meta: TensorMeta) -> memoryview | None:
        """The memory for an output of the reply; None where the caller gave none.

        Raises:
            InvalidUsage: Its type or shape is another than that of the caller's array.
        """
        import numpy as np

        if meta.name not in self.arrays:
            return None
        wanted = self._metas[meta.name]
        if wanted != meta:
            raise InvalidUsage(f"the output {meta.name!r} is {meta}, and out has {wanted} for it")
        return self.arrays[meta.name].reshape(-1).view(np.uint8).data

    def fill(self, tensor: Tensor) -> Tensor:
        """An output of the reply where its caller wants it: copied there, or as it is where the caller does not say.

        Raises:
            InvalidUsage: As for ``place``.
        """
        room = self.place(tensor.meta)
        if room is None:
            return tensor
        room[:] = tensor.data
        return Tensor.from_numpy(self.arrays[tensor.name or ""], tensor.name)

    def check_filled(self, names: Iterable[str]) -> None:
        """Make sure that every array has an output.

        Raises:
            InvalidUsage: One has none.
        """
        missing = sorted(set(self.arrays) - set(names))
        if missing:
            there = ", ".join(sorted(names)) or "none"
            raise InvalidUsage(f"out has an array for {missing[0]!r}, which is no output; the reply has: {there}")


def _array(name: str, value: ArrayLike) -> NDArray[Any]:
    """A numpy array over the memory of a caller's array."""
    import numpy as np

    array = value if isinstance(value, np.ndarray) else tensor_of(name, value).to_numpy()
    DType.from_numpy(array.dtype)
    if not (array.flags.c_contiguous and array.flags.writeable and array.dtype == array.dtype.newbyteorder("<")):
        raise InvalidUsage(
            f"out[{name!r}] cannot be written to in place: it must be writable, C-contiguous and in the machine's order"
        )
    return array
