"""Programs of other languages: how they are built and run, as their folder's program.json says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
COMMON_CASES = (
    "generate",
    "stream_generate",
    "stream_cancel",
    "embed",
    "infer",
    "error_details",
    "deadline",
    "metadata",
    "compression",
)
"""What every program runs."""
PROGRAM_TIMEOUT_S = 120
_END_S = 20
"""How long a killed process may take to be gone."""
_SETUP_TIMEOUT_S = 300
_SHOWN_BYTES = 4000
"""How much of a failed command's output is shown, from its end."""


class SetupError(Exception):
    """A language's programs could not be built."""


@dataclass(frozen=True, slots=True)
class Program:
    """One client program."""

    folder: Path
    language: str
    name: str
    command: Sequence[str]
    ways: Sequence[str]
    cases: Sequence[str]
    impossible: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By way, or ``*`` for all of them, and case: why the library cannot do it."""
    page: bool = False
    """Whether it needs an origin of web pages."""


@dataclass(frozen=True, slots=True)
class ForeignServer:
    """One server program of interop.v1.PlayService, for the reverse."""

    folder: Path
    name: str
    command: Sequence[str]
    ways: Sequence[str]
    reflects_over: Sequence[str]
    """The ways over which it answers server reflection."""
    impossible: Mapping[str, Mapping[str, str]]
    """As of programs."""


@dataclass(frozen=True, slots=True)
class Host:
    """One host of Quill's ASGI application, with one port for all protocols."""

    folder: Path
    name: str
    command: Sequence[str]
    callers: Sequence[str]
    """Which programs call it."""


@dataclass(frozen=True, slots=True)
class Language:
    """One folder."""

    folder: Path
    setup: Sequence[Sequence[str]]
    setup_timeout_s: float
    programs: Sequence[Program]
    servers: Sequence[ForeignServer]
    hosts: Sequence[Host]

    def build(self) -> None:
        """Run the setup.

        Raises:
            SetupError: One of its commands failed.
        """
        for command in self.setup:
            done = run(command, self.folder, self.setup_timeout_s)
            if done.returncode != 0:
                raise SetupError(
                    f"{self.folder.name}: {' '.join(command)} ended with {done.returncode}\n"
                    f"{done.stdout[-_SHOWN_BYTES:]}{done.stderr[-_SHOWN_BYTES:]}"
                )


def languages() -> list[Language]:
    """All folders with a program.json, by name."""
    return [_language(path) for path in sorted(ROOT.glob("*/program.json"))]


def _language(path: Path) -> Language:
    told: dict[str, Any] = json.loads(path.read_text("utf-8"))
    folder = path.parent
    return Language(
        folder,
        told["setup"],
        told.get("setup_timeout_s", _SETUP_TIMEOUT_S),
        [_program(folder, one) for one in told.get("programs", ())],
        [_server(folder, one) for one in told.get("servers", ())],
        [Host(folder, one["name"], one["command"], one["callers"]) for one in told.get("hosts", ())],
    )


def _program(folder: Path, told: Mapping[str, Any]) -> Program:
    return Program(
        folder,
        told.get("language", folder.name),
        told["name"],
        told["command"],
        told["ways"],
        (*COMMON_CASES, *told.get("also", ())),
        told.get("impossible", {}),
        told.get("page", False),
    )


def _server(folder: Path, told: Mapping[str, Any]) -> ForeignServer:
    return ForeignServer(
        folder,
        told["name"],
        told["command"],
        told["ways"],
        told.get("reflects_over", ()),
        told.get("impossible", {}),
    )


def environment(folder: Path) -> dict[str, str]:
    """The environment of a folder's commands: its own tools and buf come first on the path."""
    tools = (folder / ".tools", ROOT.parent / ".venv-generate" / "bin")
    return os.environ | {"PATH": os.pathsep.join([*map(str, tools), os.environ["PATH"]])}


def run(command: Sequence[str], folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. When its time is over it is killed, with all that it started; the code is then 124."""
    with started(command, folder, stderr=subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            output, errors = process.communicate(timeout=_END_S)
            return subprocess.CompletedProcess(command, 124, output, f"{errors}\nnot done after {timeout_s:g} s\n")
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextlib.contextmanager
def started(
    command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None, stderr: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, which is killed when the block is left.

    Args:
        command: What to run.
        folder: Where.
        more: What its environment has besides.
        stderr: Where its standard error goes; where None, it is ours.
    """
    process = subprocess.Popen(
        [_found(command[0], folder), *command[1:]],
        cwd=folder,
        env=environment(folder) | dict(more or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _kill_group(process)
        process.communicate(timeout=_END_S)


def _found(program: str, folder: Path) -> str:
    """A program of the folder by its path there, others by the PATH."""
    return str(folder / program) if "/" in program else program


def _kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
