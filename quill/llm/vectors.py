"""The arithmetic of embeddings: rows of tokens pooled to one vector, cut, scaled and converted. All in float64.

The length of a vector is the square root of the exactly rounded sum of its squares, so that the same values give the
same embedding on every machine, in whatever order a processor adds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.errors import InvalidArgument
from quill.proto import Pooling
from quill.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quill.dtype import DType


def pool(rows: NDArray[np.floating[Any]], pooling: Pooling.ValueType) -> NDArray[np.float64]:
    """One vector of the rows of an input's tokens; the rows themselves with POOLING_NONE.

    Args:
        rows: [tokens, dimensions], at least one token.
        pooling: How. Of POOLING_MAX, the largest value of each dimension.

    Returns:
        float64 [dimensions], or [tokens, dimensions].
    """
    wide = rows.astype(np.float64)
    match pooling:
        case Pooling.POOLING_NONE:
            return wide
        case Pooling.POOLING_CLS:
            return np.asarray(wide[0])
        case Pooling.POOLING_LAST:
            return np.asarray(wide[-1])
        case Pooling.POOLING_MAX:
            return np.asarray(wide.max(axis=0))
        case _:
            return np.asarray(wide.mean(axis=0))


def shape(values: NDArray[np.float64], *, dimensions: int, normalize: bool, dtype: DType) -> Tensor:
    """The tensor of pooled values.

    Args:
        values: [dimensions] or [tokens, dimensions].
        dimensions: How many leading dimensions are kept.
        normalize: Whether each vector is then scaled to length 1. One of zeros stays as it is.
        dtype: A floating-point type; values are rounded to the nearest one of it.

    Raises:
        InvalidArgument: A value is too large for the type.
    """
    values = values[..., :dimensions]
    if normalize:
        values = _unit_length(values)
    with np.errstate(over="ignore"):
        converted = values.astype(dtype.to_numpy())
    if np.isinf(converted).any() and not np.isinf(values).any():
        raise InvalidArgument(
            f"dtype={dtype} does not hold this embedding, whose largest value is {np.abs(values).max():g}; "
            "ask for another, or for normalize"
        )
    return Tensor.from_numpy(converted)


def _unit_length(values: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = values.reshape(-1, values.shape[-1])
    lengths = np.array([math.sqrt(math.fsum(row)) for row in np.square(rows)])
    lengths[lengths == 0] = 1
    return np.asarray((rows / lengths[:, np.newaxis]).reshape(values.shape))
