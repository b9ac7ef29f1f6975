"""How a connection of the HTTP port closes: what its peer still sends, and what it still takes."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable

_LINGER_S = 2.0
_LINGER_BYTES = 256 * 1024
"""How long a peer may go on sending after it was hung up on, and how much."""
_CHECK_S = 1.0
"""How often a closing connection is looked at, and how long its peer may take to end TLS."""

_BYTES_ACKED = struct.Struct("=120xQ")
"""``tcpi_bytes_acked`` of Linux's struct tcp_info (tcp(7))."""


class ReaderWatch:
    """Drops a closing connection whose peer takes nothing of what was written.

    asyncio would wait for ever, and over TLS no longer than for the end of TLS, whatever a reply may need.

    Args:
        transport: Of the connection.
        limit_s: How long nothing may be taken.
    """

    def __init__(self, transport: asyncio.Transport, limit_s: float) -> None:
        self._transport = transport
        self._limit_s = limit_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch, where the connection is not closed at once. May be called again."""
        is_tls = self._transport.get_extra_info("ssl_object") is not None
        if self._timer is None and (is_tls or self._transport.get_write_buffer_size()):
            self._wait((self._untaken(), self._acknowledged()), 0.0)

    def stop(self) -> None:
        """The connection is closed."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, seen: tuple[int, int], still_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(_CHECK_S, self._check, seen, still_s)

    def _check(self, seen_before: tuple[int, int], still_s: float) -> None:
        untaken = self._untaken()
        seen = (untaken, self._acknowledged())
        still_s = 0.0 if seen != seen_before else still_s + _CHECK_S
        if still_s >= (self._limit_s if untaken else _CHECK_S):
            self._transport.abort()
        else:
            self._wait(seen, still_s)

    def _untaken(self) -> int:
        """How much the peer has not taken, also of what the system keeps for it; 0 where all is gone.

        Over TLS some may be between the two, so only a number that stays the same tells something.
        """
        descriptor = self._transport.get_extra_info("socket").fileno()
        if descriptor < 0:
            return 0
        (queued,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
        return int(queued) + self._transport.get_write_buffer_size()

    def _acknowledged(self) -> int:
        """How much the peer's system has ever taken; 0 where this one does not tell.

        A queue that is filled up again as fast as it empties has always the same length.
        """
        sock = self._transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO"):
            return 0
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        except OSError:  # closed
            return 0
        return int(_BYTES_ACKED.unpack(info)[0]) if len(info) == _BYTES_ACKED.size else 0


class Drain(asyncio.Protocol):
    """Throws input away until the peer hangs up, or has had enough."""

    def __init__(self, transport: asyncio.Transport, when_lost: Callable[[Exception | None], None]) -> None:
        self._transport = transport
        self._when_lost = when_lost
        self._left_bytes = _LINGER_BYTES
        self._timer = asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)
        transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Count."""
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self._transport.abort()

    def pause_writing(self) -> None:
        """Nothing more is written."""

    def resume_writing(self) -> None:
        """Nothing more is written."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Both sides have hung up."""
        self._timer.cancel()
        self._when_lost(exc)
