"""A streamed generation as the user of the asyncio client iterates over it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from quill.client import faults
from quill.client.llm.resumption import CANCEL_TIMEOUT_MS
from quill.client.llm.view import GenerationView
from quill.client.transport import LINGER_MS
from quill.errors import InvalidUsage, RpcError

if TYPE_CHECKING:
    from types import TracebackType

    from quill import proto
    from quill.client.llm.calls import AsyncRun
    from quill.generation import Delta, Generation


class AsyncGenerationStream(GenerationView):
    """The pieces of a generation as they come. Close it, use it as a context manager, or read it to its end.

    A generation that has a ``resume_ttl_ms`` goes on by itself after its connection was lost: each piece comes once,
    in order. Closing it early tells the server that nobody comes back.

    Raises, from ``anext``: an RpcError where the server refuses the generation; StreamInterrupted where it ends after
    it began and before it was complete, for whatever reason.
    """

    def __init__(self, run: AsyncRun, request: proto.GenerateRequest, timeout_ms: int | None) -> None:
        self._messages = run.open(request, timeout_ms)  # says so where no event loop runs
        super().__init__(request, timeout_ms, asyncio.get_running_loop().time)
        self._run = run
        self._closed = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        self._resumption.began()
        while not self._ended:
            delta = await self._take()
            if delta is not None:
                return delta
        raise StopAsyncIteration

    async def result(self) -> Generation:
        """Read to the end, and return the whole generation.

        Raises:
            RpcError: As from ``anext``, also where that raised it before; CANCELLED where the stream was closed early.
        """
        async for _ in self:
            pass
        if not self._fold.completed:
            raise self._why_incomplete()
        return self._fold.result()

    async def aclose(self) -> None:
        """End the generation if it still runs. May be called again.

        Where the generation could be resumed, the server is told that it will not be, within two seconds.
        """
        self._ended = True
        self._closed.set()
        # Before the call is closed: its reader, in another task, takes what it then gets for the end of the run.
        is_left = self._resumption.take_cancel()
        await self._messages.aclose()
        if is_left:
            with contextlib.suppress(RpcError, InvalidUsage):
                await self._run.cancel(self.request_id, CANCEL_TIMEOUT_MS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _take(self) -> Delta | None:
        """Wait for the next message; where the connection was lost, ask for the rest of the run."""
        try:
            try:
                delta = self._fold.add(await anext(self._messages))
            except StopAsyncIteration:
                await self._go_on(None)
                return None
            except RpcError as error:
                await self._go_on(error)
                return None
            if self._fold.completed:
                await self._finish()
        except BaseException:
            await self.aclose()
            raise
        return delta

    async def _go_on(self, error: RpcError | None) -> None:
        """Go on after a call has ended too early, with another call, or say why that is not possible."""
        wait_s = self._resumption.wait_s(error)
        if wait_s is None:
            self._raise_failure(error)
        await self._messages.aclose()
        if await self._was_closed_within(wait_s):
            self._raise_failure(faults.closed_while_running())
        try:
            self._messages = self._run.open(self._resumption.request(), self._resumption.timeout_ms())
        except InvalidUsage:
            self._raise_failure(faults.closed_while_running())  # the client was
        if self._ended:  # by another task, which closed the call before
            await self._messages.aclose()

    async def _was_closed_within(self, wait_s: float) -> bool:
        try:
            async with asyncio.timeout(wait_s):
                return await self._closed.wait()
        except TimeoutError:
            return False

    async def _finish(self) -> None:
        """Read the status, which cannot change anything any more."""
        self._messages.idle_timeout_ms = LINGER_MS
        with contextlib.suppress(RpcError, StopAsyncIteration):
            await anext(self._messages)
        await self.aclose()
