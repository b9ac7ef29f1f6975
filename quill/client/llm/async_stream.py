"""A streamed generation as the user of the asyncio client iterates over it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from quill.client.llm.view import GenerationView
from quill.client.transport import LINGER_MS
from quill.errors import RpcError

if TYPE_CHECKING:
    from types import TracebackType

    from quill import proto
    from quill.client.streams import AsyncMessageStream
    from quill.generation import Delta, Generation


class AsyncGenerationStream(GenerationView):
    """The pieces of a generation as they come. Close it, use it as a context manager, or read it to its end.

    Raises, from ``anext``: an RpcError where the server refuses the generation; StreamInterrupted where it ends after
    it began and before it was complete, for whatever reason.
    """

    def __init__(self, messages: AsyncMessageStream[proto.StreamGenerateResponse], request_id: str) -> None:
        super().__init__(request_id)
        self._messages = messages
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
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
        """End the generation if it still runs. May be called again."""
        self._ended = True
        await self._messages.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _take(self) -> Delta | None:
        """Wait for the next message."""
        try:
            delta = self._fold.add(await anext(self._messages))
        except StopAsyncIteration:
            await self.aclose()
            raise self._fail(None) from None
        except RpcError as error:
            await self.aclose()
            failure = self._fail(error)
            raise failure from (None if failure is error else error)
        except BaseException:
            await self.aclose()
            raise
        if self._fold.completed:
            await self._finish()
        return delta

    async def _finish(self) -> None:
        """Read the status, which cannot change anything any more."""
        self._messages.idle_timeout_ms = LINGER_MS
        with contextlib.suppress(RpcError, StopAsyncIteration):
            await anext(self._messages)
        await self.aclose()
