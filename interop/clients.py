"""The script of calls, run by the client programs of other languages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from programs import PROGRAM_TIMEOUT_S, Program, run
from servers import Servers
from table import Cell, Mark


def cells(program: Program, servers: Servers) -> Iterator[Cell]:
    """Run a program over each of its ways."""
    for way in program.ways:
        done = run([*program.command, *servers.arguments(way, page=program.page)], program.folder, PROGRAM_TIMEOUT_S)
        yield from judged(program, way, done)


def judged(program: Program, way: str, done: subprocess.CompletedProcess[str]) -> Iterator[Cell]:
    """What a program's run over one way says of each case."""
    told = _told(done.stdout)
    if done.stderr:
        print(f"--- {program.name} over {way}:\n{done.stderr}", file=sys.stderr)
    impossible = {**program.impossible.get("*", {}), **program.impossible.get(way, {})}
    for case in dict.fromkeys([*program.cases, *told]):
        mark, detail = Mark.RED, f"not reported; the program ended with {done.returncode}"
        if case in told:
            mark = Mark.GREEN if told[case]["ok"] is True else Mark.RED
            detail = told[case]["detail"]
        elif case in impossible:
            mark, detail = Mark.IMPOSSIBLE, impossible[case]
        yield Cell(program.language, program.name, way, case, mark, detail)
    if done.returncode != 0:
        yield Cell(program.language, program.name, way, "(exit)", Mark.RED, f"the program ended with {done.returncode}")


def _told(output: str) -> dict[str, dict[str, Any]]:
    """What a program printed, by case. A line that is no report becomes a red case of its own."""
    told = {}
    for line in output.splitlines():
        try:
            report = json.loads(line)
            told[report["case"]] = {"ok": report["ok"], "detail": report["detail"]}
        except (ValueError, KeyError, TypeError):
            told["(output)"] = {"ok": False, "detail": f"no report: {line!r}"}
    return told
