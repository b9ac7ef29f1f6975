"""What a benchmark prints: a table for people, or one JSON object."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rounds import Bench, Spread, Workload, bench

_LIBRARIES = ("grpcio", "connectrpc", "uvicorn", "pyqwest", "protobuf")
Compare = Callable[[Bench, Workload, "Options"], "Comparison"]
"""Measures one workload."""

_PARTS = ("client", "server", "client_alone", "server_alone")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    as_json: bool
    rounds: int
    calls: int | None
    """In a turn; None for what suits the workload."""
    only: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Quill against a peer in one workload."""

    name: str
    bound: float
    """What the ratio should not exceed."""
    ratio: Spread
    """CPU time, client and server together."""
    parts: dict[str, Spread]
    """The same by side; ``alone`` with the other side bare."""
    bare_us: float
    quill_us: float
    """CPU time per call, client and server together."""

    def values(self) -> dict[str, float]:
        """Ratios and figures, with their units in the keys."""
        values = {
            f"{self.name}_cpu_ratio": self.ratio.median,
            f"{self.name}_cpu_ratio_q1": self.ratio.q1,
            f"{self.name}_cpu_ratio_q3": self.ratio.q3,
            **{f"{self.name}_{part}_cpu_ratio": spread.median for part, spread in self.parts.items()},
        }
        figures = {f"{self.name}_bare_cpu_us": self.bare_us, f"{self.name}_quill_cpu_us": self.quill_us}
        return {key: round(value, 3) for key, value in values.items()} | {
            key: round(value, 1) for key, value in figures.items()
        }


def options(description: str | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=9, help="how often each peer has its turn, twice each time")
    parser.add_argument("--calls", type=int, help="calls in a turn")
    parser.add_argument("--only", choices=("grpc", "http"), help="one port alone")
    given = parser.parse_args()
    return Options(given.json, given.rounds, given.calls, given.only)


def run_all(options: Options, workloads: Iterable[Workload], compare: Compare) -> list[Comparison]:
    """Measure workloads one after the other."""
    with bench() as on:
        return [compare(on, workload, options) for workload in workloads if options.only in {None, workload.port}]


def show(options: Options, comparisons: Iterable[Comparison]) -> None:
    """Print what was measured."""
    printer: Callable[[Iterable[Comparison]], str] = as_json if options.as_json else as_table
    print(printer(comparisons))


def as_json(comparisons: Iterable[Comparison]) -> str:
    """One object."""
    return json.dumps({key: value for one in comparisons for key, value in one.values().items()}, indent=2)


def as_table(comparisons: Iterable[Comparison]) -> str:
    """Where it ran, and a line for each comparison."""
    head = ["CPU time, Quill / bare", "ratio (quartiles)", "bound", *map(_spaced, _PARTS), "bare us", "Quill us"]
    rows = [head]
    for one in comparisons:
        parts = [f"{one.parts[part].median:.2f}" if part in one.parts else "" for part in _PARTS]
        figures = [f"{one.bare_us:.0f}", f"{one.quill_us:.0f}"]
        rows.append([_spaced(one.name), str(one.ratio), f"{one.bound:.2f}", *parts, *figures])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([_machine(), "", *lines])


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _machine() -> str:
    """The machine and the versions, in a line."""
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    python = platform.python_version()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{platform.machine()}, {os.cpu_count()} cores, load {load}; {sys.platform}, Python {python}, {libraries}"
