"""Other languages' clients against Quill, and Quill's clients against their servers, in two tables.

usage: python interop/run.py [--only NAME ...] [--json]

NAME is a language (go, node, browser, java, rust), a program (grpc-go), a host (pyvoy), or "reverse".
Exits 1 when a cell is red.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Collection, Iterator

import clients
import reverse
from programs import ForeignServer, Host, Program, SetupError, languages
from servers import hosted, servers
from table import Cell, Mark, show

REVERSE = "reverse"


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", default=[])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    known = languages()
    programs = [one for language in known for one in language.programs if _is_wanted(one, given.only)]
    foreign = [one for language in known for one in language.servers if not given.only or REVERSE in given.only]
    hosts = [one for language in known for one in language.hosts if not given.only or one.name in given.only]
    callers = [
        one for language in known for one in language.programs if any(one.name in host.callers for host in hosts)
    ]
    if not programs and not foreign and not hosts:
        parser.error(f"nothing is named {' or '.join(given.only)}")
    folders = {one.folder for one in [*programs, *callers]} | {one.folder for one in foreign}
    folders |= {host.folder for host in hosts}
    try:
        for language in known:
            if language.folder in folders:
                _say(f"building {language.folder.name}")
                language.build()
    except SetupError as failed:
        print(failed, file=sys.stderr)
        return 1
    all_cells = (_called(programs), _hosted(hosts, callers), _calling(foreign))
    tables = [table for cells in all_cells if (table := list(cells))]
    if given.json:
        print(json.dumps({"cells": [dataclasses.asdict(cell) for table in tables for cell in table]}))
    else:
        print("\n\n".join(map(show, tables)))
    return int(any(cell.mark is Mark.RED for table in tables for cell in table))


def _is_wanted(program: Program, only: Collection[str]) -> bool:
    return not only or bool({program.language, program.name}.intersection(only))


def _called(programs: Collection[Program]) -> Iterator[Cell]:
    """Quill's servers, called by the programs of others."""
    if programs:
        with servers() as running:
            for program in programs:
                _say(f"{program.name} calls over {', '.join(program.ways)}")
                yield from clients.cells(program, running)


def _hosted(hosts: Collection[Host], callers: Collection[Program]) -> Iterator[Cell]:
    """Quill's application in hosts with one port, called by some of the programs."""
    for host in hosts:
        with hosted(host) as running:
            for program in callers:
                if program.name in host.callers:
                    _say(f"{program.name} calls {host.name} over {', '.join(program.ways)}")
                    for cell in clients.cells(program, running):
                        yield dataclasses.replace(cell, program=f"{cell.program} to {host.name}")


def _calling(foreign: Collection[ForeignServer]) -> Iterator[Cell]:
    """Quill's clients, calling the servers of others."""
    for server in foreign:
        _say(f"{server.name} is called over {', '.join(server.ways)}")
        yield from reverse.cells(server)


def _say(what: str) -> None:
    """Progress, for those who watch."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
