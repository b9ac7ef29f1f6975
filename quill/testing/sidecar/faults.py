"""What goes wrong on purpose: where, how often, and in a way that comes out the same each time."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from quill.errors import InvalidUsage

REPLY_POINTS = ("broadcast", "pop", "health", "topology", "peers", "latency-profile")
_BODIES = {"html", "malformed", "list", "missing_result", "empty", "huge"}
_REPLIES = frozenset({"delay", "status", "redirect", "drip", "truncate", "close", "restart", "exit"} | _BODIES)
_MOVES = frozenset({"delay", "drop", "duplicate", "reorder", "foreign", "restart", "exit"})
KINDS: dict[str, frozenset[str]] = {
    **dict.fromkeys(REPLY_POINTS, _REPLIES),
    "pop": _REPLIES | {"foreign"},
    "upgrade": frozenset({"delay", "status", "redirect", "html", "close", "restart", "exit"}),
    "item": _MOVES | {"empty_draft"},
    "frame": _MOVES | {"error", "close", "malformed", "list", "text", "binary", "huge"},
}
"""Where something can go wrong, and what. Replies to HTTP requests, the upgrade to WebSocket, a result on its way into
the queue, and a frame on its way to the client."""

MAX_FAULTS = 64
_MAX_SIZE_BYTES = 64 * 1024 * 1024
_MAX_DELAY_MS = 3_600_000
_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})
_FREE_CODES = 3000
_MAX_COUNT = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong. Every occasion is one request, result or frame at its point."""

    on: str
    """The point; ``KINDS`` has them."""
    kind: str
    next: int | None = None
    """On how many occasions; None for every one."""
    after: int = 0
    """How many occasions to let pass before."""
    probability: float | None = None
    """On which share of the occasions, drawn from the seed; None for all."""
    hits: bool = False
    """Of polls, only those count that find a result waiting."""
    handled: bool = False
    """Whether the request takes effect although its reply goes wrong: a polled result is lost, a prompt is queued."""
    delay_ms: float = 100.0
    """Of ``delay``: for how long. Of ``drip``: the time between two bytes."""
    status: int = 500
    """Of ``status``: the status of HTTP."""
    retry_after_s: int | None = None
    """Of ``status``: the header Retry-After."""
    location: str = "/elsewhere"
    """Of ``redirect``: where to."""
    size_bytes: int = 16 * 1024 * 1024
    """Of ``huge``: how much, at least."""
    message: str = "the peer went away"
    """Of ``error``: what the frame says."""
    done: bool = True
    """Of ``error``: whether the frame says the end as well. Else the connection is dropped behind it."""
    code: int | None = None
    """Of ``close``: the code of WebSocket's close frame; None drops the connection."""

    @classmethod
    def read(cls, values: object) -> Self:
        """The fault that a JSON object stands for.

        Raises:
            InvalidUsage: It is none.
        """
        if not isinstance(values, Mapping):
            raise InvalidUsage(f"a fault is an object with on and kind, got {values!r:.80}")
        known = {one.name for one in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise InvalidUsage(
                f"a fault has no {', '.join(sorted(map(str, unknown))):.80}; it has {', '.join(sorted(known))}"
            )
        if missing := {"on", "kind"} - set(values):
            raise InvalidUsage(f"a fault needs {' and '.join(sorted(missing))}, got {dict(values)!r:.80}")
        fault = cls(**values)
        fault._check()
        return fault

    def _check(self) -> None:
        if not isinstance(self.on, str) or self.on not in KINDS:
            raise InvalidUsage(f"on must be one of {', '.join(KINDS)}, got {self.on!r:.80}")
        if not isinstance(self.kind, str) or self.kind not in KINDS[self.on]:
            raise InvalidUsage(
                f"on {self.on}, kind must be one of {', '.join(sorted(KINDS[self.on]))}, got {self.kind!r:.80}"
            )
        _whole("next", self.next, 1, _MAX_COUNT, optional=True)
        _whole("after", self.after, 0, _MAX_COUNT)
        _whole("status", self.status, 400, 599)
        _whole("retry_after_s", self.retry_after_s, 0, 3600, optional=True)
        _whole("size_bytes", self.size_bytes, 0, _MAX_SIZE_BYTES)
        _whole("code", self.code, 1000, 4999, optional=True)
        if self.code not in _CLOSE_CODES and self.code is not None and self.code < _FREE_CODES:
            raise InvalidUsage(f"code {self.code} is none that a close frame may carry")
        if self.probability is not None:
            _number("probability", self.probability, 0, 1)
        _number("delay_ms", self.delay_ms, 0, _MAX_DELAY_MS)
        for name in ("hits", "handled", "done"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidUsage(f"{name} must be true or false, got {getattr(self, name)!r:.80}")
        for name in ("location", "message"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.isprintable():
                raise InvalidUsage(f"{name} must be a text of one line, got {text!r:.80}")


class _Switched:
    """A fault and what came of it so far."""

    def __init__(self, fault: Fault, seed: str) -> None:
        self.fault = fault
        self.seen = 0
        self.fired = 0
        self._numbers = random.Random(seed)  # noqa: S311 - a test is to come out the same each time

    def due(self) -> bool:
        """Whether it happens on this occasion, which counts."""
        self.seen += 1
        fault = self.fault
        if self.seen <= fault.after or (fault.next is not None and self.fired >= fault.next):
            return False
        if fault.probability is not None and self._numbers.random() >= fault.probability:
            return False
        self.fired += 1
        return True


class Faults:
    """All faults that are switched on. Each draws from a sequence of its own, so that they do not disturb each other.

    Args:
        seed: Decides which occasions a probability hits.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._switched: list[_Switched] = []
        self.fired: Counter[str] = Counter()
        """How often each kind happened since the sidecar started."""

    def switch(self, faults: Iterable[Fault]) -> None:
        """Put these in the place of all.

        Raises:
            InvalidUsage: They are too many.
        """
        fresh = [_Switched(fault, f"{self._seed}/{at}") for at, fault in enumerate(faults)]
        if len(fresh) > MAX_FAULTS:
            raise InvalidUsage(f"at most {MAX_FAULTS} faults, got {len(fresh)}")
        self._switched = fresh

    def draw(self, point: str, *, hit: bool = True) -> tuple[float, Fault | None]:
        """What happens on this occasion: the seconds of all delays together, and the first other fault that is due.

        Args:
            point: Where.
            hit: Whether a poll finds something.
        """
        delay_s = 0.0
        for switched in self._switched:
            fault = switched.fault
            if fault.on != point or (fault.hits and not hit) or not switched.due():
                continue
            self.fired[fault.kind] += 1
            if fault.kind != "delay":
                return delay_s, fault
            delay_s += fault.delay_ms / 1000
        return delay_s, None

    def report(self) -> list[dict[str, Any]]:
        """Each fault, on how many occasions it was asked, and how often it happened."""
        return [{**dataclasses.asdict(one.fault), "seen": one.seen, "fired": one.fired} for one in self._switched]


def _whole(name: str, value: object, low: int, high: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidUsage(f"{name} must be a whole number from {low} to {high}, got {value!r:.80}")


def _number(name: str, value: object, low: float, high: float) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high:  # type: ignore[operator]
        raise InvalidUsage(f"{name} must be a number from {low:g} to {high:g}, got {value!r:.80}")
