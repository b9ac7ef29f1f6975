"""The ``quill`` command, and how every failure ends.

Exit status: 0 done; 1 a call failed; 2 wrong usage, nothing was sent; 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys

from quill.cli.terminal import OutputClosed, complain
from quill.errors import LocalError, QuillError

_INTERRUPTED = 130


def main() -> None:
    """Run the command that the arguments name, and exit with its status."""
    # C-core writes lines of its own to standard error; what matters of them is in our errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        try:
            _run()
        finally:
            # What is left is the interpreter's own end, in which a Ctrl-C would only show a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:  # while the command ran, while it failed, or in the line above
        sys.exit(_INTERRUPTED)


def _run() -> None:
    """Run the command; what it fails with becomes one line and a status."""
    try:
        # Here, because it takes long enough for a Ctrl-C to come meanwhile.
        from quill.cli.app import app

        app()
    except LocalError as error:
        _fail(str(error), status=2)
    except QuillError as error:
        _fail(str(error), status=1)
    except OutputClosed:
        sys.exit(0)


def _fail(message: str, *, status: int) -> None:
    """Say one line on standard error and exit."""
    complain(message)
    sys.exit(status)
