"""The subcommands of ``quill``."""

from __future__ import annotations

import typer

from quill.cli.call import call
from quill.cli.chat import chat
from quill.cli.demo import demo
from quill.cli.generate import generate
from quill.cli.infer import infer
from quill.cli.key import key
from quill.cli.models import models
from quill.cli.serve import serve
from quill.cli.sidecar import sidecar
from quill.cli.tensors import tensors

app = typer.Typer(
    name="quill",
    help="Call, serve and stream tensors and LLM tokens over gRPC and Connect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (serve, chat, generate, infer, call, models, sidecar, demo):
    app.command()(command)
app.add_typer(tensors, name="tensors")
app.add_typer(key, name="key")
