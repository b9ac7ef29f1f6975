"""Numbered results back in their order, with a bound on how many wait for one that is missing."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class TooManyWait(Exception):  # noqa: N818 - what became of the order
    """One more would be held than may be."""


class Reorder(Generic[T]):
    """Numbers begin with 0; ``begin_with_one`` lets them begin with 1.

    Args:
        limit: How many may be held back.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._next = 0
        self._held: dict[int, T] = {}

    @property
    def gap(self) -> bool:
        """Whether something is held back for a number that is missing."""
        return bool(self._held)

    @property
    def missing(self) -> int:
        """The number that comes next."""
        return self._next

    def put(self, number: int, value: T) -> list[T] | None:
        """What is in order now, this or others; None where the number was there before.

        Raises:
            TooManyWait: The bound is reached.
        """
        if number < self._next or number in self._held:
            return None
        if number != self._next and len(self._held) >= self._limit:
            raise TooManyWait
        self._held[number] = value
        return self._run()

    def begin_with_one(self) -> list[T]:
        """Give up waiting for number 0; what is in order then. Nothing where 1 is missing too."""
        if self._next == 0 and 1 in self._held:
            self._next = 1
        return self._run()

    def _run(self) -> list[T]:
        ready = []
        while self._next in self._held:
            ready.append(self._held.pop(self._next))
            self._next += 1
        return ready
