"""The reader and writer of safetensors files against the library of that name, and against files that are none."""

import json
import mmap

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, load_file, save_file

from quill.cli import safetensors
from quill.errors import InvalidUsage
from quill.tensor import Tensor

ARRAYS = {
    "scalar": np.array(1.5),
    "empty": np.zeros((0, 3), np.int16),
    "bfloat16": np.ones((2, 2), ml_dtypes.bfloat16),
    "nan": np.array([np.nan, -0.0], np.float32),
    "complex": np.array([1j], np.complex64),
    "bool": np.array([True, False]),
    "ünï": np.arange(7, dtype=np.uint64),
}


def tensors(arrays):
    return {name: Tensor.from_numpy(array, name) for name, array in arrays.items()}


def same(tensor, array):
    return (tensor.shape, tensor.dtype.name, tensor.tobytes()) == (list(array.shape), array.dtype.name, array.tobytes())


def test_what_is_written_the_library_reads(tmp_path):
    safetensors.write(tmp_path / "x", tensors(ARRAYS))
    read = load_file(tmp_path / "x")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert same(Tensor.from_numpy(read[name]), array), name


def test_what_the_library_writes_is_read_without_a_copy(tmp_path):
    save_file(ARRAYS, tmp_path / "x", metadata={"format": "np"})
    read = safetensors.read(tmp_path / "x")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert same(read[name], array), name
        assert read[name].name == name
    assert isinstance(read["nan"].data.obj, mmap.mmap)
    assert read["nan"].data.readonly


def test_every_type_of_the_contract_comes_back(tmp_path):
    float8 = {name: np.arange(256, dtype=np.uint8).view(name) for name in ("float8_e4m3fn", "float8_e5m2")}
    others = {name: np.arange(3).astype(name) for name in ("int8", "uint16", "uint32", "int32", "int64", "float16")}
    safetensors.write(tmp_path / "x", tensors(float8 | others))
    read = safetensors.read(tmp_path / "x")
    assert all(same(read[name], array) for name, array in (float8 | others).items())


def file_of(header, elements=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + elements


ONE = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"1234567", "it has 7 bytes, at least 8 are needed"),
        (file_of({}, length=3), "its header has 3 bytes, and 2 follow"),
        (file_of({}, length=2**63), "its header has 9223372036854775808 bytes, and 2 follow"),
        (file_of(b"[]"), "its header of 2 bytes is no JSON object"),
        (file_of(b"{" * 9), "its header of 9 bytes is no JSON object"),
        (file_of({"x": 1}), "tensor 'x' has no dtype, shape and data_offsets"),
        (file_of({"x": ONE | {"dtype": "F4"}}), "tensor 'x' has the type F4; known are BOOL, U8"),
        (file_of({"x": ONE}, b"1"), "tensor 'x' lies at bytes 0 to 2, and the file has 1"),
        (file_of({"x": ONE | {"data_offsets": [2, 1]}}, b"123"), "lies at bytes 2 to 1, and the file has 3"),
        (file_of({"x": ONE | {"shape": [3]}}, b"12"), r"tensor \[3\] uint8 needs 3 bytes, got 2"),
        (file_of({"x": ONE | {"shape": [-2]}}, b"12"), "a dimension must be at least 0, got -2"),
        (file_of({"x": ONE | {"shape": ["2"]}}, b"12"), "a dimension must be an int"),
        (file_of({"x": ONE | {"dtype": "BOOL"}}, b"12"), "must be the byte 0 or 1, got 49"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, said):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InvalidUsage, match=said):
        safetensors.read(tmp_path / "x")


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_do_more_than_be_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "x"
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    try:
        safetensors.read(path)
    except InvalidUsage:
        return
    assert load(path.read_bytes()) == {}


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(InvalidUsage, match=r"cannot write .*: No such file or directory"):
        safetensors.write(tmp_path / "no" / "x", {})
    with pytest.raises(InvalidUsage, match="cannot be named __metadata__"):
        safetensors.write(tmp_path / "x", tensors({"__metadata__": np.zeros(1)}))
    assert list(tmp_path.iterdir()) == []
