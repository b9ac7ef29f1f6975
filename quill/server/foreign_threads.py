"""Threads that a library starts outside Python, told from all others by their name, so that their end can be awaited.

A thread that wants the interpreter's lock while the interpreter is finalized is ended in the middle of the library's
code, which Rust calls a panic and writes to standard error. Who started such threads waits for them, therefore.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

_TASKS = Path("/proc/self/task")
_OWN_NAME = Path("/proc/thread-self/comm")
_POLL_INTERVAL_S = 0.005

_numbers = itertools.count()


class ForeignThreads:
    """The threads that were started in `started`, and those that they started in turn.

    Linux gives a new thread the name of the one that starts it (clone(2), prctl(2)). Elsewhere no thread is known, and
    none is waited for.
    """

    def __init__(self) -> None:
        self._name = f"quill-{next(_numbers) % 10**9}"
        """At most 15 bytes, what the kernel keeps of a name."""

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """What this thread starts inside belongs to these threads."""
        try:
            before = _OWN_NAME.read_text()
            _OWN_NAME.write_text(self._name)
        except OSError:
            yield
            return
        try:
            yield
        finally:
            _OWN_NAME.write_text(before.rstrip("\n"))

    def alive(self) -> int:
        """How many of them have not ended."""
        count = 0
        with contextlib.suppress(OSError):
            for task in _TASKS.iterdir():
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    count += (task / "comm").read_text() == f"{self._name}\n"
        return count

    async def wait(self, timeout_s: float) -> None:
        """Wait until all have ended.

        Raises:
            TimeoutError: Some have not in time.
        """
        async with asyncio.timeout(timeout_s):
            while self.alive():  # noqa: ASYNC110 - nothing tells the end of a thread that Python does not know
                await asyncio.sleep(_POLL_INTERVAL_S)
