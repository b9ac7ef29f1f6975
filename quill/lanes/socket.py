"""A direct TCP connection for the elements of tensors: sent from the arrays, received into the arrays.

Both sides send frames, one for each direction of a call:

    number      8 bytes  of the call on this connection, from 0
    head size   8 bytes
    data size   8 bytes
    head        of a reply its serialized InferResponse, which says what the data is; of a request nothing
    data        the elements of the tensors, one behind the other

The numbers are little-endian. Sockets block, each wait has a deadline, and whoever calls does so in a thread: a loop of
asyncio was no faster on loopback, and stood still while it copied.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from quill.errors import DeadlineExceeded, Unavailable

_PREFIX = Struct("<QQQ")

STALL_S = 60.0
"""How long the other side may take for the next piece, whatever the deadline."""
_LEFT: int = getattr(select, "POLLRDHUP", 0)
_PIECE_BYTES = 8 * 1024 * 1024
"""What is sent under one timeout."""


class Frame(NamedTuple):
    """What stands in front of the data."""

    head: bytes
    data_bytes: int


class Connection:
    """One end of a connection. Where anything fails it is closed, because nobody knows then where a frame begins.

    Args:
        sock: Connected, and for this alone.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._in_use = threading.RLock()
        self._sent = self._received = 0
        # A frame begins with a few bytes, which should not wait for the acknowledgement of the last.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, head: bytes, data: Sequence[memoryview], deadline_s: float) -> None:
        """Send a frame, from the memory that ``data`` views.

        Args:
            head: What describes the data.
            data: Contiguous, of format B.
            deadline_s: When to give up, on the monotonic clock.

        Raises:
            DeadlineExceeded: It is reached.
            Unavailable: The connection is lost.
        """
        size_bytes = sum(map(len, data))
        with self._closed_where_it_fails(f"sending {size_bytes} bytes"):
            self._send(memoryview(_PREFIX.pack(self._sent, len(head), size_bytes) + head), deadline_s)
            self._sent += 1
            for piece in data:
                self._send(piece, deadline_s)

    def receive_frame(self, most_head_bytes: int, deadline_s: float) -> Frame:
        """What stands in front of the next data, which ``receive_data`` then takes.

        Raises:
            DeadlineExceeded: The deadline is reached.
            Unavailable: The connection is lost, or the other side sends something else.
        """
        with self._closed_where_it_fails("waiting for tensors"):
            prefix = bytearray(_PREFIX.size)
            self._fill(memoryview(prefix), deadline_s)
            number, head_bytes, data_bytes = _PREFIX.unpack(prefix)
            if number != self._received or head_bytes > most_head_bytes:
                raise Unavailable(
                    f"frame {number} came with a head of {head_bytes} bytes, expected was frame {self._received} "
                    f"with {most_head_bytes} at most"
                )
            self._received += 1
            head = bytearray(head_bytes)
            self._fill(memoryview(head), deadline_s)
            return Frame(bytes(head), data_bytes)

    def receive_data(self, rooms: Sequence[memoryview], deadline_s: float) -> None:
        """Fill these places, one after the other, with the data of a frame.

        Raises:
            DeadlineExceeded: The deadline is reached.
            Unavailable: The connection is lost.
        """
        with self._closed_where_it_fails(f"receiving {sum(map(len, rooms))} bytes"):
            for room in rooms:
                self._fill(room, deadline_s)

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed it, as far as is known. Not while another thread sends or receives."""
        try:
            self._sock.settimeout(0)
            if _is_left(self._sock):
                return False
            # As socket does it: there is no peeking into what is encrypted.
            return socket.socket.recv(self._sock, 1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Close it. Whoever waits for it in another thread is told."""
        with contextlib.suppress(OSError):
            # SSLSocket's own forgets the encryption, and a thread that reads would go on in clear text.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        with self._in_use:  # or the number of the descriptor might be another's by the time it is read from
            self._sock.close()

    def _send(self, data: memoryview, deadline_s: float) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            self._sock.settimeout(_left_s(deadline_s))
            self._sock.sendall(data[start : start + _PIECE_BYTES])

    def _fill(self, room: memoryview, deadline_s: float) -> None:
        filled = 0
        while filled < len(room):
            self._sock.settimeout(_left_s(deadline_s))
            count = self._sock.recv_into(room[filled:])
            if not count:
                raise Unavailable(f"it ended, and {filled} of {len(room)} bytes had come")
            filled += count

    @contextlib.contextmanager
    def _closed_where_it_fails(self, doing: str) -> Iterator[None]:
        with self._in_use:
            try:
                yield
            except BaseException as error:
                self.close()
                if isinstance(error, TimeoutError):
                    raise DeadlineExceeded(f"the lane took too long, {doing}") from None
                if isinstance(error, Unavailable):
                    raise Unavailable(f"the lane is lost, {doing}: {error.message}") from None
                if isinstance(error, OSError):
                    raise Unavailable(f"the lane is lost, {doing}: {_reason(error)}") from None
                raise


def _is_left(sock: socket.socket) -> bool:
    """Whether the other side has closed it, also where what it sent before has not been read; known on Linux only."""
    if not _LEFT:
        return False
    asked = select.poll()
    asked.register(sock, _LEFT)
    return bool(asked.poll(0))


def _left_s(deadline_s: float) -> float:
    """How long a wait may be.

    Raises:
        TimeoutError: No longer.
    """
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return min(left_s, STALL_S)


def _reason(error: OSError) -> str:
    return "TLS failed" if isinstance(error, ssl.SSLError) else error.strerror or "it is closed"
