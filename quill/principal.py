"""Who makes a call."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """The identity behind a call, as the server's authentication established it."""

    name: str
    """The name under which limits are counted and runs are owned; never a secret."""


ANONYMOUS = Principal("anonymous")
"""Every caller of a server that asks for no credentials."""

current_principal: ContextVar[Principal] = ContextVar("quill_principal", default=ANONYMOUS)
"""The principal of the call that runs now. Set by the server before the servicer is entered."""
