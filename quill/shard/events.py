"""What comes out of a generation: pieces of text, and one end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from quill.generation import FinishReason


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one token, or what the sidecar sends as one. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a generation. Nothing comes after it."""

    reason: FinishReason
    """STOP where the sidecar said the end, LENGTH at the cap, OTHER where tokens may be missing."""
    warnings: tuple[str, ...] = ()
    """What the caller should know, for people."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """``request_id``; of a draft ``draft`` (``unverified``), ``peer_id``; ``incomplete``, ``fallback`` (``true``)."""

    @property
    def incomplete(self) -> bool:
        """Whether tokens may be missing, because a reply was lost on its way."""
        return "incomplete" in self.metadata


ShardEvent: TypeAlias = Piece | Ended


@dataclass(frozen=True, slots=True)
class Restarted:
    """The sidecar has forgotten this generation, of which nothing has come yet: it may be submitted once more."""
