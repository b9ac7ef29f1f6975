"""Streams around streams: what retries, interceptors and late calls have in common, with threads and on a loop."""

from __future__ import annotations

from typing import Generic, TypeVar

from quill.client.transport import AsyncByteStream, SyncByteStream

_S = TypeVar("_S", SyncByteStream, AsyncByteStream)


class StreamAround(Generic[_S]):
    """Reads another stream, which comes later than this one and may be followed by yet another.

    Args:
        idle_timeout_ms: How long the gap between two messages may be.
    """

    def __init__(self, idle_timeout_ms: int | None) -> None:
        self._idle_timeout_ms = idle_timeout_ms
        self._stream: _S | None = None
        """The stream that is read now."""

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the next gap may be."""
        return self._idle_timeout_ms

    @idle_timeout_ms.setter
    def idle_timeout_ms(self, value: int | None) -> None:
        self._idle_timeout_ms = value
        if self._stream is not None:
            self._stream.idle_timeout_ms = value

    def cancel(self) -> None:
        """Cancel the call if it still runs."""
        if self._stream is not None:
            self._stream.cancel()

    def _follow(self, stream: _S) -> _S:
        """Read this stream from now on. Who cancels from another thread may not have seen it yet."""
        self._stream = stream
        stream.idle_timeout_ms = self._idle_timeout_ms
        return stream


class SyncStreamAround(StreamAround[SyncByteStream]):
    """With threads."""

    def abandon(self) -> None:
        """As ``cancel``, for a finalizer."""
        if self._stream is not None:
            self._stream.abandon()


AsyncStreamAround = StreamAround[AsyncByteStream]
"""On an event loop."""
