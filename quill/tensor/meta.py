"""A tensor without its elements: shape, type and name, and their form in the contract."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any, SupportsIndex

from quill.dtype import DType
from quill.errors import InvalidType, InvalidUsage, ResourceExhausted
from quill.limits import MAX_TENSOR_RANK, Limits
from quill.wire.tensor_fields import TensorFields

if TYPE_CHECKING:
    from quill import proto

_MAX_TENSOR_BYTES = 2**63 - 1
"""What a signed 64-bit size can say."""


class TensorMeta:
    """The shape, type and name of a tensor. Immutable; compares by value.

    Args:
        shape: The dimensions, outermost first; empty for a scalar.
        dtype: The type of one element.
        name: The name under which a model knows the tensor.

    Raises:
        InvalidUsage: A dimension is negative, there are more than 64, or a tensor of the dimensions that are
            not 0 would take more than 2**63 - 1 bytes.
        InvalidType: A dimension is no int, or ``dtype`` or ``name`` is not what it should be.
    """

    __slots__ = ("_dtype", "_name", "_shape", "_size_bytes")

    def __init__(self, shape: Iterable[SupportsIndex], dtype: DType, name: str | None = None) -> None:
        if not isinstance(dtype, DType):
            raise InvalidType(f"dtype must be a DType, got {dtype!r}; DType.from_numpy() converts")
        self._shape = _checked_shape(shape, dtype)
        self._dtype = dtype
        self._name = _checked_name(name)
        self._size_bytes = math.prod(self._shape) * dtype.element_size

    @property
    def shape(self) -> list[int]:
        """The dimensions, outermost first; a new list each time."""
        return list(self._shape)

    @property
    def dtype(self) -> DType:
        """The type of one element."""
        return self._dtype

    @property
    def name(self) -> str | None:
        """The name under which a model knows the tensor."""
        return self._name

    @property
    def ndim(self) -> int:
        """The number of dimensions; 0 for a scalar."""
        return len(self._shape)

    @property
    def num_elements(self) -> int:
        """The product of the dimensions; 1 for a scalar."""
        return math.prod(self._shape)

    @property
    def size_bytes(self) -> int:
        """The size of the elements."""
        return self._size_bytes

    def to_proto(self) -> proto.TensorMeta:
        """The inference.v1.TensorMeta message."""
        from quill import proto

        number: Any = self._dtype.number  # the stub gives each enum an int type of its own
        return proto.TensorMeta(shape=self._shape, dtype=number, name=self._name)

    @classmethod
    def from_proto(cls, message: proto.TensorMeta, limits: Limits | None = None) -> TensorMeta:
        """The meta of an inference.v1.TensorMeta message. The device and requires_grad are not kept.

        Args:
            message: From whomever.
            limits: What a service accepts, of bytes and of dimensions; looked at before anything is allocated.

        Raises:
            ResourceExhausted: The tensor is larger, or has more dimensions, than the limits allow.
            InvalidUsage: Shape, type, strides and byte_size do not agree or are no tensor's, or the elements
                are compressed.
            InvalidType: ``message`` is no inference.v1.TensorMeta.
        """
        from quill import proto

        if not isinstance(message, proto.TensorMeta):
            raise InvalidType(f"from_proto takes an inference.v1.TensorMeta message, got {type(message).__name__}")
        fields = fields_of(message)
        meta = cls.from_fields(fields, limits)
        meta.check_plain(fields)
        return meta

    @classmethod
    def from_fields(cls, fields: TensorFields, limits: Limits | None = None) -> TensorMeta:
        """As ``from_proto``, of what Quill's own codec read. Its elements may be compressed."""
        if limits is not None and len(fields.shape) > limits.max_tensor_rank:
            raise ResourceExhausted(
                f"a tensor has {len(fields.shape)} dimensions and max_tensor_rank is {limits.max_tensor_rank}"
            )
        try:
            dtype = DType.from_number(fields.dtype)
        except InvalidType as error:
            raise InvalidUsage(f"the tensor's dtype: {error}") from None
        meta = cls(fields.shape, dtype, fields.name)
        if limits is not None and meta.size_bytes > limits.max_tensor_bytes:
            raise ResourceExhausted(
                f"{meta} has {meta.size_bytes} bytes and max_tensor_bytes is {limits.max_tensor_bytes}"
            )
        if fields.byte_size not in (0, meta.size_bytes):
            raise InvalidUsage(f"{meta} needs {meta.size_bytes} bytes, its byte_size says {fields.byte_size}")
        if fields.strides:
            meta._check_strides(fields.strides)
        return meta

    def check_plain(self, fields: TensorFields) -> None:
        """Make sure that the elements are not compressed.

        Raises:
            InvalidUsage: They are.
        """
        if fields.compression:
            raise InvalidUsage(
                f"{self} has compression {fields.compression}; only calls of TensorService take compressed elements, "
                "send them uncompressed"
            )

    def _check_strides(self, strides: Sequence[int]) -> None:
        """Accept what numpy calls C-contiguous: a dimension of 1 may have any stride, and so may an empty tensor's."""
        if len(strides) != self.ndim:
            raise InvalidUsage(f"{self} has {self.ndim} dimensions, but {len(strides)} strides")
        expected = [math.prod(self._shape[axis + 1 :]) for axis in range(self.ndim)]
        for stride, want, dimension in zip(strides, expected, self._shape, strict=True):
            if stride != want and dimension != 1 and self.num_elements:
                raise InvalidUsage(f"{self} has strides {list(strides)}, only those of C order are taken: {expected}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorMeta):
            return NotImplemented
        return (self._shape, self._dtype, self._name) == (other._shape, other._dtype, other._name)

    def __hash__(self) -> int:
        return hash((self._shape, self._dtype, self._name))

    def __repr__(self) -> str:
        name = "" if self._name is None else f", name={self._name!r}"
        return f"TensorMeta(shape={self.shape}, dtype={self._dtype}{name})"

    def __str__(self) -> str:
        return f"tensor {self.shape} {self._dtype}"


def fields_of(message: proto.TensorMeta) -> TensorFields:
    """What an inference.v1.TensorMeta message says, as Quill's own codec reads it."""
    return TensorFields(
        shape=message.shape,
        dtype=message.dtype,
        name=message.name if message.HasField("name") else None,
        strides=message.strides,
        byte_size=message.byte_size,
        compression=message.compression,
    )


def _checked_shape(shape: Iterable[SupportsIndex], dtype: DType) -> tuple[int, ...]:
    if type(shape) is not tuple and (isinstance(shape, str | bytes) or not isinstance(shape, Iterable)):
        raise InvalidType(f"shape must be a list of ints, got {shape!r}")
    # A message may name millions of dimensions; no more are looked at than it takes to refuse it.
    dimensions = tuple(map(_checked_dimension, islice(shape, MAX_TENSOR_RANK + 1)))
    if len(dimensions) > MAX_TENSOR_RANK:
        count = len(shape) if isinstance(shape, Sized) else "more"
        raise InvalidUsage(f"a tensor has at most {MAX_TENSOR_RANK} dimensions, got {count}")
    # Zeros count as 1: numpy bounds the product of the other dimensions, too.
    span_bytes = math.prod(filter(None, dimensions)) * dtype.element_size
    if span_bytes > _MAX_TENSOR_BYTES:
        raise InvalidUsage(
            f"tensor {list(dimensions)} {dtype} spans {span_bytes} bytes, the most is {_MAX_TENSOR_BYTES}"
        )
    return dimensions


def _checked_dimension(value: SupportsIndex) -> int:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, bool):
        raise InvalidType(f"a dimension must be an int, got {value!r}")
    try:
        dimension = operator.index(value)
    except TypeError:
        raise InvalidType(f"a dimension must be an int, got {value!r}") from None
    if dimension < 0:
        raise InvalidUsage(f"a dimension must be at least 0, got {dimension}")
    return dimension


def _checked_name(name: str | None) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str):
        raise InvalidType(f"name must be str or None, got {type(name).__name__}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidUsage(f"name {name!r} has a lone surrogate at index {error.start}, which has no UTF-8") from None
    return name
