"""Who makes a call, and who is told what it used."""

from __future__ import annotations

from collections.abc import Callable
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


def _uncounted(_tokens: int) -> None:
    """Where nobody counts."""


token_meter: ContextVar[Callable[[int], None]] = ContextVar("quill_token_meter", default=_uncounted)
"""To be told how many tokens the call that runs now used, prompt and completion together, whenever they are known.

Set by a server that bounds them, read by servicers that use tokens: neither knows the other.
"""
