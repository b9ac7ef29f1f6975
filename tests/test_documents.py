"""The documents' Python blocks and the examples run as they stand, and show what they say they show."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import quill
from quill.testing.sidecar import SidecarProcess

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    "README.md",
    "docs/bindings.md",
    "docs/engines.md",
    "docs/interceptors.md",
    "docs/one_port.md",
    "docs/shard.md",
    "docs/tensors.md",
    "docs/testing.md",
]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
SHOWN = re.compile(r"^\s*print\(.*\)  # (.+)$", re.MULTILINE)
BLOCKS = [(name, n, code) for name in DOCUMENTS for n, code in enumerate(BLOCK.findall((ROOT / name).read_text()), 1)]


@pytest.fixture(scope="module")
def sidecar():
    with SidecarProcess("A") as process:
        yield process


def run(arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(("code"), [block[2] for block in BLOCKS], ids=[f"{name}-{n}" for name, n, _ in BLOCKS])
def test_a_block_runs_and_shows_what_it_says(code, server, sidecar):
    ready = code.replace("http://127.0.0.1:8080", server["http"]).replace("127.0.0.1:50051", server["grpc"])
    ready = ready.replace("http://127.0.0.1:9091", sidecar.url)
    ended = run(["-c", ready])
    assert ended.returncode == 0, ended.stderr
    lines = iter(ended.stdout.splitlines())
    for shown in SHOWN.findall(code):
        assert any(shown.strip() in line for line in lines), f"{shown!r} was not shown in:\n{ended.stdout}"


def test_the_fixture_of_the_page_on_testing_works(server, tmp_path):
    code = next(code for name, _, code in BLOCKS if name == "docs/testing.md" and "@pytest.fixture" in code)
    (tmp_path / "test_it.py").write_text(code.replace("http://127.0.0.1:8080", server["http"]))
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    ended = run(["-m", "pytest", tmp_path])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("name", ["call.py", "stream.py", "embed.py"])
def test_a_client_example_runs(name, protocol, server):
    url = server["http"] if protocol == "http" else "grpc://" + server["grpc"]
    ended = run([ROOT / "examples" / name, url])
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) >= 2


@pytest.mark.parametrize("transport", ["http_poll", "websocket", "quill"])
def test_the_example_of_the_shard_sdk_runs(transport, server, sidecar):
    url = server["http"] if transport == "quill" else sidecar.url
    ended = run([ROOT / "examples" / "shard_sdk.py", url, transport])
    assert ended.returncode == 0, ended.stderr
    assert "The Hatter:" in ended.stdout


@pytest.mark.parametrize(
    ("name", "shows"),
    [("own_backend.py", "desserts"), ("own_servicer.py", "[0. 2. 4.]"), ("own_tensor_model.py", "0.75")],
)
def test_a_server_example_runs(name, shows):
    ended = run([ROOT / "examples" / name])
    assert ended.returncode == 0, ended.stderr
    assert shows in ended.stdout


def test_the_example_of_one_port_runs_in_an_asgi_host(unused_tcp_port):
    """uvicorn sends no trailers, so there is no gRPC here; `make interop` has it in pyvoy."""
    command = [sys.executable, "-m", "uvicorn", "--app-dir", ROOT / "examples", "--log-level", "warning"]
    with subprocess.Popen([*command, "--port", str(unused_tcp_port), "one_port:app"]) as host:
        try:
            with quill.QuillClient(f"http://127.0.0.1:{unused_tcp_port}") as client:
                until = time.monotonic() + 60
                while not client.health_check():
                    assert time.monotonic() < until
                    time.sleep(0.1)
                assert client.llm.generate("Alice was", max_tokens=5).text
        finally:
            host.terminate()


def test_every_example_is_run():
    named = {
        "call.py",
        "stream.py",
        "embed.py",
        "one_port.py",
        "own_backend.py",
        "own_servicer.py",
        "own_tensor_model.py",
        "shard_sdk.py",
    }
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == named
