"""The body of a request in envelopes, read a little ahead of its handler, so that a client that leaves is noticed.

ASGI tells a disconnect only behind the last byte of the body. A handler that writes, or waits, without reading
would otherwise run on for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable

from quill.errors import Cancelled
from quill.server.connect.errors import connect_error
from quill.server.http_host import Message, Receive

_MAX_BYTES = 64 * 1024
"""How far to read ahead; then the client waits, as flow control wants."""
_OVERHEAD_BYTES = 512
"""What a part of a body counts besides its bytes: parts may be small and many."""


class ReadAhead:
    """A ``receive`` that keeps a few messages in hand within `watched`; else it forwards.

    Args:
        receive: The host's.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: deque[Message | Exception] = deque()
        self._held_bytes = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self) -> Message:
        """The next message."""
        if self._task is None and not self._messages:
            return await self._receive()
        while not self._messages:
            await self._wait()
        message = self._messages[0]
        if isinstance(message, Exception):
            raise message
        self._messages.popleft()
        self._held_bytes -= _size_bytes(message)
        self._changed.set()
        return message

    @contextlib.asynccontextmanager
    async def watched(self, on_disconnect: Callable[[], None]) -> AsyncIterator[None]:
        """Read ahead; call `on_disconnect` when the client has gone. Who reads after that gets an error.

        A disconnect is told in this way alone, once. connectrpc's own watch for it, which would cancel the call a
        second time, in the middle of its cleaning up, never hears of it.
        """
        self._task = asyncio.create_task(self._read(on_disconnect))
        try:
            yield
        finally:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
            self._hold(connect_error(Cancelled("the call is over")))

    async def _read(self, on_disconnect: Callable[[], None]) -> None:
        try:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    self._hold(connect_error(Cancelled("the client has gone")))
                    on_disconnect()
                    return
                self._hold(message)
                while self._held_bytes > _MAX_BYTES:
                    await self._wait()
        except Exception as error:  # noqa: BLE001 - raised where the body is read
            self._hold(error)

    def _hold(self, message: Message | Exception) -> None:
        self._messages.append(message)
        if not isinstance(message, Exception):
            self._held_bytes += _size_bytes(message)
        self._changed.set()

    async def _wait(self) -> None:
        """Wait until messages have come or gone."""
        self._changed.clear()
        await self._changed.wait()


def _size_bytes(message: Message) -> int:
    return len(message.get("body", b"")) + _OVERHEAD_BYTES
