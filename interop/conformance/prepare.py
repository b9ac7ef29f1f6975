"""Install the runner of the conformance suite, and write gen/ beside this file: the suite's messages.

usage: python interop/conformance/prepare.py

The runner is a Go program; the .proto files come with its module (Copyright The Connect Authors, Apache-2.0). Neither
they nor what is made of them is committed. The generated modules lie in a package of their own, because one that is
called as protoc would, `connectrpc`, is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE, VERSION = "connectrpc.com/conformance", "v1.0.7"
HERE = Path(__file__).resolve().parent
RUNNER = HERE / ".tools" / "connectconformance"
TARGET = HERE / "gen"
PROTOS = "connectrpc/conformance/v1"
IMPORT_FROM = re.compile(r"^from connectrpc\.conformance\.v1 import ", re.M)


def install() -> Path:
    """Build the runner. Returns where the .proto files of its module are."""
    env = os.environ | {"GOBIN": str(RUNNER.parent)}
    subprocess.run(["go", "install", f"{MODULE}/cmd/connectconformance@{VERSION}"], env=env, check=True)
    found = subprocess.run(["go", "mod", "download", "-json", f"{MODULE}@{VERSION}"], check=True, capture_output=True)
    return Path(json.loads(found.stdout)["Dir"]) / "proto"


def generate(protos: Path) -> None:
    """Run protoc, and rewrite the imports."""
    names = sorted(path.relative_to(protos).as_posix() for path in (protos / PROTOS).glob("*.proto"))
    env = os.environ | {"PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]}
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python")]
        flags += [f"--{kind}_out=quiet:{folder}" for kind in ("mypy", "mypy_grpc")]
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", *flags, *names]
        subprocess.run(command, env=env, check=True)
        shutil.rmtree(TARGET, ignore_errors=True)
        TARGET.mkdir()
        for source in sorted(Path(folder, PROTOS).iterdir()):
            (TARGET / source.name).write_text(IMPORT_FROM.sub(f"from {TARGET.name} import ", source.read_text()))
    (TARGET / "__init__.py").write_text("")


if __name__ == "__main__":
    generate(install())
