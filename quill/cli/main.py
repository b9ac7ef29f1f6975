"""The ``quill`` command: its subcommands, and how every failure ends.

Exit status: 0 done; 1 a call failed; 2 wrong usage, nothing was sent; 130 interrupted.
"""

from __future__ import annotations

import os
import sys

import typer

from quill.cli.call import call
from quill.cli.demo import demo
from quill.cli.generate import generate
from quill.cli.key import key
from quill.cli.models import models
from quill.cli.serve import serve
from quill.errors import LocalError, QuillError

app = typer.Typer(
    name="quill",
    help="Call, serve and stream tensors and LLM tokens over gRPC and Connect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (serve, generate, call, models, demo):
    app.command()(command)
app.add_typer(key, name="key")


def main() -> None:
    """Run the command that the arguments name, and exit with its status."""
    # C-core writes lines of its own to standard error; what matters of them is in our errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except LocalError as error:
        _fail(str(error), status=2)
    except QuillError as error:
        _fail(str(error), status=1)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does: not an error of ours. Nothing may flush into the
        # closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str, *, status: int) -> None:
    """Say one line on standard error and exit."""
    print("quill: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)
