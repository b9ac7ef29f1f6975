"""Libraries whose threads a forked process does not have: their calls would wait there for ever."""

from __future__ import annotations

import os

from quill.errors import InvalidUsage

_first_users: dict[str, int] = {}
"""The process that used a library first, by its name; a fork inherits this."""


def check_not_forked(library: str) -> None:
    """Note that this process uses a library that a fork breaks.

    Raises:
        InvalidUsage: A process that this one was forked from has used it.
    """
    # setdefault is atomic, and no lock crosses a fork.
    if _first_users.setdefault(library, os.getpid()) != os.getpid():
        raise InvalidUsage(
            f"this process was forked from one that used {library}, which does not work after a fork: use QuillClient, "
            "begin with AsyncQuillClient after the fork only, or start the process by spawning"
        )
