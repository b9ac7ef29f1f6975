"""Write gen/ beside this file: the messages of the conformance suite, from the .proto files of its Go module.

usage: python interop/conformance/generate.py FOLDER

FOLDER holds connectrpc/conformance/v1/*.proto (Copyright The Connect Authors, Apache-2.0). What is written is not
committed. It lies in a package of its own, because one that is called as protoc would, `connectrpc`, is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = Path(__file__).resolve().parent / "gen"
PROTOS = "connectrpc/conformance/v1"
IMPORT_FROM = re.compile(r"^from connectrpc\.conformance\.v1 import ", re.M)


def main(protos: Path) -> None:
    """Generate and rewrite the imports."""
    names = sorted(path.relative_to(protos).as_posix() for path in (protos / PROTOS).glob("*.proto"))
    if not names:
        sys.exit(f"there are no .proto files in {protos / PROTOS}")
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python")]
        flags += [f"--{kind}_out=quiet:{folder}" for kind in ("mypy", "mypy_grpc")]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", *flags, *names], check=True)
        shutil.rmtree(TARGET, ignore_errors=True)
        TARGET.mkdir()
        for source in sorted(Path(folder, PROTOS).iterdir()):
            (TARGET / source.name).write_text(IMPORT_FROM.sub(f"from {TARGET.name} import ", source.read_text()))
    (TARGET / "__init__.py").write_text("")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
