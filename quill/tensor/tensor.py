"""A tensor: what it is, and a view of somebody's bytes.

The elements are little-endian, row-major (C order), without padding, as inference.v1.Tensor carries them.
numpy and the generated messages load when a conversion first needs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, SupportsIndex

from quill.dtype import DType
from quill.errors import InvalidType, InvalidUsage
from quill.tensor.meta import TensorMeta
from quill.wire import tensor_codec
from quill.wire.buffer import Buffer
from quill.wire.tensor_fields import TensorFields

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from quill import proto
    from quill.limits import Limits

_BOOL = DType.bool_().number


class Tensor:
    """Elements in memory that somebody owns, and what they mean.

    Made by ``from_numpy``, ``from_dlpack``, ``from_bytes``, ``zeros`` or ``decode``. A tensor is a view where it can
    be: it keeps the owner of its bytes alive, and what is written to the owner later shows in the tensor. Two tensors
    are equal when shape, dtype, name and every byte are: a NaN equals itself, 0.0 and -0.0 differ.
    """

    __slots__ = ("_data", "_meta")

    _data: memoryview
    _meta: TensorMeta

    def __init__(self) -> None:
        raise InvalidType("a Tensor is made with from_numpy, from_dlpack, from_bytes, zeros or decode")

    @classmethod
    def _of(cls, meta: TensorMeta, data: memoryview) -> Tensor:
        """The tensor over ``data``, which is contiguous and of format B."""
        if data.nbytes != meta.size_bytes:
            raise InvalidUsage(f"{meta} needs {meta.size_bytes} bytes, got {data.nbytes}")
        if meta.dtype.number == _BOOL:
            _check_bools(data)
        tensor = object.__new__(cls)
        tensor._meta = meta
        tensor._data = data
        return tensor

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any] | np.generic, name: str | None = None) -> Tensor:
        """The tensor of a numpy array, or of a numpy scalar.

        Args:
            array: C-contiguous little-endian arrays are viewed, not copied; others are copied.
            name: The name under which a model knows the tensor.

        Raises:
            InvalidType: ``array`` is no numpy array, a masked one, or of a dtype that cannot be sent.
            InvalidUsage: A bool array holds a byte other than 0 and 1, as ``numpy.empty`` may.
        """
        import numpy as np

        if not isinstance(array, np.ndarray | np.generic):
            raise InvalidType(f"from_numpy takes a numpy array, got {type(array).__name__}; numpy.asarray() makes one")
        if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
            raise InvalidType("a masked array has no form on the wire; give from_numpy what its filled() returns")
        meta = TensorMeta(array.shape, DType.from_numpy(array.dtype), name)
        flat = np.ascontiguousarray(array).reshape(-1)
        if not _is_little_endian(flat.dtype):
            flat = flat.byteswap()
        return cls._of(meta, flat.view(np.uint8).data)

    @classmethod
    def from_bytes(cls, data: Buffer, shape: Iterable[SupportsIndex], dtype: DType, name: str | None = None) -> Tensor:
        """The tensor of raw elements: little-endian, C order, no padding.

        Args:
            data: Viewed, not copied, except for a memoryview with gaps. A bytearray cannot change its size
                while the tensor lives.
            shape: The dimensions, outermost first; empty for a scalar.
            dtype: The type of one element.
            name: The name under which a model knows the tensor.

        Raises:
            InvalidUsage: The size of ``data`` is not that of the shape; a byte of a bool tensor is not 0 or 1;
                or as for TensorMeta.
            InvalidType: ``data`` is none of bytes, bytearray and memoryview; or as for TensorMeta.
        """
        return cls.from_meta(TensorMeta(shape, dtype, name), data)

    @classmethod
    def from_meta(cls, meta: TensorMeta, data: Buffer) -> Tensor:
        """As ``from_bytes``, of what is known already."""
        return cls._of(meta, _viewed(data))

    @classmethod
    def from_dlpack(cls, producer: Any, name: str | None = None) -> Tensor:
        """The tensor of an array of another library that speaks DLPack: torch, JAX, CuPy's host memory, numpy.

        Args:
            producer: In memory of the CPU. C-contiguous elements are viewed, and kept alive; others are copied.
            name: The name under which a model knows the tensor.

        Raises:
            InvalidType: ``producer`` does not speak DLPack, or its elements are of a type that cannot be sent.
            InvalidUsage: Its elements are on another device, it refuses to export them (a torch tensor that requires
                a gradient), or as for ``from_numpy``.
        """
        from quill.tensor import dlpack

        return cls.from_numpy(dlpack.to_array(producer), name)

    @classmethod
    def zeros(cls, shape: Iterable[SupportsIndex], dtype: DType, name: str | None = None) -> Tensor:
        """A tensor of zeros in memory of its own, which the view of ``to_numpy()`` writes to.

        Raises:
            InvalidUsage: As for TensorMeta.
            InvalidType: As for TensorMeta.
        """
        meta = TensorMeta(shape, dtype, name)
        return cls._of(meta, memoryview(bytearray(meta.size_bytes)))

    @property
    def meta(self) -> TensorMeta:
        """The tensor without its elements."""
        return self._meta

    @property
    def shape(self) -> list[int]:
        """The dimensions, outermost first; a new list each time."""
        return self._meta.shape

    @property
    def dtype(self) -> DType:
        """The type of one element."""
        return self._meta.dtype

    @property
    def name(self) -> str | None:
        """The name under which a model knows the tensor."""
        return self._meta.name

    @property
    def ndim(self) -> int:
        """The number of dimensions; 0 for a scalar."""
        return self._meta.ndim

    @property
    def num_elements(self) -> int:
        """The product of the dimensions; 1 for a scalar."""
        return self._meta.num_elements

    @property
    def size_bytes(self) -> int:
        """The size of the elements."""
        return self._meta.size_bytes

    @property
    def data(self) -> memoryview:
        """The raw elements: little-endian, C order. A view of format B, which keeps their owner alive."""
        return self._data

    def to_numpy(self, copy: bool = False) -> npt.NDArray[Any]:
        """The elements as a numpy array of the tensor's shape.

        Args:
            copy: False: a view of the tensor's bytes, read-only where their owner is ``bytes`` or a read-only
                array. True: a writable array of its own.
        """
        import numpy as np

        array = np.ndarray(self.shape, self.dtype.to_numpy(), buffer=self._data)
        return array.copy() if copy else array

    def tobytes(self) -> bytes:
        """The raw elements: little-endian, C order. The owner itself where it is ``bytes``, else a copy."""
        owner = self._data.obj
        if type(owner) is bytes and len(owner) == self._data.nbytes:
            return owner
        return bytes(self._data)

    def encode(self) -> bytes:
        """The serialized inference.v1.Tensor.

        Raises:
            InvalidUsage: It would be larger than a protobuf message can be, 2 GiB.
        """
        return tensor_codec.encode_tensor(self.to_fields())

    @classmethod
    def decode(cls, data: Buffer, limits: Limits | None = None) -> Tensor:
        """The tensor of a serialized inference.v1.Tensor; its elements are read-only.

        Args:
            data: From whomever. The tensor views ``bytes`` and keeps them alive, and has a copy of what can change.
            limits: What a service accepts, of bytes and of dimensions.

        Raises:
            ResourceExhausted: The tensor is larger, or has more dimensions, than the limits allow.
            InvalidUsage: The bytes are no such message, or one that ``from_proto`` refuses.
            InvalidType: ``data`` is none of bytes, bytearray and memoryview.
        """
        serialized = data if isinstance(data, bytes) else bytes(_viewed(data))
        return cls.from_fields(tensor_codec.decode_tensor(serialized), limits)

    def to_fields(self) -> TensorFields:
        """What Quill's own codec writes: a view of the elements."""
        return TensorFields(self._meta.shape, self.dtype.number, self._data, self.name)

    @classmethod
    def from_fields(cls, fields: TensorFields, limits: Limits | None = None) -> Tensor:
        """As ``from_proto``, of what Quill's own codec read: the tensor views its data."""
        meta = TensorMeta.from_fields(fields, limits)
        meta.check_plain(fields)
        if fields.lane is not None:
            raise InvalidUsage(f"{meta} lies in a lane: its elements are not in the message")
        return cls._of(meta, memoryview(fields.data))

    def to_proto(self) -> proto.Tensor:
        """The inference.v1.Tensor message, with a copy of the elements."""
        from quill import proto

        return proto.Tensor(meta=self._meta.to_proto(), data=self.tobytes())

    @classmethod
    def from_proto(cls, message: proto.Tensor, limits: Limits | None = None) -> Tensor:
        """The tensor of an inference.v1.Tensor message; its elements are a copy and read-only.

        Args:
            message: From whomever.
            limits: What a service accepts, of bytes and of dimensions.

        Raises:
            ResourceExhausted: The tensor is larger, or has more dimensions, than the limits allow.
            InvalidUsage: Shape, type, strides and sizes do not agree or are no tensor's; a byte of a bool tensor
                is not 0 or 1; or the elements are compressed, or not in the message.
            InvalidType: ``message`` is no inference.v1.Tensor.
        """
        from quill import proto

        if not isinstance(message, proto.Tensor):
            raise InvalidType(f"from_proto takes an inference.v1.Tensor message, got {type(message).__name__}")
        meta = TensorMeta.from_proto(message.meta, limits)
        if message.HasField("lane"):
            raise InvalidUsage(f"{meta} lies in a lane: its elements are not in the message")
        return cls._of(meta, memoryview(message.data))

    def __len__(self) -> int:
        return self.num_elements

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        import numpy as np

        array = self.to_numpy()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise InvalidUsage(f"{self._meta} cannot become {np.dtype(dtype)} without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack_device__(self) -> tuple[int, int]:
        """The CPU: kDLCPU, 0."""
        from quill.tensor import dlpack

        return dlpack.CPU

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule of the elements, for ``torch.from_dlpack(tensor)`` and its like.

        A view, which keeps the tensor's memory alive. A copy where ``copy`` asks for one, and where the memory is
        read-only and the consumer too old to be told (before DLPack 1.0).

        Raises:
            BufferError: The elements are float8, another device or a stream is wanted, or a copy is needed and
                ``copy`` is False.
        """
        from quill.tensor import dlpack

        if stream is not None:
            raise BufferError(f"memory of the CPU has no streams, got stream={stream!r}")
        if dl_device is not None and tuple(map(int, dl_device)) != dlpack.CPU:
            raise BufferError(f"the elements are on the CPU, DLPack device {dlpack.CPU}, and wanted on {dl_device}")
        return dlpack.export(self.to_numpy(), self.dtype, max_version=max_version, copy=copy)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return self._meta == other._meta and self._data == other._data

    __hash__ = None  # type: ignore[assignment]  # the owner of the bytes may change them

    def __reduce__(self) -> tuple[Any, ...]:
        return Tensor.from_bytes, (self.tobytes(), self.shape, self.dtype, self.name)

    def __repr__(self) -> str:
        return repr(self._meta).replace("TensorMeta", "Tensor", 1)


def _check_bools(data: memoryview) -> None:
    """Refuse what would not arrive: the contract and numpy know only 0 and 1."""
    import numpy as np

    elements = np.ndarray(data.nbytes, np.uint8, buffer=data)
    if elements.max(initial=0) > 1:  # without memory of its own
        index = int((elements > 1).argmax())
        raise InvalidUsage(f"element {index} of a bool tensor must be the byte 0 or 1, got {data[index]}")


def _viewed(data: Buffer) -> memoryview:
    """A view of format B; a copy where there can be none: of a memoryview with gaps, or of an empty shape."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidType(f"data must be bytes, bytearray or memoryview, got {type(data).__name__}")
    view = memoryview(data)
    try:
        return view.cast("B")
    except TypeError:
        return memoryview(bytes(view))


def _is_little_endian(dtype: np.dtype[Any]) -> bool:
    return bool(dtype == dtype.newbyteorder("<"))
