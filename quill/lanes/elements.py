"""The elements of one tensor as a message has them, plain or compressed, checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Container

from quill.errors import InvalidArgument, InvalidUsage
from quill.limits import Limits
from quill.tensor import Tensor, TensorMeta
from quill.wire.buffer import Buffer
from quill.wire.compression import compress, decompress
from quill.wire.tensor_fields import TensorFields

PLAIN, ZSTD = 0, 1
"""Values of inference.v1.Compression."""

CHUNK_BYTES = 2 * 1024 * 1024
"""How many bytes of elements a chunk has, and how many tell whether compressing is worth while."""

_WORTHWHILE = 0.9
"""What is left of a chunk whose tensor is worth compressing."""


def named_meta(fields: TensorFields, place: str, taken: Container[str], limits: Limits) -> TensorMeta:
    """The meta of a received tensor.

    Args:
        fields: What its message says.
        place: Where it stands in the message, for errors: ``tensor 0``.
        taken: The names that others have.
        limits: What is accepted.

    Raises:
        InvalidArgument: It is no tensor's, has no name, or one that another has.
        ResourceExhausted: It has more bytes or dimensions than are accepted.
    """
    name = fields.name
    if not name:
        raise InvalidArgument(f"{place} has no name: models know tensors by their names")
    if name in taken:
        raise InvalidArgument(f"{place} has the name {name[:128]!r}, which another has")
    try:
        return TensorMeta.from_fields(fields, limits)
    except InvalidUsage as error:
        raise InvalidArgument(f"{place}, {name[:128]!r}: {error}") from None


def over(meta: TensorMeta, data: Buffer, place: str) -> Tensor:
    """The tensor of a received meta over its elements.

    Raises:
        InvalidArgument: They are more or fewer than its shape says, or a byte of a bool tensor is not 0 or 1.
    """
    try:
        return Tensor.from_meta(meta, data)
    except InvalidUsage as error:
        raise InvalidArgument(f"{place}, {str(meta.name)[:128]!r}: {error}") from None


def check_compression(compression: int, place: str) -> None:
    """Make sure that a way to compress is known.

    Raises:
        InvalidArgument: It is not.
    """
    if compression not in (PLAIN, ZSTD):
        raise InvalidArgument(f"{place} has compression {compression}; known are {PLAIN} none and {ZSTD} zstd")


def plain(data: Buffer, compression: int, *, most_bytes: int, limits: Limits) -> Buffer:
    """Received elements, decompressed where they are compressed.

    Args:
        data: As they came.
        compression: The number of inference.v1.Compression, which is known.
        most_bytes: How many there may be once they are decompressed.
        limits: The window that a frame may ask for.

    Raises:
        InvalidArgument: They are damaged, or something follows them.
        ResourceExhausted: They become more than they may.
    """
    if compression == PLAIN:
        return data
    return decompress("zstd", data, max_bytes=most_bytes, max_window_bytes=limits.max_decompression_window_bytes)


def compresses(tensor: Tensor) -> bool:
    """Whether compressing a tensor is worth while: its first chunk becomes a tenth smaller, or more."""
    sample = tensor.data[:CHUNK_BYTES]
    return len(sample) > 0 and len(compress("zstd", sample)) <= len(sample) * _WORTHWHILE
