"""A connected socket on an event loop, with or without TLS.

asyncio's own transports are bound to their loop in life and death, read ahead of their reader, and cannot say how much
of what was written has left. A socket does none of that; what is here is the waiting, and TLS over memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable

from quill.client.tuning import tune
from quill.client.turns import Turns

_READ_BYTES = 64 * 1024
_TURN_S = 0.01
"""After so long without a wait it is the turn of others on the loop, and of the call's own deadline."""
_WRITE_BYTES = 128 * 1024
"""How much is encrypted at a time."""
_JOIN_BYTES = 16 * 1024
"""Shorter pieces than this are joined to one system call."""


class _Tls:
    """One side of a TLS connection, without its socket."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)

    def feed(self, data: bytes) -> None:
        """Take what was read; no bytes are the end."""
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    @property
    def has_more(self) -> bool:
        """Whether something was fed that nobody has read."""
        return bool(self.incoming.pending or self.object.pending())

    def read(self) -> bytes | None:
        """What can be decrypted; None where more must be fed, no bytes at the end."""
        try:
            return self.object.read(_READ_BYTES)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""


class AsyncSocket:
    """Sends in the background what is written, reads what is asked for.

    Args:
        sock: Connected and non-blocking; belongs to this object now.
        loop: The event loop that watches it.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.closed = False
        self.written_bytes = 0
        """How much was ever written."""
        self.sent_bytes = 0
        """How much of it may have left: what has not, nobody has seen."""
        self.when_drained: Callable[[], None] | None = None
        """Called when all that had to wait was sent."""
        self._socket = sock
        self._descriptor = sock.fileno()
        self._loop = loop
        self._tls: _Tls | None = None
        self._queue: deque[memoryview] = deque()
        self._outgoing = memoryview(b"")
        self._write_error: OSError | None = None
        self._is_writing = False
        self._turn_began_s = 0.0
        self._watcher: Callable[[], None] | None = None
        self._arrival: asyncio.Future[bytes] | None = None
        self._departure: asyncio.Future[None] | None = None
        self._turns = Turns(loop.time)

    @property
    def unsent_bytes(self) -> int:
        """How much waits to be sent."""
        return 0 if self._write_error else self.written_bytes - self.sent_bytes

    @property
    def is_readable(self) -> bool:
        """Whether there is something to read, or the end."""
        if self.closed or (self._tls is not None and self._tls.has_more):
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    async def secure(self, context: ssl.SSLContext, host: str) -> str | None:
        """Shake hands over TLS. Returns the protocol that was agreed on (ALPN).

        Raises:
            OSError: They could not agree, or the server is not the one it should be (ssl.SSLCertVerificationError).
        """
        tls = _Tls(context, host)
        while True:
            try:
                tls.object.do_handshake()
            except ssl.SSLWantReadError:
                pass
            else:
                break
            finally:  # a refusal has its words too
                self._send_now(tls.outgoing.read())
            tls.feed(await self.receive())
        self._tls = tls
        self.sent_bytes = 0
        return tls.object.selected_alpn_protocol()

    def write(self, *pieces: bytes) -> None:
        """Send all of it, now or when the peer takes it. Where that fails, ``drained`` tells."""
        if self.closed or self._write_error:
            return
        for piece in pieces:
            if piece:
                self._queue.append(memoryview(piece))
                self.written_bytes += len(piece)
        if not self._is_writing:
            self._flush()

    async def drained(self) -> None:
        """Wait until all that was written is sent. One task may wait.

        Raises:
            OSError: It cannot be.
        """
        while self._is_writing and not self.closed:
            self._departure = self._loop.create_future()
            await self._departure
        if self._write_error or self.closed:
            raise ConnectionAbortedError

    def read(self) -> bytes | None:
        """What has come; None where nothing has, no bytes at the end.

        Raises:
            OSError: The connection is lost.
        """
        if self.closed:
            raise ConnectionAbortedError
        if self._tls is None:
            return self._receive_now()
        while (data := self._tls.read()) is None:
            encrypted = self._receive_now()
            if encrypted is None:
                return None
            self._tls.feed(encrypted)
            self._send_now(self._tls.outgoing.read())
        return data

    async def receive(self) -> bytes:
        """What comes next; no bytes at the end. One task may wait. Raises as ``read``.

        A peer that always has something to say does not keep the loop for itself.
        """
        await self._turns.give()
        data = self.read()
        if data is not None:
            if self._loop.time() - self._turn_began_s > _TURN_S:
                await asyncio.sleep(0)
                self._turn_began_s = self._loop.time()
            return data
        self._arrival = self._loop.create_future()
        self.watch(self._on_arrival)
        try:
            return await self._arrival
        finally:
            self._arrival = None
            self._turn_began_s = self._loop.time()

    def watch(self, watcher: Callable[[], None] | None) -> None:
        """Have something called whenever there may be something to read; None for nothing any more."""
        if self.closed or watcher == self._watcher:
            return
        self._watcher = watcher
        if watcher is None:
            self._loop.remove_reader(self._descriptor)
        else:
            self._loop.add_reader(self._descriptor, watcher)

    def close(self) -> None:
        """Close the socket, and wake whoever waits for it. May be called again."""
        if self.closed:
            return
        if not self._loop.is_closed():
            self.watch(None)
            self._watch_writing(False)
        self.closed = True
        self._queue.clear()
        self._socket.close()
        for waiter in (self._arrival, self._departure):
            if waiter is not None and not waiter.done():
                waiter.set_exception(ConnectionAbortedError())

    def __del__(self) -> None:
        # Of a client that nobody closed: no loop watches it any more.
        self._socket.close()

    def _receive_now(self) -> bytes | None:
        try:
            return self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return None

    def _on_arrival(self) -> None:
        waiter = self._arrival
        if waiter is None or waiter.done():
            self.watch(None)  # nobody reads: let the peer wait
            return
        try:
            data = self.read()
        except OSError as error:
            waiter.set_exception(error)
        else:
            if data is not None:
                waiter.set_result(data)

    def _send_now(self, encrypted: bytes) -> None:
        """Send what TLS itself has to say."""
        if encrypted:
            self._outgoing = memoryview(bytes(self._outgoing) + encrypted)
            self._flush()

    def _flush(self) -> None:
        """Hand the kernel what it takes."""
        try:
            while self._outgoing or self._refill():
                sent = self._socket.send(self._outgoing)
                self._outgoing = self._outgoing[sent:]
                if self._tls is None:
                    self.sent_bytes += sent
        except (BlockingIOError, InterruptedError):
            self._watch_writing(True)
            return
        except OSError as error:
            # The peer may have answered before it hung up: what it said can still be read.
            self._write_error = error
            self._queue.clear()
            self._outgoing = memoryview(b"")
        self._watch_writing(False)
        if self._departure is not None and not self._departure.done():
            self._departure.set_result(None)

    def _refill(self) -> bool:
        """Prepare the next piece to be sent, if there is one."""
        if not self._queue:
            return False
        piece = self._queue.popleft()
        if len(piece) < _JOIN_BYTES and self._queue:
            piece = self._join(piece)
        if self._tls is not None:
            if len(piece) > _WRITE_BYTES:
                self._queue.appendleft(piece[_WRITE_BYTES:])
                piece = piece[:_WRITE_BYTES]
            self._tls.object.write(piece)
            self.sent_bytes += len(piece)
            piece = memoryview(self._tls.outgoing.read())
        self._outgoing = piece
        return True

    def _join(self, first: memoryview) -> memoryview:
        pieces = [first]
        size = len(first)
        while self._queue and size + len(self._queue[0]) <= _WRITE_BYTES:
            pieces.append(self._queue.popleft())
            size += len(pieces[-1])
        return memoryview(b"".join(pieces))

    def _watch_writing(self, wanted: bool) -> None:
        if wanted and not self._is_writing:
            self._loop.add_writer(self._descriptor, self._on_writable)
        elif self._is_writing and not wanted:
            self._loop.remove_writer(self._descriptor)
        self._is_writing = wanted

    def _on_writable(self) -> None:
        self._flush()
        if not self._is_writing and self.when_drained is not None and not self.closed:
            self.when_drained()


async def connect_socket(target: object, family: int, loop: asyncio.AbstractEventLoop) -> socket.socket:
    """A connected, non-blocking socket.

    Raises:
        OSError: The peer does not take the connection.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as closing:
        closing.callback(sock.close)
        sock.setblocking(False)
        await loop.sock_connect(sock, target)  # type: ignore[arg-type]  # a path, for a Unix socket
        tune(sock)
        closing.pop_all()
    return sock
