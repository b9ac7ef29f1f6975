"""What a ChaosProxy does to the connections that go through it, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from quill.errors import InvalidUsage

Direction = Literal["up", "down"]
"""``up`` is from the client to the server."""
Cut = Literal["rst", "fin"]
"""How a connection is cut: reset, so that both peers read an error, or closed, so that they read its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What happens to bytes that go one way. Positions count from the beginning of each connection.

    Raises:
        InvalidUsage: A number is out of its range.
    """

    delay_s: float = 0.0
    """How much later each byte arrives."""
    jitter_s: float = 0.0
    """Up to so much later still, drawn anew for each read of the socket; the order of bytes stays."""
    bytes_per_s: float | None = None
    """How fast bytes go; None for as fast as they can."""
    cut_after_bytes: int | tuple[int, int] | None = None
    """Cut the connection when so many bytes went this way: a number, or (least, most), drawn for each connection."""
    flip_at: int | None = None
    """The position of a byte that is changed; the first has 0."""
    flip_probability: float = 0.0
    """How likely each byte is to be changed."""

    def __post_init__(self) -> None:
        for name in ("delay_s", "jitter_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidUsage(f"{name} must be a number of seconds, at least 0, got {getattr(self, name):g}")
        if self.bytes_per_s is not None and not self.bytes_per_s > 0:
            raise InvalidUsage(f"bytes_per_s must be above 0, got {self.bytes_per_s:g}; black_hole lets nothing pass")
        if not 0 <= self.flip_probability <= 1:
            raise InvalidUsage(f"flip_probability must be 0 to 1, got {self.flip_probability:g}")
        if self.flip_at is not None and self.flip_at < 0:
            raise InvalidUsage(f"flip_at must be at least 0, got {self.flip_at}")
        least, most = self.cut_range or (0, 0)
        if not 0 <= least <= most:
            raise InvalidUsage(f"cut_after_bytes must be at least 0, the least first, got {self.cut_after_bytes}")

    @property
    def cut_range(self) -> tuple[int, int] | None:
        """Between which positions a connection is cut."""
        cut = self.cut_after_bytes
        return (cut, cut) if isinstance(cut, int) else cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """All that a ChaosProxy does. The default does nothing: bytes, ends and resets pass as they come."""

    up: Way = field(default_factory=Way)
    """From the client to the server."""
    down: Way = field(default_factory=Way)
    """From the server to the client."""
    cut_with: Cut = "rst"
    """How ``cut_after_bytes`` cuts."""
    black_hole: bool = False
    """Nothing passes, ends and resets included, and all connections stay open, as when packets are lost; what was held
    goes on when this ends. New connections are accepted and hear nothing."""
    refuse: bool = False
    """New connections are refused; those that are open go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a ChaosProxy has done since its start."""

    connections: int = 0
    """Connections that were accepted."""
    live: int = 0
    """Those of them that are open now."""
    unreachable: int = 0
    """Connections that were reset because the target refused them."""
    cuts: int = 0
    """Connections that were cut, by whatever switch."""
    half_closes: int = 0
    """Directions that ``half_close`` has ended."""
    flipped_bytes: int = 0
    up_bytes: int = 0
    """What was passed on to the target."""
    down_bytes: int = 0
    """What was passed on to clients."""
