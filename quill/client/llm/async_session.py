"""Many generations on one call, with the asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Self, Unpack

from quill.client.llm.async_stream import AsyncGenerationStream
from quill.client.llm.calls import SERVICE
from quill.client.llm.request import GenerateOptions, generate_request
from quill.client.llm.session_state import SessionState
from quill.client.llm.session_view import SessionView
from quill.client.requests import AsyncReplay
from quill.errors import Cancelled, InvalidUsage, RpcError, Unavailable

if TYPE_CHECKING:
    from types import TracebackType

    from quill import proto
    from quill.client.calls import AsyncCalls
    from quill.client.headers import Headers
    from quill.client.streams import AsyncMessageStream
    from quill.client.transport import ResponseMetadata
    from quill.generation import Delta, Generation


_GAP_S = 0.005
"""From a request to the next at least: under load a server takes one in each turn of its event loop, so starts and
acknowledgements that come soon after others travel together."""


class AsyncSession:
    """Many generations on one call, of ``client.llm.session()``.

        async with client.llm.session() as session:
            streams = [session.stream(prompt) for prompt in prompts]
            generations = await asyncio.gather(*(stream.result() for stream in streams))

    Leaving it ends every generation that still runs. It needs gRPC, or Connect over HTTP/2 (``http2=True``);
    elsewhere the generations end with Unimplemented, and the message names the address for gRPC.

    A generation whose reader falls 256 tokens behind is paused, on the server, until its reader goes on. So each
    stream should be read or closed. The others do not wait for it.
    """

    def __init__(
        self,
        client: AsyncCalls,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> None:
        self._client = client
        self._timeout_ms = timeout_ms
        self._headers = headers
        self._response = response
        self._state: SessionState[AsyncSessionStream] = SessionState()
        self._messages: AsyncMessageStream[proto.SessionResponse] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._sender: asyncio.Future[None] | None = None
        self._iterator: asyncio.Future[None] | None = None
        self._error: RpcError | None = None
        self._closed = False

    def stream(
        self, prompt: str | None = None, *, resume_ttl_ms: int = 0, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerationStream:
        """Start a generation. It is sent at once, and runs whether it is read or not, as far as its window goes.

        Args:
            prompt: The input as text; or ``messages=`` or ``prompt_token_ids=`` in its place.
            resume_ttl_ms: For how long the run outlives a lost connection: it is asked for again by itself, on another
                call, and goes on where it was.
            options: Any field of inference.v1.GenerateRequest by name; see GenerateOptions.

        Returns:
            What ``client.llm.stream`` returns, with the same pieces, result and errors. When the session breaks, each
            of its streams raises a StreamInterrupted with what it has got; a stream of a session that has ended
            raises what it ended with.

        Raises:
            InvalidUsage: The session is closed, or an option cannot be used.
        """
        request = generate_request(prompt, options, resume_ttl_ms=resume_ttl_ms)
        self._check_open()
        stream = AsyncSessionStream(self, request)
        if self._error is not None:
            stream.end(self._error)
            return stream
        stream.number = self._state.start(stream)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(self._open()), name="session")
        self.wake_sender()
        return stream

    def cancel(self, stream: AsyncGenerationStream, reason: str = "") -> bool:
        """Have a generation ended. Its stream then raises StreamInterrupted with CANCELLED.

        Args:
            stream: One of this session.
            reason: Why, for the server's log.

        Returns:
            Whether it had not ended yet, as far as is known here.
        """
        if not isinstance(stream, AsyncSessionStream) or stream.session is not self:
            raise InvalidUsage("the stream is not one of this session")
        return self._ask_end(stream.number, reason)

    async def deltas(self) -> AsyncIterator[tuple[AsyncGenerationStream, Delta | None]]:
        """Everything that comes, of all generations, until none is left: the cheapest way to read many.

        Yields:
            The stream and the next piece of it; None for the piece when it has ended, well or not:
            ``stream.result()`` tells. A generation that is started meanwhile is there as well. What is read here is
            not read from the streams. Whoever leaves early may have got less of a stream than its ``text`` has.
        """
        state = self._state
        while True:
            for stream in state.batch:
                for delta in stream.take_all():
                    yield stream, delta
            if not state.next_batch():
                if not state.live:
                    return
                self._iterator = asyncio.get_running_loop().create_future()
                try:
                    await self._iterator
                finally:
                    self._iterator = None

    async def aclose(self) -> None:
        """End the session and every generation that still runs. May be called again."""
        self._closed = True
        self.wake_sender()
        self._state.fail(Cancelled("the session was closed"))
        messages, reading = self._messages, self._reading
        if messages is not None:
            await messages.aclose()
        if reading is not None and reading is not asyncio.current_task():
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({reading})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def noted(self, stream: AsyncSessionStream) -> None:
        """Nothing more comes of a stream."""
        self._state.note(stream)
        self._wake_iterator()

    def _wake_iterator(self) -> None:
        """There may be something to take for whoever iterates over the whole session."""
        if self._iterator is not None and not self._iterator.done():
            self._iterator.set_result(None)

    def read(self, stream: AsyncSessionStream) -> None:
        """A stream has nothing more to take."""
        self._state.read(stream)

    def acknowledge(self, number: int, position: int) -> None:
        """A stream was read so far."""
        self._state.acknowledge(number, position)
        self.wake_sender()

    def leave(self, number: int) -> None:
        """Nobody reads from a stream any more."""
        self._ask_end(number, "its reader has gone")
        self._state.forget(number)

    def wake_sender(self) -> None:
        """There may be something to send."""
        if self._sender is not None and not self._sender.done():
            self._sender.set_result(None)

    def _ask_end(self, number: int, reason: str) -> bool:
        asked = self._state.cancel(number, reason)
        self.wake_sender()
        return asked

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidUsage("the session is closed")

    def _open(self, max_attempts: int | None = None) -> AsyncMessageStream[proto.SessionResponse]:
        messages = self._messages = self._client.stream(
            SERVICE,
            "Session",
            AsyncReplay(self._requests),
            timeout_ms=self._timeout_ms,
            max_attempts=max_attempts,
            headers=self._headers,
            response=self._response,
        )
        return messages

    async def _requests(self) -> AsyncIterator[proto.SessionRequest]:
        self._state.begin()
        while not self._closed:
            request = self._state.next_request()
            if request is not None:
                yield request
                continue
            loop = asyncio.get_running_loop()
            next_s = loop.time() + _GAP_S
            sender = self._sender = loop.create_future()
            try:
                await sender
            finally:
                if self._sender is sender:  # else another attempt asks by now
                    self._sender = None
            if (soon_s := next_s - loop.time()) > 0:
                await asyncio.sleep(soon_s)

    async def _read(self, messages: AsyncMessageStream[proto.SessionResponse]) -> None:
        """Hand out frames until the last call ends, and the end to all who are left."""
        error: RpcError = Cancelled("the session was closed")
        try:
            while True:
                error = await self._read_call(messages)
                wait_s = self._state.lost(error)
                if wait_s is None or self._closed:
                    break
                await asyncio.sleep(wait_s)
                messages = self._open(max_attempts=1)  # what is left asks again itself
        except InvalidUsage:  # the client was closed
            error = Cancelled("the client was closed")
        finally:
            self._error = error
            self._state.fail(error)

    async def _read_call(self, messages: AsyncMessageStream[proto.SessionResponse]) -> RpcError:
        """Hand out the frames of one call. Returns what ended it."""
        idle_timeout_ms = messages.idle_timeout_ms
        try:
            async for response in messages:
                self._state.take(response)
                self._wake_iterator()
                # A session without generations may be silent.
                messages.idle_timeout_ms = idle_timeout_ms if self._state.live else None
        except RpcError as error:
            return error
        finally:
            await messages.aclose()
        return Unavailable("the server ended the session")


class AsyncSessionStream(SessionView, AsyncGenerationStream):
    """One generation of a session."""

    def __init__(self, session: AsyncSession, request: proto.GenerateRequest) -> None:
        SessionView.__init__(self, session, request, asyncio.get_running_loop().time)
        self.session = session
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """There is something for whoever waits, or nothing more will be."""
        waiter = self.waiter
        # Whoever was cancelled has a cancelled future until it has had its turn.
        if waiter is not None and not waiter.done() and self._is_due() and not waiter.done():
            waiter.set_result(None)

    async def aclose(self) -> None:
        """End the generation if it still runs. May be called again."""
        self._leave()
        self.session.read(self)

    async def result(self) -> Generation:
        """Read to the end, and return the whole generation; as by iterating, without a task's turn for each piece."""
        self._resumption.began()
        self.take_all()
        while not self._ended:
            await self._turn(gathers=True)
        return await super().result()

    async def _take(self) -> Delta | None:
        """Wait for the next piece."""
        while not self.pieces:
            await self._turn(gathers=False)
        return self._fold_next()

    async def _turn(self, *, gathers: bool) -> None:
        """Wait, with nothing to take; raises what ended the generation where nothing comes."""
        self.session.read(self)
        if self._no_more:
            self._raise_ending()
        if self.waiter is not None:
            raise InvalidUsage("the stream is being read by another task, which would get what this one waits for")
        self.waiter = asyncio.get_running_loop().create_future()
        self._gathers = gathers
        try:
            await self.waiter
        except asyncio.CancelledError:
            self.waiter = None
            self.session.noted(self)  # what has come meanwhile
            raise
        finally:
            self.waiter = None
