"""`quill infer` and `quill tensors` against a real server, and `quill serve` with the tensor models of a person."""

import json
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quill import QuillClient
from support.processes import quill, serving


@pytest.fixture(params=["http", "grpc"])
def url(request, server):
    return server["http"] if request.param == "http" else "grpc://" + server["grpc"]


@pytest.fixture
def file(tmp_path):
    save_file({"x": np.arange(4, dtype=np.float32), "w": np.ones((2, 3), np.int8)}, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def test_the_outputs_of_a_model_are_written_to_a_file(url, file):
    out = file.with_name("out.safetensors")
    ended = quill("infer", "identity", "--in", file, "--out", out, "--url", url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.splitlines()) == ["w  int8 [2, 3]", "x  float32 [4]"]
    assert {name: array.tolist() for name, array in load_file(out).items()} == {"x": [0, 1, 2, 3], "w": [[1] * 3] * 2}


def test_an_output_that_is_wanted_is_told_as_json(url, file):
    ended = quill("infer", "identity", "--in", file, "--output", "w", "--zstd", "--json", "--url", url)
    told = json.loads(ended.stdout)
    assert told.pop("requestId")
    assert told == {"model": "identity", "lane": "inline", "outputs": {"w": {"dtype": "int8", "shape": [2, 3]}}}


def test_a_file_is_put_and_its_checksums_compared(url, file):
    ended = quill("tensors", "put", file, "--to", url)
    assert re.fullmatch(r"2 tensors, 22 B in [\d.]+ s \([\d.]+ k?B/s, inline\), checksums equal\n", ended.stdout)
    told = json.loads(quill("tensors", "put", file, "--to", url, "--model", "identity", "--json").stdout)
    assert (told["model"], told["tensors"], told["bytes"], told["lane"]) == ("identity", 2, 22, "inline")


def test_a_large_file_shows_bars_on_a_terminal_only(server, tmp_path):
    save_file({"x": np.zeros(12_000_000, np.uint8)}, tmp_path / "x")
    command = [sys.executable, "-m", "quill", "tensors", "put", tmp_path / "x", "--to", server["http"]]
    assert quill(*command[3:]).stderr == ""
    ours, theirs = pty.openpty()
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=True)
    shown = os.read(ours, 2**16).decode()
    os.close(theirs)
    os.close(ours)
    assert "12.0 MB in" in ended.stdout.decode()
    assert "chunks), checksums equal" in ended.stdout.decode()
    assert "send" in shown
    assert "receive" in shown
    assert "12.0/12.0 MB" in shown


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["infer", "zebra", "--in", "FILE"], 1, "model 'zebra' is not known; known are: checksum, identity"),
        (["infer", "identity", "--in", "FILE", "--parameter", "x"], 2, "--parameter takes NAME=TEXT, got 'x'"),
        (["infer", "identity", "--in", "FILE", "--parameter", "a=1"], 1, "has no parameter 'a'; it has: none"),
        (["infer", "identity", "--in", "none"], 2, "cannot read none: No such file or directory"),
        (["tensors", "model", "zebra"], 1, "model 'zebra' is not known"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(server, file, arguments, status, said):
    given = [str(file) if one == "FILE" else one for one in arguments]
    ended = quill(*given, "--url", server["http"])
    assert (ended.returncode, ended.stdout) == (status, "")
    assert len(ended.stderr.splitlines()) == 1
    assert said in ended.stderr


MODELS = """
import numpy as np
from quill.tensors import TensorModels

models = TensorModels()

@models.model("scale", inputs={"x": ("float32", [-1])}, outputs={"y": ("float32", [-1])}, parameters={"by": "2"})
def scale(x, by):
    return x * np.float32(by)
"""


def test_serve_hosts_the_models_of_a_file(tmp_path):
    (tmp_path / "json.py").write_text(MODELS)  # which takes nobody's name away
    with serving("--tensor-models", str(tmp_path / "json.py"), "--large-tensors") as (_, ready):
        with QuillClient(ready["http"]) as client:
            x = np.array([1, 2], np.float32)
            assert client.tensors.infer("scale", {"x": x}, parameters={"by": "3"})["y"].tolist() == [3, 6]
            assert client.tensors.infer("identity", {"x": x})["x"].tolist() == [1, 2]
        shown = quill("tensors", "model", "scale", "--url", ready["http"]).stdout
        assert shown.splitlines() == ["scale", "  input   x  float32 [-1]", "  output  y  float32 [-1]"]
        told = json.loads(quill("tensors", "model", "scale", "--url", ready["http"], "--json").stdout)
        assert told["inputs"] == {"x": {"dtype": "float32", "shape": [-1]}}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1/0", "ZeroDivisionError: division by zero"),
        ("x = 1", "has no TensorModels"),
        (MODELS.replace('"scale"', '"identity"'), "there is a model 'identity' already"),
    ],
)
def test_serve_refuses_models_that_it_cannot_load(tmp_path, code, said):
    (tmp_path / "mine.py").write_text(code)
    ended = quill("serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--tensor-models", tmp_path / "mine.py")
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_serve_hosts_the_models_of_a_module(tmp_path):
    (tmp_path / "my_models.py").write_text(MODELS)
    command = [sys.executable, "-m", "quill", "serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--json", "--tensor-models", "my_models"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        ready = json.loads(process.stdout.readline())
        with QuillClient("grpc://" + ready["grpc"]) as client:
            assert client.tensors.model("scale").outputs.keys() == {"y"}
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0
