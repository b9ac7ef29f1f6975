"""Other languages' clients against Quill, and Quill's clients against their servers, in one table.

usage: python interop/run.py [--only NAME ...] [--json]

NAME is a language (go, node, browser, java, rust), a program (grpc-go), or "reverse". Exits 1 when a cell is red.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Collection, Iterator

import clients
from programs import Language, Program, SetupFailed, languages
from servers import servers
from table import Cell, Mark, show

REVERSE = "reverse"


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", default=[])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        cells = list(_cells(given.only))
    except SetupFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    if not cells:
        parser.error(f"nothing is named {' or '.join(given.only)}")
    if given.json:
        print(json.dumps({"cells": [dataclasses.asdict(cell) for cell in cells]}))
    else:
        print(show(cells))
    return int(any(cell.mark is Mark.RED for cell in cells))


def _cells(only: Collection[str]) -> Iterator[Cell]:
    known = languages()
    wanted = [program for language in known for program in language.programs if _is_wanted(program, only)]
    for language in known:
        if any(program in wanted for program in language.programs) or _reverses(language, only):
            _say(f"building {language.folder.name}")
            language.build()
    if wanted:
        with servers() as running:
            for program in wanted:
                _say(f"running {program.name} over {', '.join(program.ways)}")
                yield from clients.cells(program, running)


def _is_wanted(program: Program, only: Collection[str]) -> bool:
    return not only or bool({program.language, program.name}.intersection(only))


def _reverses(language: Language, only: Collection[str]) -> bool:
    return bool(language.servers) and (not only or REVERSE in only)


def _say(what: str) -> None:
    """Progress, for those who watch."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
