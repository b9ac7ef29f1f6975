"""Streams whose call is made with their first message: JSON over gRPC, for which the server may be asked first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from quill.client import faults
from quill.client.around import AsyncStreamAround, SyncStreamAround
from quill.client.transport import AsyncByteStream, SyncByteStream

Decode = Callable[[bytes], Any]
AsyncDecode = Callable[[bytes], Awaitable[Any]]


class LateSyncStream(SyncStreamAround):
    """The messages of a call that ``open_call`` makes when the first is asked for.

    Args:
        open_call: Returns the messages, and how each is decoded.
        idle_timeout_ms: How long the gap between two messages may be.
    """

    def __init__(self, open_call: Callable[[], tuple[SyncByteStream, Decode]], idle_timeout_ms: int | None) -> None:
        super().__init__(idle_timeout_ms)
        self._open_call = open_call
        self._decode: Decode | None = None
        self._done = False

    def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK."""
        if self._stream is not None:
            return self._stream.next_message()
        if self._done:
            return None
        try:
            stream, self._decode = self._open_call()
        except BaseException:
            self._done = True
            raise
        self._follow(stream)
        if self._done:
            raise faults.closed_while_running()
        return stream.next_message()

    def decode(self, message: bytes) -> Any:
        """A message as the caller sees it."""
        return message if self._decode is None else self._decode(message)

    def cancel(self) -> None:
        """Cancel the call if it still runs, from any thread."""
        self._done = True
        super().cancel()

    def abandon(self) -> None:
        """As ``cancel``, for a finalizer."""
        self._done = True
        super().abandon()


class LateAsyncStream(AsyncStreamAround):
    """As LateSyncStream, on an event loop."""

    def __init__(
        self, open_call: Callable[[], Awaitable[tuple[AsyncByteStream, AsyncDecode]]], idle_timeout_ms: int | None
    ) -> None:
        super().__init__(idle_timeout_ms)
        self._open_call = open_call
        self._decode: AsyncDecode | None = None
        self._done = False

    async def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK."""
        if self._stream is not None:
            return await self._stream.next_message()
        if self._done:
            return None
        try:
            stream, self._decode = await self._open_call()
        except BaseException:
            self._done = True
            raise
        self._follow(stream)
        if self._done:
            raise faults.closed_while_running()
        return await stream.next_message()

    async def decode(self, message: bytes) -> Any:
        """A message as the caller sees it."""
        return message if self._decode is None else await self._decode(message)

    def cancel(self) -> None:
        """Cancel the call if it still runs."""
        self._done = True
        super().cancel()
