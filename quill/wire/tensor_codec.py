"""inference.v1.Tensor and the messages around it: to bytes with one copy, from bytes with none.

protobuf's own library copies the elements when they are set, written, read and asked for. Here they are joined to the
fields around them, and viewed where they lie. On the wire it is plain protobuf: what is written is what protobuf
writes, and what is read is what upb reads: fields in any order, repeated, of other versions. Only how many fields a
message may have is bounded besides (``protobuf.MAX_FIELDS``).

Encoders raise InvalidUsage for what no message can hold: a string with a lone surrogate, more than 2 GiB. Numbers must
fit their fields. Decoders raise MalformedMessage. They take ``bytes`` or a memoryview of format B, which the data in
what they return views and keeps alive.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from struct import Struct
from typing import TypeVar

from quill.errors import InvalidUsage
from quill.wire import protobuf
from quill.wire.buffer import Buffer
from quill.wire.protobuf import (
    FIXED32,
    LENGTH,
    VARINT,
    MalformedMessage,
    Reader,
    encoded_varint,
    put,
    put_map,
    put_number,
    put_packed,
    put_string,
    utf8,
)
from quill.wire.tensor_fields import ChunkFields, InferFields, LaneFields, TensorFields

__all__ = [
    "ChunkFields",
    "InferFields",
    "LaneFields",
    "MalformedMessage",
    "TensorFields",
    "decode_embed_response",
    "decode_frame",
    "decode_infer_request",
    "decode_infer_response",
    "decode_tensor",
    "encode_chunk_frame",
    "encode_infer_request",
    "encode_infer_response",
    "encode_tensor",
]

T = TypeVar("T")

_Parts = list[bytes | bytearray | memoryview]

_FIXED32 = Struct("<I")
_MASK_32 = 2**32 - 1

# Tags of Tensor.
_META, _DATA, _LANE = 1 << 3 | LENGTH, 2 << 3 | LENGTH, 3 << 3 | LENGTH
# Of TensorMeta. Shape and strides may come packed, as they are written, or not.
_SHAPE, _STRIDES = 1 << 3 | LENGTH, 4 << 3 | LENGTH
_DIMENSION, _STRIDE = 1 << 3 | VARINT, 4 << 3 | VARINT
_DTYPE, _DEVICE, _NAME = 2 << 3 | VARINT, 3 << 3 | VARINT, 5 << 3 | LENGTH
_REQUIRES_GRAD, _BYTE_SIZE, _COMPRESSION = 6 << 3 | VARINT, 7 << 3 | VARINT, 8 << 3 | VARINT
# Of LaneRef.
_HANDLE, _LANE_OFFSET = 1 << 3 | LENGTH, 2 << 3 | VARINT
# Of InferRequest and InferResponse.
_MODEL, _REQUEST_ID, _TENSOR = 1 << 3 | LENGTH, 2 << 3 | LENGTH, 3 << 3 | LENGTH
_WANTED, _PARAMETER, _RESPONSE_PARAMETER = 4 << 3 | LENGTH, 5 << 3 | LENGTH, 4 << 3 | LENGTH
# Of EmbedResponse, whose first field is the model, too.
_EMBEDDING, _USAGE = 2 << 3 | LENGTH, 3 << 3 | LENGTH
# Of TensorChunk, and of the messages of a stream.
_SEQUENCE, _TOTAL_CHUNKS, _CHUNK_DATA = 1 << 3 | VARINT, 2 << 3 | VARINT, 3 << 3 | LENGTH
_IS_FINAL, _TENSOR_INDEX, _OFFSET, _CRC32C = 4 << 3 | VARINT, 5 << 3 | VARINT, 6 << 3 | VARINT, 7 << 3 | FIXED32
_HEADER, _CHUNK = 1 << 3 | LENGTH, 2 << 3 | LENGTH


def encode_tensor(tensor: TensorFields) -> bytes:
    """A serialized Tensor."""
    return _joined(_tensor_parts(tensor))


def encode_infer_request(request: InferFields) -> bytes:
    """A serialized InferRequest."""
    end = bytearray()
    for name in request.outputs:
        put(end, _WANTED, utf8(name))
    put_map(end, _PARAMETER, request.parameters)
    return _infer(request, end)


def encode_infer_response(response: InferFields) -> bytes:
    """A serialized InferResponse."""
    end = bytearray()
    put_map(end, _RESPONSE_PARAMETER, response.parameters)
    return _infer(response, end)


def encode_chunk_frame(chunk: ChunkFields) -> bytes:
    """A serialized StreamInferRequest, or StreamInferResponse, with a chunk."""
    head, end = bytearray(), bytearray()
    put_number(head, _SEQUENCE, chunk.sequence)
    put_number(head, _TOTAL_CHUNKS, chunk.total_chunks)
    put_number(end, _IS_FINAL, chunk.is_final)
    put_number(end, _TENSOR_INDEX, chunk.tensor_index)
    put_number(end, _OFFSET, chunk.offset)
    if chunk.crc32c:
        end.append(_CRC32C)
        end += _FIXED32.pack(chunk.crc32c)
    return _joined(_within(_CHUNK, [head, *_data_parts(_CHUNK_DATA, chunk.data), end]))


def _infer(fields: InferFields, end: bytearray) -> bytes:
    head = bytearray()
    put_string(head, _MODEL, fields.model)
    put_string(head, _REQUEST_ID, fields.request_id)
    parts: _Parts = [head]
    for tensor in fields.tensors:
        parts += _within(_TENSOR, _tensor_parts(tensor))
    parts.append(end)
    return _joined(parts)


def _tensor_parts(tensor: TensorFields) -> _Parts:
    meta = bytearray()
    put_packed(meta, _SHAPE, tensor.shape)
    put_number(meta, _DTYPE, tensor.dtype)
    put_number(meta, _DEVICE, tensor.device)
    put_packed(meta, _STRIDES, tensor.strides)
    if tensor.name is not None:
        put(meta, _NAME, utf8(tensor.name))
    if tensor.requires_grad is not None:
        meta += bytes((_REQUIRES_GRAD, tensor.requires_grad))
    put_number(meta, _BYTE_SIZE, tensor.byte_size)
    put_number(meta, _COMPRESSION, tensor.compression)
    head = bytearray()
    put(head, _META, meta)
    parts = [head, *_data_parts(_DATA, tensor.data)]
    if tensor.lane is not None:
        lane, end = bytearray(), bytearray()
        put_string(lane, _HANDLE, tensor.lane.handle)
        put_number(lane, _LANE_OFFSET, tensor.lane.offset)
        put(end, _LANE, lane)
        parts.append(end)
    return parts


def _data_parts(tag: int, data: bytes | memoryview) -> _Parts:
    """A field of raw bytes in front of which stands its size; nothing where it is empty."""
    view = memoryview(data)
    if not view.nbytes:
        return []
    return [bytes((tag,)) + encoded_varint(view.nbytes), view.cast("B")]


def _within(tag: int, parts: _Parts) -> _Parts:
    """A field that is the message of these parts."""
    return [bytes((tag,)) + encoded_varint(sum(map(len, parts))), *parts]


def _joined(parts: _Parts) -> bytes:
    size = sum(map(len, parts))
    if size > protobuf.MAX_MESSAGE_BYTES:
        raise InvalidUsage(f"the tensors encode to {size} bytes, a message holds at most {protobuf.MAX_MESSAGE_BYTES}")
    return b"".join(parts)


def _decoder(message: str) -> Callable[[Callable[[Buffer], T]], Callable[[Buffer], T]]:
    """What names the message that the bytes are not."""

    def named(decode: Callable[[Buffer], T]) -> Callable[[Buffer], T]:
        @wraps(decode)
        def decoded(data: Buffer) -> T:
            try:
                return decode(data)
            except MalformedMessage as error:
                wrong = f"the {len(data)} bytes are no inference.v1.{message} message: {error}"
                raise MalformedMessage(wrong) from None

        return decoded

    return named


@_decoder("Tensor")
def decode_tensor(data: Buffer) -> TensorFields:
    """The fields of a serialized Tensor."""
    tensor = TensorFields()
    _read_tensor(tensor, Reader(data), 0, len(data), 0)
    return tensor


@_decoder("EmbedResponse")
def decode_embed_response(data: Buffer) -> tuple[list[TensorFields], bytes]:
    """The tensors of a serialized EmbedResponse, and the message without them, which upb reads."""
    tensors, rest = [], bytearray()
    reader = Reader(data)
    for tag, first, behind in reader.fields(0, len(data), 0):
        if tag == _EMBEDDING:
            tensor = TensorFields()
            _read_tensor(tensor, reader, first, behind, 1)
            tensors.append(tensor)
        elif tag in (_MODEL, _USAGE):
            put(rest, tag, reader.view(first, behind))
    return tensors, bytes(rest)


@_decoder("InferRequest")
def decode_infer_request(data: Buffer) -> InferFields:
    """The fields of a serialized InferRequest."""
    return _decoded_infer(data, _WANTED, _PARAMETER)


@_decoder("InferResponse")
def decode_infer_response(data: Buffer) -> InferFields:
    """The fields of a serialized InferResponse."""
    return _decoded_infer(data, 0, _RESPONSE_PARAMETER)


@_decoder("StreamInferRequest")
def decode_frame(data: Buffer) -> ChunkFields | bytes:
    """The chunk in a serialized StreamInferRequest or StreamInferResponse, or the serialized InferHeader in it.

    A header has no elements, so upb reads the frames that have one.

    Raises:
        MalformedMessage: As all decoders, or there is neither.
    """
    chunk = None
    reader = Reader(data)
    for tag, first, behind in reader.fields(0, len(data), 0):
        if tag == _CHUNK:
            chunk = chunk or ChunkFields()
            _read_chunk(chunk, reader, first, behind)
        elif tag == _HEADER:
            return _decoded_by_upb(data)
    if chunk is None:
        raise MalformedMessage("it has neither a header nor a chunk")
    return chunk


def _decoded_by_upb(frame: Buffer) -> ChunkFields | bytes:
    from google.protobuf.message import DecodeError

    from quill.proto import StreamInferRequest

    try:
        message = StreamInferRequest.FromString(bytes(frame))
    except DecodeError:
        raise MalformedMessage("its header, or what stands beside it, is damaged") from None
    if message.HasField("header"):
        return message.header.SerializeToString()
    # The last one counts.
    return ChunkFields(*(getattr(message.chunk, name) for name in ChunkFields.__slots__))


def _decoded_infer(data: Buffer, wanted_tag: int, parameter_tag: int) -> InferFields:
    infer = InferFields()
    reader = Reader(data)
    for tag, first, behind in reader.fields(0, len(data), 0):
        if tag == _TENSOR:
            tensor = TensorFields()
            _read_tensor(tensor, reader, first, behind, 1)
            infer.tensors.append(tensor)
        elif tag == _MODEL:
            infer.model = reader.string(first, behind)
        elif tag == _REQUEST_ID:
            infer.request_id = reader.string(first, behind)
        elif tag == parameter_tag:
            infer.parameters.update(_read_entry(reader, first, behind))
        elif tag == wanted_tag:
            infer.outputs.append(reader.string(first, behind))
    return infer


# What reads a message into fields adds to what is there: of a field that comes twice protobuf merges the messages.


def _read_tensor(tensor: TensorFields, reader: Reader, place: int, end: int, depth: int) -> None:
    for tag, first, behind in reader.fields(place, end, depth):
        if tag == _META:
            _read_meta(tensor, reader, first, behind, depth + 1)
        elif tag == _DATA:
            tensor.data = reader.view(first, behind)
        elif tag == _LANE:
            tensor.lane = tensor.lane or LaneFields()
            _read_lane(tensor.lane, reader, first, behind, depth + 1)


def _read_meta(tensor: TensorFields, reader: Reader, place: int, end: int, depth: int) -> None:
    shape, strides = [*tensor.shape], [*tensor.strides]
    for tag, value, behind in reader.fields(place, end, depth):
        if tag == _SHAPE:
            shape += map(protobuf.signed, reader.packed(value, behind))
        elif tag == _DTYPE:
            tensor.dtype = _signed_32(value)
        elif tag == _NAME:
            tensor.name = reader.string(value, behind)
        elif tag == _BYTE_SIZE:
            tensor.byte_size = value
        elif tag == _COMPRESSION:
            tensor.compression = _signed_32(value)
        elif tag == _DEVICE:
            tensor.device = _signed_32(value)
        elif tag == _REQUIRES_GRAD:
            tensor.requires_grad = value != 0
        elif tag == _STRIDES:
            strides += map(protobuf.signed, reader.packed(value, behind))
        elif tag == _DIMENSION:
            shape.append(protobuf.signed(value))
        elif tag == _STRIDE:
            strides.append(protobuf.signed(value))
    tensor.shape, tensor.strides = tuple(shape), tuple(strides)


def _read_lane(lane: LaneFields, reader: Reader, place: int, end: int, depth: int) -> None:
    for tag, value, behind in reader.fields(place, end, depth):
        if tag == _HANDLE:
            lane.handle = reader.string(value, behind)
        elif tag == _LANE_OFFSET:
            lane.offset = value


def _read_entry(reader: Reader, place: int, end: int) -> dict[str, str]:
    """The entry; none where it has a field that nobody knows, because such an entry is itself unknown to upb."""
    key = value = ""
    known = True
    for tag, first, behind in reader.fields(place, end, 1):
        if tag == protobuf.KEY:
            key = reader.string(first, behind)
        elif tag == protobuf.VALUE:
            value = reader.string(first, behind)
        else:
            known = False
    return {key: value} if known else {}


def _read_chunk(chunk: ChunkFields, reader: Reader, place: int, end: int) -> None:
    for tag, value, behind in reader.fields(place, end, 1):
        if tag == _CHUNK_DATA:
            chunk.data = reader.view(value, behind)
        elif tag == _OFFSET:
            chunk.offset = value
        elif tag == _SEQUENCE:
            chunk.sequence = value & _MASK_32
        elif tag == _TENSOR_INDEX:
            chunk.tensor_index = value & _MASK_32
        elif tag == _CRC32C:
            (chunk.crc32c,) = _FIXED32.unpack(reader.view(value, behind))
        elif tag == _IS_FINAL:
            chunk.is_final = value != 0
        elif tag == _TOTAL_CHUNKS:
            chunk.total_chunks = value & _MASK_32


def _signed_32(value: int) -> int:
    """The int32, and the enum, of a varint: its lowest bits in two's complement."""
    value &= _MASK_32
    return value - 2**32 if value >> 31 else value
