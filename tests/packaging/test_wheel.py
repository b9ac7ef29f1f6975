"""The wheel works away from the checkout: data, licences and types are in it, and the demo runs."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_data_licences_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "quill/py.typed",
        "shard_client/py.typed",
        "quill/adapters/ngram/data/LICENSE.txt",
        "quill/_gen/inference/v1/llm_pb2.pyi",
    } <= names
    ends = {name.rpartition("/")[2] for name in names if ".dist-info/licenses/" in name}
    assert ends >= {"LICENSE-MIT", "LICENSE-APACHE"}
    assert {name.split("/")[0] for name in names} <= {
        "quill",
        "shard_client",
        f"{wheel.name.split('-py3')[0]}.dist-info",
    }


@pytest.mark.timeout(300)
def test_the_demo_runs_from_an_installed_wheel(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--require-hashes", "-r", ROOT / "requirements" / "runtime.txt"], check=True)
    subprocess.run([*install, "--no-deps", wheel], check=True)
    command = [tmp_path / "env" / "bin" / "quill", "demo"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "not an LLM" in ended.stdout
    assert "Quill, gRPC" in ended.stdout
    assert "Quill, Connect" in ended.stdout
