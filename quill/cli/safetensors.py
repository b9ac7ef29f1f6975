"""Files of the safetensors format, mapped into memory: their tensors are views, and none is copied before it is sent.

A file is eight bytes with the length of its header, the header in JSON with the type, shape and place of each tensor,
and their elements. The library of that name copies what it reads, and knows no float8 for numpy.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from quill.dtype import DType
from quill.errors import InvalidUsage, QuillError
from quill.tensor import Tensor

_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""Types: the format's names, and ours."""
_FORMAT_NAMES = {ours: theirs for theirs, ours in _NAMES.items()}

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""As the library has it."""
_METADATA = "__metadata__"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name: read-only views, which keep it mapped. It must not become shorter meanwhile.

    Raises:
        InvalidUsage: The file cannot be read, or is none of the format; the message says where.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _LENGTH_BYTES:
                raise InvalidUsage(
                    f"{path} is no safetensors file: it has {size} bytes, at least {_LENGTH_BYTES} are needed"
                )
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InvalidUsage(f"cannot read {path}: {error.strerror}") from None
    length = int.from_bytes(view[:_LENGTH_BYTES], "little")
    if length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
        raise InvalidUsage(
            f"{path} is no safetensors file: its header has {length} bytes, and {size - _LENGTH_BYTES} follow "
            f"(at most {_MAX_HEADER_BYTES})"
        )
    start = _LENGTH_BYTES + length
    header = _header(path, bytes(view[_LENGTH_BYTES:start]))
    elements = view[start:]
    return {name: _tensor(path, name, entry, elements) for name, entry in header.items()}


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file, which is there whole or not at all.

    Raises:
        InvalidUsage: It cannot be written, or a name is one that the format keeps for itself.
    """
    header, place = {}, 0
    for name, tensor in tensors.items():
        if name == _METADATA:
            raise InvalidUsage(f"a tensor cannot be named {_METADATA} in a safetensors file")
        span = [place, place + tensor.size_bytes]
        header[name] = {"dtype": _FORMAT_NAMES[tensor.dtype.name], "shape": tensor.shape, "data_offsets": span}
        place = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # so that elements begin at a multiple of eight
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
            for tensor in tensors.values():
                file.write(tensor.data)
        part.replace(path)
    except OSError as error:
        raise InvalidUsage(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            part.unlink()


def _header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise InvalidUsage(f"{path} is no safetensors file: its header of {len(text)} bytes is no JSON object")
    header.pop(_METADATA, None)
    return header


def _tensor(path: Path, name: str, entry: Any, elements: memoryview) -> Tensor:
    where = f"{path}: tensor {name!r}"
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise InvalidUsage(f"{where} has no dtype, shape and data_offsets")
    if kind not in _NAMES:
        raise InvalidUsage(f"{where} has the type {kind}; known are {', '.join(_NAMES)}")
    if not 0 <= start <= end <= elements.nbytes:
        raise InvalidUsage(f"{where} lies at bytes {start} to {end}, and the file has {elements.nbytes}")
    try:
        return Tensor.from_bytes(elements[start:end], shape, DType.from_numpy(_NAMES[kind]), name)
    except QuillError as error:
        raise InvalidUsage(f"{where}: {error}") from None
