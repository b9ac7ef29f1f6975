"""How the runner speaks to programs: messages behind their length, four bytes, big-endian, on stdin and stdout."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO, TypeVar

from gen.service_pb2 import Header
from google.protobuf.message import Message

from quill.wire.metadata import encode_binary

M = TypeVar("M", bound=Message)

_LENGTH = struct.Struct(">I")


def read_messages(kind: type[M], source: BinaryIO = sys.stdin.buffer) -> Iterator[M]:
    """The messages of this kind, until the end of the input."""
    while len(prefix := source.read(_LENGTH.size)) == _LENGTH.size:
        yield kind.FromString(source.read(_LENGTH.unpack(prefix)[0]))


def write_message(message: Message, target: BinaryIO = sys.stdout.buffer) -> None:
    """Write one message."""
    data = message.SerializeToString()
    target.write(_LENGTH.pack(len(data)) + data)
    target.flush()


def to_headers(metadata: Iterable[tuple[str, str | bytes]]) -> list[Header]:
    """Metadata as the suite describes it: values by name, in order, bytes in base64."""
    values: dict[str, list[str]] = {}
    for key, value in metadata:
        values.setdefault(key, []).append(encode_binary(value) if isinstance(value, bytes) else value)
    return [Header(name=key, value=found) for key, found in values.items()]
