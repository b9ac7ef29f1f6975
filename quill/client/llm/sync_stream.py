"""A streamed generation as the user of the blocking client iterates over it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Self

from quill.client import faults
from quill.client.llm.resumption import CANCEL_TIMEOUT_MS
from quill.client.llm.view import GenerationView
from quill.client.transport import LINGER_MS
from quill.errors import InvalidUsage, RpcError

if TYPE_CHECKING:
    from types import TracebackType

    from quill import proto
    from quill.client.llm.calls import SyncRun
    from quill.generation import Delta, Generation


class GenerationStream(GenerationView):
    """The pieces of a generation as they come. Close it, use it as a context manager, or read it to its end.

    A generation that has a ``resume_ttl_ms`` goes on by itself after its connection was lost: each piece comes once,
    in order. Closing it early tells the server that nobody comes back.

    Raises, from ``next``: an RpcError where the server refuses the generation; StreamInterrupted where it ends after
    it began and before it was complete, for whatever reason.
    """

    def __init__(self, run: SyncRun, request: proto.GenerateRequest, timeout_ms: int | None) -> None:
        super().__init__(request, timeout_ms, time.monotonic)
        self._run = run
        self._messages = run.open(request, timeout_ms)
        self._closed = threading.Event()
        self._process = os.getpid()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        self._resumption.began()
        while not self._ended:
            delta = self._take()
            if delta is not None:
                return delta
        raise StopIteration

    def result(self) -> Generation:
        """Read to the end, and return the whole generation.

        Raises:
            RpcError: As from ``next``, also where that raised it before; CANCELLED where the stream was closed early.
        """
        for _ in self:
            pass
        if not self._fold.completed:
            raise self._why_incomplete()
        return self._fold.result()

    def close(self) -> None:
        """End the generation if it still runs. May be called again, and from any thread.

        Where the generation could be resumed, the server is told that it will not be, within two seconds.
        """
        self._ended = True
        self._closed.set()
        # Before the call is closed: its reader, in another thread, takes what it then gets for the end of the run.
        is_left = os.getpid() == self._process and self._resumption.take_cancel()
        self._messages.close()
        if is_left:
            with contextlib.suppress(RpcError, InvalidUsage):
                self._run.cancel(self.request_id, CANCEL_TIMEOUT_MS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> Delta | None:
        """Wait for the next message; where the connection was lost, ask for the rest of the run."""
        try:
            try:
                delta = self._fold.add(next(self._messages))
            except StopIteration:
                self._go_on(None)
                return None
            except RpcError as error:
                self._go_on(error)
                return None
            if self._fold.completed:
                self._finish()
        except BaseException:
            self.close()
            raise
        return delta

    def _go_on(self, error: RpcError | None) -> None:
        """Go on after a call has ended too early, with another call, or say why that is not possible."""
        wait_s = self._resumption.wait_s(error)
        if wait_s is None:
            self._raise_failure(error)
        self._messages.close()
        if self._closed.wait(wait_s):
            self._raise_failure(faults.closed_while_running())
        try:
            self._messages = self._run.open(self._resumption.request(), self._resumption.timeout_ms())
        except InvalidUsage:
            self._raise_failure(faults.closed_while_running())  # the client was
        if self._ended:  # by another thread, which closed the call before
            self._messages.close()

    def _finish(self) -> None:
        """Read the status, which cannot change anything any more."""
        self._messages.idle_timeout_ms = LINGER_MS
        with contextlib.suppress(RpcError, StopIteration):
            next(self._messages)
        self.close()
