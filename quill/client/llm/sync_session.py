"""Many generations on one call, with the blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self, Unpack

from quill.client.llm.calls import SERVICE
from quill.client.llm.request import GenerateOptions, generate_request
from quill.client.llm.session_state import SessionState
from quill.client.llm.session_view import SessionView
from quill.client.llm.sync_stream import GenerationStream
from quill.client.requests import Replay
from quill.errors import Cancelled, InvalidUsage, RpcError, Unavailable, Unimplemented

if TYPE_CHECKING:
    from types import TracebackType

    from quill import proto
    from quill.client.calls import SyncCalls
    from quill.client.headers import Headers
    from quill.client.streams import MessageStream
    from quill.client.transport import ResponseMetadata
    from quill.generation import Delta, Generation
    from quill.token import Token


class Session:
    """Many generations on one call, of ``client.llm.session()``. Any thread may start, read and end generations.

        with client.llm.session() as session:
            streams = [session.stream(prompt) for prompt in prompts]
            generations = [stream.result() for stream in streams]

    Leaving it ends every generation that still runs. It needs gRPC; elsewhere the generations end with Unimplemented,
    and the message names the address for gRPC. One thread of the session reads for all.

    A generation whose reader falls 256 tokens behind is paused, on the server, until its reader goes on. So each
    stream should be read or closed. The others do not wait for it.
    """

    def __init__(
        self,
        client: SyncCalls,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> None:
        self._client = client
        self._timeout_ms = timeout_ms
        self._headers = headers
        self._response = response
        self.lock = threading.RLock()
        """Held while anything of the session or of one of its streams changes."""
        self._asked = threading.Condition(self.lock)
        """There is something to send, or nothing will be any more."""
        self._arrived = threading.Condition(self.lock)
        """There is something to take for whoever iterates over the whole session."""
        self._state: SessionState[SessionStream] = SessionState()
        self._messages: MessageStream[proto.SessionResponse] | None = None
        self._calls = 0
        """How many attempts of calls there were, and how many calls have ended: only the newest asks for anything."""
        self._ending = threading.Event()
        self._reading: threading.Thread | None = None
        self._error: RpcError | None = None
        self._closed = False

    def stream(
        self, prompt: str | None = None, *, resume_ttl_ms: int = 0, **options: Unpack[GenerateOptions]
    ) -> GenerationStream:
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
        with self.lock:
            self._check_open()
            stream = SessionStream(self, request)
            if self._error is not None:
                stream.end(self._error)
                return stream
            stream.number = self._state.start(stream)
            if self._reading is None:
                messages = self._open()
                self._reading = threading.Thread(target=self._read, args=(messages,), name="quill-session", daemon=True)
                self._reading.start()
            self._asked.notify_all()
        return stream

    def cancel(self, stream: GenerationStream, reason: str = "") -> bool:
        """Have a generation ended. Its stream then raises StreamInterrupted with CANCELLED.

        Args:
            stream: One of this session.
            reason: Why, for the server's log.

        Returns:
            Whether it had not ended yet, as far as is known here.
        """
        if not isinstance(stream, SessionStream) or stream.session is not self:
            raise InvalidUsage("the stream is not one of this session")
        return self._ask_end(stream.number, reason)

    def deltas(self) -> Iterator[tuple[GenerationStream, Delta | None]]:
        """Everything that comes, of all generations, until none is left: the cheapest way to read many.

        Yields:
            The stream and the next piece of it; None for the piece when it has ended, well or not:
            ``stream.result()`` tells. A generation that is started meanwhile is there as well. What is read here is
            not read from the streams. Whoever leaves early may have got less of a stream than its ``text`` has.
        """
        while True:
            for stream in self._state.batch:
                with self.lock:
                    deltas = stream.take_all()
                for delta in deltas:
                    yield stream, delta
            with self.lock:
                while not self._state.next_batch():
                    if not self._state.live:
                        return
                    self._arrived.wait()

    def close(self) -> None:
        """End the session and every generation that still runs. May be called again, and from any thread."""
        with self.lock:
            self._closed = True
            self._ending.set()
            self._state.fail(Cancelled("the session was closed"))
            self._asked.notify_all()
            messages, reading = self._messages, self._reading
        if messages is not None:
            messages.close()
        if reading is not None and reading is not threading.current_thread():
            reading.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def noted(self, stream: SessionStream) -> None:
        """Nothing more comes of a stream. The lock is held."""
        self._state.note(stream)
        self._arrived.notify_all()

    def read(self, stream: SessionStream) -> None:
        """A stream has nothing more to take."""
        self._state.read(stream)

    def acknowledge(self, number: int, position: int) -> None:
        """A stream was read so far."""
        with self.lock:
            self._state.acknowledge(number, position)
            self._asked.notify()

    def leave(self, number: int) -> None:
        """Nobody reads from a stream any more."""
        with self.lock:
            self._ask_end(number, "its reader has gone")
            self._state.forget(number)

    def _ask_end(self, number: int, reason: str) -> bool:
        with self.lock:
            asked = self._state.cancel(number, reason)
            self._asked.notify()
            return asked

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidUsage("the session is closed")

    def _open(self, max_attempts: int | None = None) -> MessageStream[proto.SessionResponse]:
        messages = self._messages = self._client.stream(
            SERVICE,
            "Session",
            # HTTP carries a blocking client's requests before it reads: only the refusal can come.
            Replay(self._requests) if self._client.protocol == "grpc" else (),
            timeout_ms=self._timeout_ms,
            max_attempts=max_attempts,
            headers=self._headers,
            response=self._response,
        )
        return messages

    def _requests(self) -> Iterator[proto.SessionRequest]:
        with self.lock:
            call = self._end_requests()
            self._state.begin()
        while True:
            with self.lock:
                while self._calls == call and not self._closed and self._error is None:
                    request = self._state.next_request()
                    if request is not None:
                        break
                    self._asked.wait()
                else:
                    return
            yield request

    def _end_requests(self) -> int:
        """The requests of the newest call end. Returns the number of the next; the lock is held."""
        self._calls += 1
        self._asked.notify_all()
        return self._calls

    def _read(self, messages: MessageStream[proto.SessionResponse]) -> None:
        """Hand out frames until the last call ends, and the end to all who are left."""
        error: RpcError = Cancelled("the session was closed")
        try:
            while True:
                error = self._read_call(messages)
                with self.lock:
                    self._end_requests()
                    wait_s = self._state.lost(error)
                if wait_s is None or self._ending.wait(wait_s):
                    break
                with self.lock:
                    messages = self._open(max_attempts=1)  # what is left asks again itself
        except InvalidUsage:  # the client was closed
            error = Cancelled("the client was closed")
        finally:
            with self.lock:
                self._error = error
                self._state.fail(error)
                self._asked.notify_all()
                self._arrived.notify_all()

    def _read_call(self, messages: MessageStream[proto.SessionResponse]) -> RpcError:
        """Hand out the frames of one call. Returns what ended it."""
        idle_timeout_ms = messages.idle_timeout_ms
        try:
            for response in messages:
                with self.lock:
                    self._state.take(response)
                    self._arrived.notify_all()
                    live = self._state.live
                # A session without generations may be silent.
                messages.idle_timeout_ms = idle_timeout_ms if live else None
        except RpcError as error:
            return error
        finally:
            messages.close()
        if self._client.protocol == "grpc":
            return Unavailable("the server ended the session")
        return Unimplemented("the blocking client has sessions over gRPC only; AsyncQuillClient also with http2=True")


class SessionStream(SessionView, GenerationStream):
    """One generation of a session."""

    def __init__(self, session: Session, request: proto.GenerateRequest) -> None:
        SessionView.__init__(self, session, request, time.monotonic)
        self.session = session
        self.waiter: threading.Lock | None = None

    def wake(self) -> None:
        """There is something for whoever waits, or nothing more will be. The lock of the session is held."""
        if self._is_due():
            waiter, self.waiter = self.waiter, None
            if waiter is not None:
                waiter.release()

    @property
    def text(self) -> str:
        """The text of sequence 0 so far."""
        with self.session.lock:  # the session's thread may be putting it together
            return super().text

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of sequence 0 so far."""
        with self.session.lock:
            return super().tokens

    def close(self) -> None:
        """End the generation if it still runs. May be called again, and from any thread."""
        with self.session.lock:
            self._leave()
            self.session.read(self)

    def result(self) -> Generation:
        """Read to the end, and return the whole generation; as by iterating, without a thread's turn for each piece."""
        self._resumption.began()
        while True:
            with self.session.lock:
                self.take_all()
                if self._ended:
                    break
                waiter = self._queue(gathers=True)
            self._wait(waiter)
        return super().result()

    def _take(self) -> Delta | None:
        """Wait for the next piece."""
        while True:
            with self.session.lock:
                if self.pieces:
                    return self._fold_next()
                waiter = self._queue(gathers=False)
            self._wait(waiter)

    def _wait(self, waiter: threading.Lock) -> None:
        try:
            waiter.acquire()
        finally:
            with self.session.lock:
                self._gathers = False
                if self.waiter is waiter:  # it was interrupted
                    self.waiter = None

    def _queue(self, *, gathers: bool) -> threading.Lock:
        """A lock to acquire, with nothing to take; raises what ended the generation where nothing comes.

        The lock of the session is held.
        """
        self.session.read(self)
        if self._no_more:
            self._raise_ending()
        if self.waiter is not None:
            raise InvalidUsage("the stream is being read by another thread, which would get what this one waits for")
        self._gathers = gathers
        waiter = self.waiter = threading.Lock()
        waiter.acquire()
        return waiter
