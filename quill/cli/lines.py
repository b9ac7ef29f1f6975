"""Lines that a person types, or that a program writes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from quill.cli.terminal import complain, write
from quill.errors import InvalidUsage

PROMPT = "> "


def typed() -> Iterator[str]:
    """Lines from a terminal, edited with readline where Python has it, until the end of input (Ctrl-D).

    Ctrl-C takes back the line that is being typed.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() edits lines once it is loaded
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            write()
            return
        except KeyboardInterrupt:
            write()
        except UnicodeDecodeError as error:
            complain(f"the line cannot be read as {error.encoding} at byte {error.start}")


def piped() -> Iterator[str]:
    """Lines of standard input.

    Raises:
        InvalidUsage: It is closed, cannot be read, or a line is not UTF-8.
    """
    if sys.stdin is None:
        raise InvalidUsage("standard input is closed")
    try:
        for number, line in enumerate(sys.stdin.buffer, 1):
            yield _text(line, number)
    except OSError as error:
        raise InvalidUsage(f"cannot read standard input: {error.strerror}") from None


def _text(line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InvalidUsage(f"line {number} of standard input is not UTF-8 at byte {error.start}") from None
