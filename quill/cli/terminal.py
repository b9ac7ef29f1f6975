"""Standard input and output. What goes wrong with them is said in one line, or is nothing wrong at all."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from quill.errors import InvalidUsage, QuillError

_SAFE = dict.fromkeys((*range(32), *range(127, 160)), "�")
_SAFE |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}
"""For text that a server sent and a terminal would take for orders: control characters but line breaks and tabs."""


class OutputClosed(Exception):  # noqa: N818 - it says what happened, and is seldom an error
    """Who read standard output went away, as `head` does."""


class OutputError(QuillError):
    """Standard output takes no more, as on a full disk."""


def write(text: str = "", *, end: str = "\n") -> None:
    """Print, at once: a stream is read as it comes.

    Characters that the terminal's encoding lacks become question marks. On a terminal, control characters become
    U+FFFD: what is printed comes from servers, and must not move the cursor or retitle the window.

    Raises:
        OutputClosed: Nobody reads.
        OutputError: The text cannot be written.
    """
    try:
        print(_fitting(text), end=end, flush=True)
    except OSError as error:
        # Nothing may flush into it at exit, which would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise OutputClosed from None
        raise OutputError(f"cannot write to standard output: {error.strerror}") from None


def write_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    text = json.dumps(value, ensure_ascii=False)
    write(text if _fitting(text) == text else json.dumps(value))


def complain(message: str) -> None:
    """Say one line on standard error, as every failure is said."""
    note("quill: " + " ".join(message.split()))


def note(text: str) -> None:
    """Say something on standard error that is no part of the output."""
    print(text.translate(_SAFE) if _is_terminal(sys.stderr) else text, file=sys.stderr, flush=True)


def is_interactive() -> bool:
    """Whether a person types and reads here: standard input and output are terminals."""
    return _is_terminal(sys.stdin) and _is_terminal(sys.stdout)


def read() -> str:
    """All of standard input.

    Raises:
        InvalidUsage: It cannot be read, or is not UTF-8.
    """
    if sys.stdin is None:
        raise InvalidUsage("standard input is closed")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidUsage(f"standard input is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise InvalidUsage(f"cannot read standard input: {error.strerror}") from None


def _fitting(text: str) -> str:
    """The text as far as standard output can show it."""
    if _is_terminal(sys.stdout):
        text = text.translate(_SAFE)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
