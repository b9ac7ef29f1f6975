"""The lane chunks, outwards: a header with all that is known of the tensors, then their elements in pieces of 2 MiB."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from quill.lanes.elements import CHUNK_BYTES, ZSTD, compresses
from quill.lanes.parcel import Parcel
from quill.wire.compression import compress
from quill.wire.tensor_codec import encode_chunk_frame
from quill.wire.tensor_fields import ChunkFields

if TYPE_CHECKING:
    from quill import proto

Sent = Callable[[int], object]
"""Told how many bytes of elements have been taken."""


class _Piece(NamedTuple):
    """One chunk."""

    tensor: int
    sequence: int
    start: int
    end: int


class Frames(Sequence[bytes]):
    """The messages of a parcel: StreamInferRequest and StreamInferResponse, which have one form.

    Each is made when it is asked for, by one copy, so that no more of the tensors is held twice than is on its way.

    Args:
        parcel: What is sent.
        zstd: Compress the tensors whose first chunk becomes a tenth smaller. Each chunk is then a frame of its own, and
            its offset counts the elements as they are.
        sent: Called, by who iterates, for each chunk that was taken.
    """

    def __init__(self, parcel: Parcel, *, zstd: bool = False, sent: Sent | None = None) -> None:
        self._parcel = parcel
        self._tensors = list(parcel.tensors.items())
        self._data = [tensor.data for _, tensor in self._tensors]
        self._packs = [zstd and compresses(tensor) for _, tensor in self._tensors]
        self._pieces = [piece for index, data in enumerate(self._data) for piece in _pieces(index, data.nbytes)]
        self._sent = sent

    def __len__(self) -> int:
        return 1 + len(self._pieces)

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # nobody asks for slices
        if index == 0:
            return self._header()
        return self._chunk(self._pieces[index - 1])

    def __iter__(self) -> Iterator[bytes]:
        moved_bytes = 0
        yield self._header()
        for piece in self._pieces:
            yield self._chunk(piece)
            moved_bytes += piece.end - piece.start
            if self._sent is not None:
                self._sent(moved_bytes)

    @property
    def is_compressed(self) -> bool:
        """Whether making a message takes long enough to be left to a thread."""
        return any(self._packs)

    def _header(self) -> bytes:
        from quill.proto import InferHeader, StreamInferRequest

        parcel = self._parcel
        header = InferHeader(
            model=parcel.model,
            request_id=parcel.request_id,
            tensors=[self._meta(index) for index in range(len(self._tensors))],
            outputs=parcel.outputs,
            parameters=parcel.parameters,
        )
        return StreamInferRequest(header=header).SerializeToString()

    def _meta(self, index: int) -> proto.TensorMeta:
        name, tensor = self._tensors[index]
        meta = tensor.meta.to_proto()
        meta.name = name
        meta.byte_size = tensor.size_bytes
        if self._packs[index]:
            meta.compression = ZSTD  # type: ignore[assignment]  # the stub gives each enum an int type of its own
        return meta

    def _chunk(self, piece: _Piece) -> bytes:
        data = self._data[piece.tensor]
        elements = data[piece.start : piece.end]
        return encode_chunk_frame(
            ChunkFields(
                sequence=piece.sequence,
                total_chunks=-(-data.nbytes // CHUNK_BYTES),
                data=compress("zstd", elements) if self._packs[piece.tensor] else elements,
                is_final=piece.end == data.nbytes,
                tensor_index=piece.tensor,
                offset=piece.start,
            )
        )


def _pieces(tensor: int, size_bytes: int) -> Iterator[_Piece]:
    """The chunks of one tensor; an empty one has none."""
    for sequence, start in enumerate(range(0, size_bytes, CHUNK_BYTES)):
        yield _Piece(tensor, sequence, start, min(start + CHUNK_BYTES, size_bytes))
