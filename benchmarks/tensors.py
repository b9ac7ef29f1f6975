"""Tensors put to a server and got from it: raw TCP, generated stubs, Arrow Flight, tritonclient, and Quill by lane.

usage: python benchmarks/tensors.py [--json] [--rounds N] [--sizes 1KiB,1MiB,256MiB] [--only NAME,NAME] [--ways put,get]
       [--no-extras] [--plot FILE.png]

Each contender has a server and a client process, which stay for the whole run. In each round all have their turn, in
one order and in the next round backwards; what counts is the median of the rounds, and ratios are taken round by round.
Besides: payload compression against gzip of gRPC, copies in user space, and peak memory of 1 GiB by chunks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "tensor_peers"))

from contenders import CONTENDERS, MIB, Contender, Processes, pairs

SIZES = {"1KiB": 1024, "64KiB": 64 * 1024, "1MiB": MIB, "16MiB": 16 * MIB, "256MiB": 256 * MIB}
_TURN_BYTES = 256 * MIB
_MOST_A_TURN = 200
_MEMORY_BYTES = 1024 * MIB
_COMPRESSED_BYTES = 4 * MIB
_BY_NAME = {contender.name: contender for contender in CONTENDERS}
_FLIGHT = ("flight_one_batch", "flight_batches")
_NETWORK = ("quill_inline", "quill_chunks", "quill_socket")

Of = Callable[[Contender], Processes]
Times = dict[tuple[str, str, str], list[float]]
"""Milliseconds by contender, way and size: the median of each round's turn."""

TARGETS: tuple[tuple[str, str, str, tuple[str, ...], tuple[str, ...], float], ...] = (
    ("chunks_over_tcp", "put", "256MiB", ("quill_chunks",), ("tcp",), 0.65),
    ("chunks_over_flight_one_batch", "put", "256MiB", ("quill_chunks",), ("flight_one_batch",), 1.4),
    ("chunks_over_stub", "put", "256MiB", ("quill_chunks",), ("stub",), 8.0),
    ("network_lane_over_tcp", "put", "256MiB", _NETWORK, ("tcp",), 0.90),
    ("network_lane_over_flight", "put", "16MiB", _NETWORK, _FLIGHT, 1.0),
    ("shm_over_flight", "put", "256MiB", ("quill_shm",), _FLIGHT, 3.0),
    ("inline_over_stub", "put", "1MiB", ("quill_inline",), ("stub",), 1.5),
    ("inline_over_triton", "put", "1MiB", ("quill_inline",), ("triton",), 2.0),
    ("auto_over_triton", "put", "1MiB", ("quill_auto",), ("triton",), 2.0),
)
"""Name, way, size, whose speed (the best of them), over whose (the best of them), and what it should be at least."""


def measure(of: Of, names: list[str], sizes: list[str], ways: list[str], rounds: int) -> Times:
    """Let all transfer in turns."""
    times: Times = {}
    for size in sizes:
        size_bytes = SIZES[size]
        count = max(1, min(_MOST_A_TURN, _TURN_BYTES // size_bytes))
        taking = [_BY_NAME[name] for name in names if _BY_NAME[name].takes(size_bytes)]
        for way in ways:
            for one in taking:  # warm: connections, buffers, pages
                of(one).transfer(way, size_bytes, one.variant, count=2)
            for number in range(rounds):
                for one in taking if number % 2 == 0 else reversed(taking):
                    ms = of(one).transfer(way, size_bytes, one.variant, count=count)
                    times.setdefault((one.name, way, size), []).append(statistics.median(ms))
    return times


def ratio(times: Times, way: str, size: str, mine: tuple[str, ...], its: tuple[str, ...]) -> float | None:
    """How many times as fast the best of ``mine`` is as the best of ``its``: the median of the rounds."""
    try:
        fast = min((times[name, way, size] for name in mine if (name, way, size) in times), key=statistics.median)
        slow = min((times[name, way, size] for name in its if (name, way, size) in times), key=statistics.median)
    except ValueError:
        return None
    return statistics.median(other / own for own, other in zip(fast, slow, strict=True))


def compression(of: Of, rounds: int) -> dict[str, Any]:
    """4 MiB put with the payload compressed by zstd, against gzip of gRPC and against none."""
    figures: dict[str, Any] = {}
    stub, quill = _BY_NAME["stub"], _BY_NAME["quill_inline"]
    ways = {"gzip": (stub, "gzip"), "zstd": (quill, "zstd"), "none": (quill, "inline")}
    for content in ("json", "float32", "tokens"):
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, (contender, variant) in ways.items():
                ms = of(contender).transfer("put", _COMPRESSED_BYTES, variant, count=2, content=content)
                if number:
                    taken[name] += ms
        medians = {name: statistics.median(ms) for name, ms in taken.items()}
        figures[f"zstd_over_gzip_{content}"] = round(medians["gzip"] / medians["zstd"], 1)
        figures |= {f"{content}_{name}_ms": round(ms, 1) for name, ms in medians.items()}
        figures[f"zstd_{content}_gb_per_s"] = round(_COMPRESSED_BYTES / medians["zstd"] / 1e6, 3)
    return figures


def copies(names: list[str], size_bytes: int = 64 * MIB) -> dict[str, float]:
    """How often each byte of a tensor is copied in user space on either side; the kernel's two copies are not in it."""
    figures = {}
    with pairs(counting=True) as of:
        for one in (_BY_NAME[name] for name in names):
            if not one.takes(size_bytes):
                continue
            for way in ("put", "get"):
                processes = of(one)
                processes.transfer(way, size_bytes, one.variant, count=2)
                before = {side: processes.copied_bytes(side) for side in processes.sides()}
                processes.transfer(way, size_bytes, one.variant, count=2)
                for side, count in before.items():
                    copied = processes.copied_bytes(side) - count
                    figures[f"{one.name}_{way}_{side}_copies"] = round(copied / size_bytes / 2, 2)
    return figures


def memory() -> dict[str, float]:
    """The peak of 1 GiB by chunks into ``out=``, beside the tensor itself: the sender's and the receiver's."""
    figures = {}
    one = _BY_NAME["quill_chunks"]
    for way in ("put", "get"):
        with pairs() as of:
            processes: Processes = of(one)
            processes.transfer(way, 16 * MIB, one.variant, count=2)
            processes.transfer(way, _MEMORY_BYTES, one.variant, count=1)  # the tensors themselves are there now
            before = {side: _kib(pid, "VmRSS") for side, pid in processes.sides().items()}
            for pid in processes.sides().values():
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM begins anew: proc(5)
            processes.transfer(way, _MEMORY_BYTES, one.variant, count=2)
            for side, pid in processes.sides().items():
                figures[f"{way}_1gib_{side}_extra_mib"] = round((_kib(pid, "VmHWM") - before[side]) / 1024, 1)
    return figures


def _kib(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise LookupError(name)


def figures_of(times: Times, sizes: list[str], ways: list[str]) -> dict[str, Any]:
    """Medians, ratios to raw TCP, and the targets."""
    figures: dict[str, Any] = {}
    for name, way, size, mine, its, _ in TARGETS:
        found = ratio(times, way, size, mine, its)
        if found is not None:
            figures[f"{name}_{way}_{size}"] = round(found, 2)
    for size in sizes:
        for way in ways:
            for name in (contender.name for contender in CONTENDERS if (contender.name, way, size) in times):
                median_ms = statistics.median(times[name, way, size])
                figures[f"{name}_{way}_{size}_ms"] = round(median_ms, 3)
                over_tcp = ratio(times, way, size, (name,), ("tcp",))
                if over_tcp is not None:
                    figures[f"{name}_{way}_{size}_over_tcp"] = round(over_tcp, 2)
    return figures


def table(figures: dict[str, Any], sizes: list[str], ways: list[str]) -> str:
    """For people: a table for each way, then the targets."""
    lines = [_machine()]
    for way in ways:
        lines += ["", f"{way}, ms (x raw TCP)".ljust(22) + "".join(size.rjust(20) for size in sizes)]
        for contender in CONTENDERS:
            cells = []
            for size in sizes:
                key = f"{contender.name}_{way}_{size}"
                ms, over = figures.get(f"{key}_ms"), figures.get(f"{key}_over_tcp")
                cells.append("-" if ms is None else f"{ms:.2f}" + ("" if over is None else f" ({over:.2f})"))
            lines.append(contender.name.ljust(22) + "".join(cell.rjust(20) for cell in cells))
    lines += ["", "target".ljust(44) + "seen".rjust(8) + "at least".rjust(10)]
    for name, way, size, _, _, least in TARGETS:
        seen = figures.get(f"{name}_{way}_{size}")
        lines.append(
            f"{name}, {way} {size}".ljust(44) + ("-" if seen is None else f"{seen:.2f}").rjust(8) + f"{least:10.2f}"
        )
    rest = {key: value for key, value in figures.items() if key.endswith(("_mib", "_copies")) or "zstd" in key}
    lines += ["", *(f"{key:44}{value:>8}" for key, value in rest.items())]
    return "\n".join(lines)


def _machine() -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("grpcio", "protobuf", "numpy"))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{platform.machine()}, {os.cpu_count()} cores, load {load}, Python {platform.python_version()}, {versions}"


def plot(figures: dict[str, Any], sizes: list[str], ways: list[str], path: str) -> None:
    """Throughput by size, one panel for each way."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    _, panels = plt.subplots(1, len(ways), figsize=(6.5 * len(ways), 5), sharey=True, squeeze=False)
    for way, panel in zip(ways, panels[0], strict=True):
        for contender in CONTENDERS:
            points = [(SIZES[size], figures.get(f"{contender.name}_{way}_{size}_ms")) for size in sizes]
            known = [(size, size / ms / 1e6) for size, ms in points if ms is not None]
            if not known:
                continue
            style = "-" if contender.name.startswith("quill") else "--"
            panel.plot(
                [x for x, _ in known], [y for _, y in known], style, marker="o", markersize=4, label=contender.name
            )
        panel.set(xscale="log", yscale="log", xlabel="size of the tensor", ylabel="GB/s", title=way)
        panel.set_xticks([SIZES[size] for size in sizes], sizes)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    plt.tight_layout()
    plt.savefig(path, dpi=110)


def main() -> None:
    """Measure what the command line says, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--ways", default="put,get")
    parser.add_argument("--only", default=",".join(_BY_NAME), help="who takes part")
    parser.add_argument("--no-extras", action="store_true", help="no compression, copies and memory")
    parser.add_argument("--plot", metavar="FILE", help="draw what was measured")
    given = parser.parse_args()
    names, sizes, ways = given.only.split(","), given.sizes.split(","), given.ways.split(",")
    with pairs() as of:
        times = measure(of, names, sizes, ways, given.rounds)
        figures = figures_of(times, sizes, ways)
        if not given.no_extras:
            figures |= compression(of, given.rounds)
    if not given.no_extras:
        figures |= copies(names) | memory()
    if given.plot:
        plot(figures, sizes, ways, given.plot)
    print(json.dumps(figures, indent=2) if given.json else table(figures, sizes, ways))


if __name__ == "__main__":
    main()
