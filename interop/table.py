"""What became of the cases: cells, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Mark(StrEnum):
    """How a cell looks."""

    GREEN = "ok"
    RED = "RED"
    IMPOSSIBLE = "-"


@dataclass(frozen=True, slots=True)
class Cell:
    """One case of one program over one way."""

    language: str
    program: str
    way: str
    case: str
    mark: Mark
    detail: str = ""
    """Why it is red, or impossible."""

    @property
    def row(self) -> tuple[str, str, str]:
        """Where it stands."""
        return self.language, self.program, self.way


def show(cells: Sequence[Cell]) -> str:
    """The table, a row for each program and way; below it what is red, and what cannot be."""
    columns = list(dict.fromkeys(cell.case for cell in cells))
    rows = list(dict.fromkeys(cell.row for cell in cells))
    marks = {(cell.row, cell.case): cell.mark for cell in cells}
    heads = ("language", "program", "way", *columns)
    lines = [heads, *((*row, *(marks.get((row, case), "") for case in columns)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    red: dict[str, list[str]] = {}
    for cell in cells:
        if cell.mark is Mark.RED:
            red.setdefault(f"{' '.join(cell.row)}: {cell.detail}", []).append(cell.case)
    if red:
        text += ["", "Red:", *(f"  {what} ({', '.join(cases)})" for what, cases in red.items())]
    if impossible := dict.fromkeys(f"  {cell.case}: {cell.detail}" for cell in cells if cell.mark is Mark.IMPOSSIBLE):
        text += ["", f"Impossible ({Mark.IMPOSSIBLE}):", *impossible]
    green = sum(cell.mark is Mark.GREEN for cell in cells)
    return "\n".join([*text, "", f"{green} green, {sum(map(len, red.values()))} red"])
