"""Who takes part, and the two processes of each: a server and a driver, which transfer what they are told."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_ROOT = HERE.parents[1]
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to move a tensor."""

    name: str
    program: str
    variant: str = ""
    smallest_bytes: int = 0
    largest_bytes: int = 2**62

    @property
    def python(self) -> str:
        """Flight and Triton have an environment of their own: tritonclient needs an older protobuf."""
        peers = _ROOT / ".venv-peers" / "bin" / "python"
        return str(peers) if self.program in {"flight.py", "triton.py"} else sys.executable

    def takes(self, size_bytes: int) -> bool:
        """Whether it is meant for tensors of this size."""
        return self.smallest_bytes <= size_bytes <= self.largest_bytes


CONTENDERS = (
    Contender("tcp", "tcp.py"),
    Contender("stub", "stub.py"),
    Contender("flight_one_batch", "flight.py", "one"),
    Contender("flight_batches", "flight.py", "many"),
    Contender("triton", "triton.py"),
    Contender("quill_inline", "quill_lanes.py", "inline", largest_bytes=16 * MIB),
    Contender("quill_chunks", "quill_lanes.py", "chunks", smallest_bytes=MIB),
    Contender("quill_socket", "quill_lanes.py", "socket", smallest_bytes=64 * 1024),
    Contender("quill_shm", "quill_lanes.py", "shm", smallest_bytes=64 * 1024),
    Contender("quill_auto", "quill_lanes.py", "auto"),
)


@dataclass(slots=True)
class Processes:
    """A server and a driver. One pair serves all variants of a program."""

    server: subprocess.Popen[str]
    driver: subprocess.Popen[str]
    copies: dict[str, Path] = field(default_factory=dict)
    """By side: where copies.c counts, if it does."""

    def transfer(self, way: str, size_bytes: int, variant: str, *, count: int, content: str = "float32") -> list[float]:
        """Have tensors transferred. Returns the milliseconds of each.

        Raises:
            RuntimeError: The driver has ended instead.
        """
        order = {"way": way, "size_bytes": size_bytes, "variant": variant, "count": count, "content": content}
        assert self.driver.stdin is not None  # noqa: S101  # it is a pipe
        assert self.driver.stdout is not None  # noqa: S101
        self.driver.stdin.write(json.dumps(order) + "\n")
        self.driver.stdin.flush()
        line = self.driver.stdout.readline()
        if not line:
            raise RuntimeError(f"the driver ended on {order}; what it wrote stands above")
        taken: list[float] = json.loads(line)["ms"]
        return taken

    def copied_bytes(self, side: str) -> int:
        """What one side has copied in user space, in pieces of 64 KiB and more."""
        (count,) = struct.unpack("<q", self.copies[side].read_bytes())
        return int(count)

    def sides(self) -> dict[str, int]:
        """The processes by side."""
        return {"server": self.server.pid, "driver": self.driver.pid}


@contextlib.contextmanager
def pairs(*, counting: bool = False) -> Iterator[Any]:
    """A function from contenders to their processes, which start when first needed and end with the context.

    Args:
        counting: Count copies, by a library that the C compiler makes.
    """
    started: dict[str, Processes] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if counting:
            source, library = HERE / "copies.c", folder / "copies.so"
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)  # noqa: S607

        def start(contender: Contender, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
            env, count = dict(os.environ), folder / f"{contender.program}-{arguments[0]}"
            if counting:
                count.write_bytes(bytes(8))
                env |= {"LD_PRELOAD": str(folder / "copies.so"), "COPIES_FILE": str(count)}
            command = [contender.python, str(HERE / contender.program), *arguments]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
            stack.callback(_end, process)
            return process, count

        def of(contender: Contender) -> Processes:
            found = started.get(contender.program)
            if found is None:
                server, server_count = start(contender, "serve")
                assert server.stdout is not None  # noqa: S101  # it is a pipe
                address = json.loads(server.stdout.readline())["address"]
                driver, driver_count = start(contender, "drive", address)
                copies = {"server": server_count, "driver": driver_count} if counting else {}
                found = started[contender.program] = Processes(server, driver, copies)
            return found

        yield of


def _end(process: subprocess.Popen[str]) -> None:
    """Close its standard input, on which it ends."""
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
