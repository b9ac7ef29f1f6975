"""Write quill/_gen from proto/: messages, stubs and their types, with imports inside the package.

usage: python tools/generate.py [--check]

Runs `buf build` and a protoc no newer than the oldest grpcio that Quill supports, because generated stubs refuse a
grpcio older than their generator. The generators live in requirements/generate.txt, apart from everything
else. With --check nothing is written and the exit status says whether the committed code is what comes out.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "quill" / "_gen"
PACKAGE = "quill._gen"
BANNER = "# Written by tools/generate.py from proto/. Do not edit.\n"

IMPORT_FROM = re.compile(r"^(\s*)from (inference\.v1) import ", re.M)


def run_buf_and_protoc(out: Path) -> None:
    """Generate everything under `out`, with the imports as protoc writes them."""
    beside_python = str(Path(sys.executable).parent)
    env = os.environ | {"PATH": beside_python + os.pathsep + os.environ["PATH"]}
    image = out / "image.binpb"
    subprocess.run(["buf", "build", "-o", str(image)], cwd=ROOT, env=env, check=True)
    protos = [path.relative_to(ROOT / "proto").as_posix() for path in sorted((ROOT / "proto").rglob("*.proto"))]
    flags = [f"--{kind}_out={out}" for kind in ("python", "grpc_python")]
    flags += [f"--{kind}_out=quiet:{out}" for kind in ("mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={image}", *flags, *protos]
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    image.unlink()


def rewrite(text: str) -> str:
    """The same module with its imports of generated code pointing into the package."""
    return BANNER + IMPORT_FROM.sub(rf"\1from {PACKAGE}.\2 import ", text)


def has_services(grpc_module: Path) -> bool:
    """Whether a generated *_pb2_grpc module defines any stub."""
    return "Stub(object):" in grpc_module.with_suffix(".py").read_text()


def collect(raw: Path, out: Path) -> None:
    """Copy what protoc wrote, rewritten, without the stubs of files that define no service."""
    for source in sorted(raw.rglob("*.py*")):
        if "_pb2_grpc" in source.name and not has_services(source):
            continue
        target = out / source.relative_to(raw)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(rewrite(source.read_text()))
    for folder in [out, *(path for path in sorted(out.rglob("*")) if path.is_dir())]:
        (folder / "__init__.py").write_text(BANNER)


def differences(new: Path, old: Path) -> list[str]:
    """The files that differ between two trees, by their names."""
    names = {path.relative_to(tree).as_posix() for tree in (new, old) for path in tree.rglob("*.py*")}
    names = {name for name in names if not name.endswith(".pyc")}
    _, mismatch, errors = filecmp.cmpfiles(new, old, sorted(names), shallow=False)
    return sorted(mismatch + errors)


def main() -> int:
    """Generate, then compare or replace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the committed code differs")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder, "raw"), Path(folder, "out")
        raw.mkdir()
        run_buf_and_protoc(raw)
        collect(raw, out)
        if not check:
            shutil.rmtree(TARGET, ignore_errors=True)
            shutil.copytree(out, TARGET)
            return 0
        stale = differences(out, TARGET)
    for name in stale:
        print(f"quill/_gen/{name} is not what tools/generate.py writes; run: make generate", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
