"""The arithmetic of embeddings against exact fractions and the nearest number of each type."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.dtype import DType
from quill.errors import InvalidArgument
from quill.llm.vectors import pool, shape
from quill.proto import Pooling

ROWS = st.integers(1, 6).flatmap(
    lambda size: st.lists(st.lists(st.integers(-8, 8), min_size=size, max_size=size), min_size=1, max_size=5)
)

EXPECTED = {
    Pooling.POOLING_MEAN: lambda rows: [
        float(Fraction(sum(column), len(column))) for column in zip(*rows, strict=True)
    ],
    Pooling.POOLING_CLS: lambda rows: rows[0],
    Pooling.POOLING_LAST: lambda rows: rows[-1],
    Pooling.POOLING_MAX: lambda rows: [max(column) for column in zip(*rows, strict=True)],
    Pooling.POOLING_NONE: lambda rows: rows,
}


@settings(max_examples=50)
@given(ROWS)
@pytest.mark.parametrize("pooling", EXPECTED, ids=Pooling.Name)
def test_rows_are_pooled_exactly(pooling, rows):
    got = pool(np.array(rows, np.float32), pooling)
    assert got.dtype == np.float64
    assert got.tolist() == EXPECTED[pooling](rows)


def unit(vector):
    length = Fraction(math.sqrt(sum(Fraction(value) ** 2 for value in vector)))
    return [float(Fraction(value) / length) if length else 0.0 for value in vector]


@settings(max_examples=100)
@given(ROWS, st.booleans(), st.integers(1, 6))
def test_vectors_are_cut_and_then_scaled_to_length_one(rows, normalize, dimensions):
    dimensions = min(dimensions, len(rows[0]))
    got = shape(np.array(rows, np.float64), dimensions=dimensions, normalize=normalize, dtype=DType.float64())
    kept = [row[:dimensions] for row in rows]
    assert got.shape == [len(rows), dimensions]
    assert got.to_numpy().tolist() == [unit(row) if normalize else row for row in kept]


def bits(value, dtype):
    """The nearest number of a type of ``dtype``'s exponent and mantissa, ties to even, as its bits."""
    exponent_bits, mantissa_bits = {"float16": (5, 10), "bfloat16": (8, 7), "float32": (8, 23)}[dtype]
    bias = 2 ** (exponent_bits - 1) - 1
    exact = abs(Fraction(value))
    exponent = max(1 - bias, math.floor(math.log2(exact)) if exact else 1 - bias)
    scaled = round(exact / Fraction(2) ** (exponent - mantissa_bits))  # Fraction rounds half to even
    magnitude = scaled + ((exponent - 1 + bias) << mantissa_bits)
    return magnitude | (math.copysign(1, value) < 0) << (exponent_bits + mantissa_bits)


@settings(max_examples=300)
@given(st.floats(-1, 1, width=32))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_are_rounded_to_the_nearest_of_the_type(dtype, value):
    tensor = shape(np.array([value]), dimensions=1, normalize=False, dtype=getattr(DType, dtype)())
    assert (str(tensor.dtype), tensor.shape) == (dtype, [1])
    assert int.from_bytes(tensor.tobytes(), "little") == bits(value, dtype)


def test_a_value_that_is_too_large_for_the_type_is_refused():
    with pytest.raises(
        InvalidArgument, match=r"dtype=float16 does not hold this embedding, whose largest value is 1e\+06"
    ):
        shape(np.array([1.0, -1e6]), dimensions=2, normalize=False, dtype=DType.float16())
    assert shape(np.array([-1e6]), dimensions=1, normalize=True, dtype=DType.float16()).to_numpy().tolist() == [-1]


def test_what_the_engine_gave_as_infinite_stays_so():
    given_values = np.array([np.inf, 1.0])
    tensor = shape(given_values, dimensions=2, normalize=False, dtype=DType.float16())
    assert tensor.to_numpy().tolist() == [np.inf, 1.0]


def test_a_vector_of_zeros_stays_so():
    tensor = shape(np.zeros((2, 3)), dimensions=2, normalize=True, dtype=DType.float32())
    assert tensor.to_numpy().tolist() == [[0, 0], [0, 0]]


def test_the_length_does_not_depend_on_the_order_of_the_values():
    values = np.array([1e8, *[1e-8] * 1000, 1e8, 1.0])
    forth = shape(values, dimensions=1003, normalize=True, dtype=DType.float64()).to_numpy()
    back = shape(values[::-1], dimensions=1003, normalize=True, dtype=DType.float64()).to_numpy()
    assert forth.tolist() == back[::-1].tolist()
