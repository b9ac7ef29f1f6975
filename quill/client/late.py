"""Streams whose call is made with their first message: JSON over gRPC, for which the server may be asked first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from quill.client import faults
from quill.client.transport import AsyncByteStream, SyncByteStream

Decode = Callable[[bytes], Any]


class LateSyncStream:
    """The messages of a call that ``open_call`` makes when the first is asked for.

    Args:
        open_call: Returns the messages, and how each is decoded.
        idle_timeout_ms: How long the gap between two messages may be.
    """

    def __init__(self, open_call: Callable[[], tuple[SyncByteStream, Decode]], idle_timeout_ms: int | None) -> None:
        self._open_call = open_call
        self._idle_timeout_ms = idle_timeout_ms
        self._stream: SyncByteStream | None = None
        self._decode: Decode | None = None
        self._done = False

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the next gap may be."""
        return self._idle_timeout_ms

    @idle_timeout_ms.setter
    def idle_timeout_ms(self, value: int | None) -> None:
        self._idle_timeout_ms = value
        if self._stream is not None:
            self._stream.idle_timeout_ms = value

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
        if self._done:
            raise faults.closed_while_running()
        stream.idle_timeout_ms = self._idle_timeout_ms
        self._stream = stream
        return stream.next_message()

    def decode(self, message: bytes) -> Any:
        """A message as the caller sees it."""
        return message if self._decode is None else self._decode(message)

    def cancel(self) -> None:
        """Cancel the call if it still runs, from any thread."""
        self._done = True
        if self._stream is not None:
            self._stream.cancel()

    def abandon(self) -> None:
        """As ``cancel``, for a finalizer."""
        self._done = True
        if self._stream is not None:
            self._stream.abandon()


class LateAsyncStream:
    """As LateSyncStream, on an event loop."""

    def __init__(
        self, open_call: Callable[[], Awaitable[tuple[AsyncByteStream, Decode]]], idle_timeout_ms: int | None
    ) -> None:
        self._open_call = open_call
        self._idle_timeout_ms = idle_timeout_ms
        self._stream: AsyncByteStream | None = None
        self._decode: Decode | None = None
        self._done = False

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the next gap may be."""
        return self._idle_timeout_ms

    @idle_timeout_ms.setter
    def idle_timeout_ms(self, value: int | None) -> None:
        self._idle_timeout_ms = value
        if self._stream is not None:
            self._stream.idle_timeout_ms = value

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
        if self._done:
            raise faults.closed_while_running()
        stream.idle_timeout_ms = self._idle_timeout_ms
        self._stream = stream
        return await stream.next_message()

    def decode(self, message: bytes) -> Any:
        """A message as the caller sees it."""
        return message if self._decode is None else self._decode(message)

    def cancel(self) -> None:
        """Cancel the call if it still runs."""
        self._done = True
        if self._stream is not None:
            self._stream.cancel()
