"""A text that comes in pieces, shown as an indented paragraph of a terminal of 80 columns."""

from __future__ import annotations

import re

from quill.cli.terminal import write

WIDTH = 78
INDENT = "  "


class Paragraph:
    """Shows words as soon as they are whole, in lines of at most WIDTH columns."""

    def __init__(self) -> None:
        self._column = 0
        self._word = ""

    def add(self, text: str) -> None:
        """Take the next piece. Line breaks become spaces."""
        *words, self._word = re.split(r"\s+", self._word + text)
        for word in words:
            self._show(word)

    def end(self) -> None:
        """Show the last word, and end the line."""
        self._show(self._word)
        self._column, self._word = 0, ""
        write()

    def _show(self, word: str) -> None:
        if not word:
            return
        if self._column and self._column + 1 + len(word) <= WIDTH:
            write(" " + word, end="")
            self._column += 1 + len(word)
            return
        write(("\n" if self._column else "") + INDENT + word, end="")
        self._column = len(INDENT) + len(word)
