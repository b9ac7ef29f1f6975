"""How much the journals of runs that outlive their readers may take, for each principal and in all.

A run that can be resumed has its part reserved when it starts, so that what is kept cannot outgrow its bounds
while runs go on. What finished is kept as long as there is room: the oldest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quill.errors import ResourceExhausted
from quill.limits import Limits
from quill.principal import Principal

if TYPE_CHECKING:
    from quill.llm.run import Run


@dataclass(slots=True)
class _Share:
    """What is held of one principal, or of all."""

    max_bytes: int
    reserved_bytes: int = 0
    """Of runs that are alive and can be resumed."""
    finished_bytes: int = 0
    finished: OrderedDict[Run, int] = field(default_factory=OrderedDict)
    """The bytes of each finished run; the oldest first."""

    def room_for(self, size: int) -> bool:
        """Whether so many bytes fit without anything having to go."""
        return self.reserved_bytes + self.finished_bytes + size <= self.max_bytes

    def add(self, run: Run, size: int) -> None:
        self.finished[run] = size
        self.finished_bytes += size

    def remove(self, run: Run) -> None:
        self.finished_bytes -= self.finished.pop(run, 0)


class JournalStore:
    """Accounts for what is kept, and says what has to go.

    Args:
        limits: Its bounds.
        drop: Called with each finished run that has to go; the run is forgotten here already.
    """

    def __init__(self, limits: Limits, drop: Callable[[Run], None]) -> None:
        self._limits = limits
        self._drop = drop
        self._all = _Share(limits.max_kept_bytes)
        self._replies = _Share(limits.max_finished_bytes)
        """The finished runs that cannot be resumed; the other shares have them, too."""
        self._shares: dict[Principal, _Share] = {}

    @property
    def used_bytes(self) -> int:
        """What is reserved and what is kept."""
        return self._all.reserved_bytes + self._all.finished_bytes

    def reserve(self, principal: Principal, size: int) -> None:
        """Set so many bytes aside for a run that starts; finished runs make room.

        Raises:
            ResourceExhausted: Runs that are alive leave too little.
        """
        share = self._share(principal)
        for held, name, whose in (
            (share, "max_kept_bytes_per_principal", "this caller's resumable runs"),
            (self._all, "max_kept_bytes", "all resumable runs"),
        ):
            if held.reserved_bytes + size > held.max_bytes:
                self._tidy(principal)
                raise ResourceExhausted(
                    f"{whose} hold {held.reserved_bytes} bytes, this one would hold up to {size}, and {name} is "
                    f"{held.max_bytes}; try again later, ask for fewer max_tokens, or start it with resume_ttl_ms=0"
                )
        for held in (share, self._all):
            self._make_room(held, size, principal)
            held.reserved_bytes += size

    def release(self, principal: Principal, size: int) -> None:
        """Give back what ``reserve`` set aside."""
        for held in (self._share(principal), self._all):
            held.reserved_bytes -= size
        self._tidy(principal)

    def keep(self, run: Run, size: int) -> None:
        """Keep a run that has finished, in place of older ones; one that is too large goes at once."""
        principal = run.key.principal
        holders = self._holders(run)
        if any(held.reserved_bytes + size > held.max_bytes for held in holders):
            self._tidy(principal)
            self._drop(run)
            return
        for held in holders:
            self._make_room(held, size, principal)
            held.add(run, size)

    def forget(self, run: Run) -> None:
        """A finished run is no longer kept. One that is not here is left alone."""
        if run in self._all.finished:
            self._remove(run)
            self._tidy(run.key.principal)

    def _make_room(self, held: _Share, size: int, principal: Principal) -> None:
        while not held.room_for(size):
            oldest = next(iter(held.finished))
            self._remove(oldest)
            if oldest.key.principal != principal:
                self._tidy(oldest.key.principal)
            self._drop(oldest)

    def _holders(self, run: Run) -> tuple[_Share, ...]:
        share = self._share(run.key.principal)
        return (share, self._all) if run.is_resumable else (share, self._all, self._replies)

    def _remove(self, run: Run) -> None:
        for held in self._holders(run):
            held.remove(run)

    def _share(self, principal: Principal) -> _Share:
        share = self._shares.get(principal)
        if share is None:
            share = self._shares[principal] = _Share(self._limits.max_kept_bytes_per_principal)
        return share

    def _tidy(self, principal: Principal) -> None:
        """Hold nothing for principals of whom nothing is kept."""
        share = self._shares.get(principal)
        if share is not None and not share.reserved_bytes and not share.finished:
            del self._shares[principal]
