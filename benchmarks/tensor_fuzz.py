"""Hostile bytes for the tensor codec, against what upb says of them.

usage: python benchmarks/tensor_fuzz.py [--inputs 1000000] [--seed 0] [--json]

Where upb refuses, the codec must; where upb reads, the codec must read the same, and what it writes of that upb must
read as the same message. ``hostile.py`` makes the bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message
from hostile import Source

from quill import proto
from quill.wire import tensor_codec as codec
from quill.wire.tensor_codec import ChunkFields, InferFields, LaneFields, MalformedMessage, TensorFields

SHOWN = 10
HANG_S = 0.5
"""CPU time of one decoding that counts as a hang: two thousand times what one takes."""


def tensor_fields(message: proto.Tensor) -> TensorFields:
    """What upb read of a Tensor."""
    meta = message.meta
    return TensorFields(
        shape=tuple(meta.shape),
        dtype=meta.dtype,
        data=message.data,
        name=meta.name if meta.HasField("name") else None,
        device=meta.device,
        strides=tuple(meta.strides),
        requires_grad=meta.requires_grad if meta.HasField("requires_grad") else None,
        byte_size=meta.byte_size,
        compression=meta.compression,
        lane=LaneFields(message.lane.handle, message.lane.offset) if message.HasField("lane") else None,
    )


def infer_fields(message: proto.InferRequest | proto.InferResponse) -> InferFields:
    """What upb read of an InferRequest or InferResponse."""
    request = isinstance(message, proto.InferRequest)
    tensors = message.inputs if isinstance(message, proto.InferRequest) else message.outputs
    return InferFields(
        model=message.model,
        request_id=message.request_id,
        tensors=[tensor_fields(tensor) for tensor in tensors],
        outputs=list(message.outputs) if request else [],  # type: ignore[arg-type]  # names, of a request
        parameters=dict(message.parameters),
    )


def frame_fields(message: proto.StreamInferRequest) -> ChunkFields | bytes:
    """What upb read of a message of a stream: its chunk, or the bytes of its header.

    Raises:
        DecodeError: It has neither, which protobuf allows and the codec refuses.
    """
    if message.HasField("header"):
        return message.header.SerializeToString(deterministic=True)
    if not message.HasField("chunk"):
        raise DecodeError
    return ChunkFields(*(getattr(message.chunk, name) for name in ChunkFields.__slots__))


def decoded_frame(data: bytes) -> ChunkFields | bytes:
    """What the codec read of it."""
    part = codec.decode_frame(data)
    if isinstance(part, ChunkFields):
        return part
    return proto.InferHeader.FromString(part).SerializeToString(deterministic=True)


def encoded_frame(part: ChunkFields | bytes) -> bytes:
    """What the codec writes of it; upb writes headers."""
    if isinstance(part, ChunkFields):
        return codec.encode_chunk_frame(part)
    return proto.StreamInferRequest(header=proto.InferHeader.FromString(part)).SerializeToString()


@dataclass(frozen=True)
class Kind:
    """A message, and both ways of reading it."""

    message: type[Message]
    expected: Callable[[Any], Any]
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


KINDS = (
    Kind(proto.Tensor, tensor_fields, codec.decode_tensor, codec.encode_tensor),
    Kind(proto.InferRequest, infer_fields, codec.decode_infer_request, codec.encode_infer_request),
    Kind(proto.InferResponse, infer_fields, codec.decode_infer_response, codec.encode_infer_response),
    Kind(proto.StreamInferRequest, frame_fields, decoded_frame, encoded_frame),
)


@dataclass
class Seen:
    """What came of all inputs."""

    inputs: int = 0
    accepted_by_upb: int = 0
    crashes: int = 0
    hangs: int = 0
    disagreements: int = 0
    slowest_ms: float = 0.0

    def report(self, what: str, kind: Kind, data: bytes, saw: object) -> None:
        """Count and show what must not be; the first ten."""
        setattr(self, what, getattr(self, what) + 1)
        if getattr(self, what) <= SHOWN:
            print(f"{what}: {kind.message.DESCRIPTOR.name} {data.hex()}: {saw}", file=sys.stderr)

    def judge(self, kind: Kind, data: bytes) -> None:
        """Give one input to both."""
        self.inputs += 1
        expected = verdict(kind, data)
        started_s = time.thread_time()
        try:
            found = kind.decode(data)
        except MalformedMessage:
            found = None
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a crash
            self.report("crashes", kind, data, repr(error))
            return
        took_s = time.thread_time() - started_s
        self.slowest_ms = max(self.slowest_ms, took_s * 1000)
        if took_s > HANG_S:
            self.report("hangs", kind, data, f"{took_s:.3f} s")
        if found != expected:
            self.report("disagreements", kind, data, f"upb {expected}, codec {found}")
        elif found is not None:
            self.accepted_by_upb += 1
            if verdict(kind, kind.encode(found)) != expected:
                self.report("disagreements", kind, data, "what the codec writes of it is another message")


def verdict(kind: Kind, data: bytes) -> Any:
    """What upb reads, or None where it refuses."""
    try:
        return kind.expected(kind.message.FromString(data))
    except DecodeError:
        return None


def resident_mib() -> float:
    """The memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def run(inputs: int, seed: int) -> dict[str, Any]:
    """All inputs, each kind in turn."""
    source = Source(random.Random(seed))  # noqa: S311 - chance that can be repeated
    seen = Seen()
    warm_mib = resident_mib()
    for number in range(inputs):
        kind = KINDS[number % len(KINDS)]
        seen.judge(kind, source.message(kind.message))
        if number == inputs // 10:
            warm_mib = resident_mib()
    return vars(seen) | {"memory_growth_mib_after_the_first_tenth": round(resident_mib() - warm_mib, 1)}


def main() -> int:
    """Print what came of it; the exit status says whether all is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    seen = run(given.inputs, given.seed)
    print(json.dumps(seen) if given.json else "\n".join(f"{name}: {value}" for name, value in seen.items()))
    return 1 if seen["crashes"] or seen["hangs"] or seen["disagreements"] else 0


if __name__ == "__main__":
    sys.exit(main())
