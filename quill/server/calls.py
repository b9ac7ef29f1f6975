"""The calls that run now, whichever port they came in by."""

from __future__ import annotations

import asyncio

from quill.errors import Unavailable
from quill.limits import Limits
from quill.server.quota import Account, current_account, exhausted
from quill.wire.pushback import pushback

_AGAIN_S = 1
"""When to try again: nobody knows when a call ends."""
_ELSEWHERE_MS = 250
"""When to try again where this server ends: another, or its successor, may answer."""
_SMALL_REPLY_BYTES = 16 * 1024
"""What fits into the buffers of a connection anyway; most calls need not be looked at again."""


class Calls:
    """Tasks that are inside a handler: counted, waited for when the server stops, ended when its grace is over.

    A call counts until its handler's ``finally`` blocks have run and its status is handed to the transport; one with a
    large reply until the transport has taken that, for as long as its client does not read.

    Args:
        limits: How many there may be, how many of them streams, and how much may wait for clients that do not read.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._is_closing = False
        self.refused = 0
        """How many were not let in because the server stops."""
        self._running: set[asyncio.Task[object]] = set()
        self._ended: set[asyncio.Task[object]] = set()
        self._streams: dict[asyncio.Task[object], Account | None] = {}
        self._unread: dict[asyncio.Task[object], int] = {}
        """How large the replies are that tasks still deliver."""
        self._unread_bytes = 0

    def __len__(self) -> int:
        """How many calls run."""
        return len(self._running)

    def enter(self, task: asyncio.Task[object], *, streams: bool) -> None:
        """Count a task as a running call.

        Raises:
            ResourceExhausted: There are as many calls, or streams, as there may be; nothing was counted.
            Unavailable: No more are let in.
        """
        if self._is_closing:
            self.refused += 1
            raise Unavailable(
                "the server is shutting down and runs no more calls",
                trailers=(("retry-after", str(_AGAIN_S)), pushback(_ELSEWHERE_MS)),
            )
        if (count := len(self._running) + len(self._unread)) >= (most := self._limits.max_concurrent_calls):
            raise exhausted(f"{count} calls run and max_concurrent_calls is {most}", _AGAIN_S)
        if streams:
            self._open_stream(task)
        self._running.add(task)

    def leave(self, task: asyncio.Task[object]) -> None:
        """The call of this task is over; one that was never counted may leave, too."""
        self._running.discard(task)
        self._ended.discard(task)
        if (account := self._streams.pop(task, None)) is not None:
            account.close_stream()

    def deliver(self, task: asyncio.Task[object], size: int) -> None:
        """Count the reply of a call until its task has handed it to a client that reads. Small ones are not counted.

        Raises:
            ResourceExhausted: Too much waits already; nothing was counted.
        """
        if size <= _SMALL_REPLY_BYTES:
            return
        if self._unread and self._unread_bytes + size > (most := self._limits.max_unread_bytes):
            raise exhausted(
                f"the reply has {size} bytes, {self._unread_bytes} wait for clients that do not read, "
                f"and max_unread_bytes is {most}",
                _AGAIN_S,
            )
        self._unread[task] = size
        self._unread_bytes += size
        task.add_done_callback(self._delivered)

    def _delivered(self, task: asyncio.Task[object]) -> None:
        self._unread_bytes -= self._unread.pop(task)

    def close(self) -> None:
        """Let no more calls in: those that still come over open connections are refused before they run."""
        self._is_closing = True

    def end(self) -> None:
        """Cancel every running call; its client is told UNAVAILABLE."""
        for task in self._running - self._ended:
            self._ended.add(task)
            task.cancel()

    def was_ended(self, task: asyncio.Task[object]) -> bool:
        """Whether `end` cancelled this call; true once, for whoever turns the cancellation into a status."""
        if task in self._ended:
            self._ended.remove(task)
            return True
        return False

    async def wait(self) -> None:
        """Wait until no call runs."""
        while self._running:
            await asyncio.wait(set(self._running))

    def _open_stream(self, task: asyncio.Task[object]) -> None:
        if len(self._streams) >= (most := self._limits.max_live_streams):
            raise exhausted(f"{len(self._streams)} streams live and max_live_streams is {most}", _AGAIN_S)
        account = current_account.get()
        if account is not None:
            account.open_stream()
        self._streams[task] = account


def current_call() -> asyncio.Task[object]:
    """The task of the handler that runs now."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - handlers run in tasks
    return task
