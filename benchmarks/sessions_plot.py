"""Draws what ``sessions.py`` measured: the time to the first token and the CPU time a token, by generations held."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_NAMES = {
    "stepped": "one session, engine steps all",
    "tasks": "one session, a task for each",
    "streams": "a stream for each",
}
_LIMIT_MS = 100


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG. Filled marks were held, the others were not.

    Args:
        points: What ``sessions.py`` tells of each.
        path: Where it goes.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (latency, cpu) = plt.subplots(1, 2, figsize=(11, 4.2))
    for number, (way, name) in enumerate(_NAMES.items()):
        mine = sorted((point for point in points if point["way"] == way), key=lambda point: point["generations"])
        if not mine:
            continue
        color, held = f"C{number}", [point["held"] for point in mine]
        counts = [point["generations"] for point in mine]
        for axes, sides in ((latency, ["first_token_p99_ms"]), (cpu, ["server_us_per_token", "client_us_per_token"])):
            for side in sides:
                style = "--" if side.startswith("client") else "-"
                label = f"{name}, {side.partition('_')[0]}" if axes is cpu else name
                values = [point[side] for point in mine]
                axes.plot(counts, values, style, color=color, alpha=0.6, label=label)
                faces = [color if ok else "white" for ok in held]
                axes.scatter(counts, values, c=faces, edgecolors=color, s=28, zorder=3)
    latency.axhline(_LIMIT_MS, color="gray", linewidth=0.8, linestyle=":")
    latency.set(xscale="log", yscale="log", xlabel="generations at 20 tokens/s", ylabel="first token, p99, ms")
    cpu.set(xscale="log", yscale="log", xlabel="generations at 20 tokens/s", ylabel="CPU microseconds a token")
    for axes in (latency, cpu):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    latency.set_title("filled: pace within 10%, p99 below 100 ms", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
