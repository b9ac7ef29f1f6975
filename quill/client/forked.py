"""grpc.aio has threads that a forked process does not have: its calls would wait for ever there."""

from __future__ import annotations

import os

from quill.errors import InvalidUsage

_first_user: dict[str, int] = {}
"""The process that used it first, under one key; a fork inherits this."""


def check_not_forked() -> None:
    """Note that this process uses grpc.aio.

    Raises:
        InvalidUsage: A process that this one was forked from has used it.
    """
    # setdefault is atomic, and no lock crosses a fork.
    if _first_user.setdefault("pid", os.getpid()) != os.getpid():
        raise InvalidUsage(
            "this process was forked from one that used grpc.aio, which does not work after a fork: use QuillClient, "
            "begin with AsyncQuillClient after the fork only, or start the process by spawning"
        )
