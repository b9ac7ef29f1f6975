"""The replies of a streaming call as the user iterates over them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from quill.client.options import check_timeout
from quill.client.transport import AsyncByteStream, SyncByteStream
from quill.errors import InvalidUsage, Unimplemented

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")


class MessageStream(Generic[T]):
    """An iterator over the replies of one call. One thread iterates; any may close.

    Raises, from ``next``: RpcError with the status that ended the call, DEADLINE_EXCEEDED where a timeout ran out,
    CANCELLED in a thread that waits while another closes. After its end, however it ended, the iterator is empty.
    """

    def __init__(self, messages: SyncByteStream, decode: Callable[[bytes], T]) -> None:
        self._messages = messages
        self._decode = decode
        self._process = os.getpid()

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the next gap may be, in milliseconds; None for no bound. Can be set while the call runs."""
        return self._messages.idle_timeout_ms

    @idle_timeout_ms.setter
    def idle_timeout_ms(self, value: int | None) -> None:
        self._messages.idle_timeout_ms = None if value is None else check_timeout("idle_timeout_ms", value)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if os.getpid() != self._process:
            raise InvalidUsage("the stream belongs to the process that opened it, and this one was forked from it")
        message = self._messages.next_message()
        if message is None:
            raise StopIteration
        try:
            return self._decode(message)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel the call if it still runs. May be called again, and from any thread."""
        if os.getpid() == self._process:
            self._messages.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A loop that was left with break leaves the call running otherwise.
        with contextlib.suppress(Exception):
            if os.getpid() == self._process:
                self._messages.abandon()


class AsyncMessageStream(Generic[T]):
    """An asynchronous iterator over the replies of one call. Belongs to one event loop; one task iterates.

    Raises, from ``anext``: RpcError with the status that ended the call, DEADLINE_EXCEEDED where a timeout ran out,
    CANCELLED in a task that waits while another closes. After its end, however it ended, the iterator is empty.
    """

    def __init__(self, messages: AsyncByteStream, decode: Callable[[bytes], Awaitable[T]]) -> None:
        self._messages = messages
        self._decode = decode
        self._loop = asyncio.get_running_loop()

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the next gap may be, in milliseconds; None for no bound. Can be set while the call runs."""
        return self._messages.idle_timeout_ms

    @idle_timeout_ms.setter
    def idle_timeout_ms(self, value: int | None) -> None:
        self._messages.idle_timeout_ms = None if value is None else check_timeout("idle_timeout_ms", value)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        message = await self._messages.next_message()
        if message is None:
            raise StopAsyncIteration
        try:
            return await self._decode(message)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Cancel the call if it still runs. May be called again."""
        self._messages.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # A loop that was left with break leaves the call running otherwise. This may be any thread, and late.
        with contextlib.suppress(Exception):
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._messages.cancel)


def only(replies: MessageStream[T]) -> T:
    """The reply of a call that has one, when the call has ended.

    Raises:
        RpcError: The status that ended the call; UNIMPLEMENTED where it ended well with another number of replies.
            Source: "cardinality violation" in https://grpc.github.io/grpc/core/md_doc_statuscodes.html.
    """
    with replies:
        reply = next(replies, None)
        if reply is None:
            raise _none()
        if next(replies, None) is not None:
            raise _several()
        return reply


async def only_async(replies: AsyncMessageStream[T]) -> T:
    """As ``only``."""
    async with replies:
        reply = await anext(replies, None)
        if reply is None:
            raise _none()
        if await anext(replies, None) is not None:
            raise _several()
        return reply


def _none() -> Unimplemented:
    return Unimplemented("the call ended well and has no reply; its method has one")


def _several() -> Unimplemented:
    return Unimplemented("the call has more than one reply; its method has one")
