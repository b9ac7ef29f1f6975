"""``quill key``: secrets for callers, and their lines for the keys file."""

from __future__ import annotations

import json as json_text
import sys
from datetime import date
from typing import Annotated

import typer

from quill.cli.options import Json
from quill.errors import InvalidUsage

key = typer.Typer(help="Make credentials for callers.", no_args_is_help=True)


@key.callback()
def _group() -> None:
    """Keep ``new`` a subcommand of its own, which typer would merge into its only parent."""


@key.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    allow: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="A method, SERVICE/*, or *; may be given again.")
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="From when on it is refused.")] = None,
    json: Json = False,
) -> None:
    """Print a fresh secret, this once, on standard error, and its entry for the keys file on standard output."""
    from quill.server.keys import check_name, check_pattern, new_secret

    patterns = [check_pattern(pattern) for pattern in allow or ["inference.v1.LLMService/*"]]
    check_name(name)
    day = None if expires is None else _day(expires)
    secret, sha256 = new_secret()
    if json:
        print(json_text.dumps({"name": name, "secret": secret, "sha256": sha256, "allow": patterns, "expires": day}))
        return
    quoted = json_text.dumps(name, ensure_ascii=False)
    print(f'\n[[key]]\nname = {quoted}\nsha256 = "{sha256}"\nallow = {json_text.dumps(patterns)}')
    if day is not None:
        print(f"expires = {day}")
    sys.stdout.flush()
    print(f"secret, shown only now: {secret}", file=sys.stderr)


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise InvalidUsage(f"--expires takes a date, as 2027-01-31, got {text!r}") from None
