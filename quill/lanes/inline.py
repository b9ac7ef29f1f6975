"""The lane inline: all elements in the one message of a unary call, joined into it and viewed in it."""

from __future__ import annotations

from quill.errors import InvalidArgument, ResourceExhausted
from quill.lanes.elements import PLAIN, ZSTD, check_compression, compresses, named_meta, over, plain
from quill.lanes.parcel import Parcel
from quill.limits import Limits
from quill.tensor import Tensor
from quill.wire.compression import compress
from quill.wire.tensor_fields import InferFields, TensorFields


def fields_of(parcel: Parcel, *, zstd: bool = False) -> InferFields:
    """What an InferRequest or an InferResponse says of a parcel: views of its elements.

    Args:
        parcel: What is sent.
        zstd: Compress the tensors that become a tenth smaller.
    """
    return InferFields(
        model=parcel.model,
        request_id=parcel.request_id,
        tensors=[_fields(name, tensor, zstd=zstd) for name, tensor in parcel.tensors.items()],
        outputs=list(parcel.outputs),
        parameters=dict(parcel.parameters),
    )


def parcel_of(fields: InferFields, limits: Limits) -> Parcel:
    """The parcel of a received message. Elements that are not compressed are views of it.

    Raises:
        InvalidArgument: A tensor has no name or one that another has, is none, or its elements are not as many as its
            shape says.
        ResourceExhausted: A tensor has more bytes or dimensions than are accepted, there are more tensors, or what is
            compressed becomes more than a message may have.
    """
    check_count(len(fields.tensors), limits)
    tensors: dict[str, Tensor] = {}
    room_bytes = limits.max_message_bytes
    for index, one in enumerate(fields.tensors):
        place = f"tensor {index}"
        meta = named_meta(one, place, tensors, limits)
        if one.lane is not None:
            raise InvalidArgument(f"{place}, {one.name!r}, lies in a lane, and this call has none")
        check_compression(one.compression, place)
        if one.compression != PLAIN:
            room_bytes -= meta.size_bytes
            if room_bytes < 0:
                raise ResourceExhausted(
                    f"the compressed tensors become {limits.max_message_bytes - room_bytes} bytes and "
                    f"max_message_bytes is {limits.max_message_bytes}: send them in chunks"
                )
        data = plain(one.data, one.compression, most_bytes=meta.size_bytes, limits=limits)
        tensors[meta.name or ""] = over(meta, data, place)
    return Parcel(
        model=fields.model,
        request_id=fields.request_id,
        tensors=tensors,
        outputs=tuple(fields.outputs),
        parameters=fields.parameters,
    )


def check_count(count: int, limits: Limits) -> None:
    """Make sure that a parcel has not too many tensors.

    Raises:
        ResourceExhausted: It has.
    """
    if count > limits.max_tensors:
        raise ResourceExhausted(f"the call has {count} tensors and max_tensors is {limits.max_tensors}")


def _fields(name: str, tensor: Tensor, *, zstd: bool) -> TensorFields:
    packs = zstd and compresses(tensor)
    return TensorFields(
        shape=tuple(tensor.shape),
        dtype=tensor.dtype.number,
        data=compress("zstd", tensor.data) if packs else tensor.data,
        name=name,
        byte_size=tensor.size_bytes if packs else 0,
        compression=ZSTD if packs else PLAIN,
    )
