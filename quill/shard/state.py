"""The states of a generation: NEW → SUBMITTING → WAITING → STREAMING → DONE | FAILED | CANCELLED."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """Where a generation is."""

    NEW = "new"
    SUBMITTING = "submitting"
    WAITING = "waiting"
    STREAMING = "streaming"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL: Final = frozenset({State.DONE, State.FAILED, State.CANCELLED})
