"""Which connections have lost their peer: a machine that is gone, or a network that loses everything.

HTTP/1.1 has no ping, and a server that only writes learns of nothing before the kernel gives up on unacknowledged data,
after a quarter of an hour. So the kernel is asked (tcp(7), TCP_INFO): it retransmits what was written and probes
silent connections, and it knows whether anything of that was ever answered. A peer that only reads slowly answers.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import weakref
from collections.abc import Iterable

from quill.limits import Limits

_PROBES = 3
_UNANSWERED = slice(2, 4)
"""``tcpi_retransmits`` and ``tcpi_probes`` of Linux's struct tcp_info: what was sent again since the last answer."""
_LAST_ACK_RECV = struct.Struct("=56xI")
"""``tcpi_last_ack_recv``, in milliseconds."""


def probe_silence(listener: socket.socket, limits: Limits) -> None:
    """Have the kernel probe what this socket accepts when it has been silent; accepted sockets inherit it."""
    if listener.family == socket.AF_UNIX:
        return
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", math.ceil(limits.keepalive_interval_s)),
        ("TCP_KEEPINTVL", math.ceil(limits.keepalive_timeout_s / _PROBES)),
        ("TCP_KEEPCNT", _PROBES),
    ):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class DeadPeers:
    """Finds dead connections among those that it is shown again and again.

    Where the system has no TCP_INFO, and for Unix sockets, whose peers cannot vanish, it finds none.

    Args:
        timeout_s: How long a peer may answer nothing while something is unanswered.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._unanswered_since: weakref.WeakKeyDictionary[asyncio.Transport, float] = weakref.WeakKeyDictionary()

    def among(self, transports: Iterable[asyncio.Transport], now_s: float) -> list[asyncio.Transport]:
        """Those whose peer is dead. Asking costs the kernel a microsecond each."""
        return [transport for transport in transports if self._is_dead(transport, now_s)]

    def _is_dead(self, transport: asyncio.Transport, now_s: float) -> bool:
        sock = transport.get_extra_info("socket")
        if sock is None or sock.family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO"):
            return False
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK_RECV.size)
        except OSError:  # closed
            return False
        if len(info) < _LAST_ACK_RECV.size or not any(info[_UNANSWERED]):
            self._unanswered_since.pop(transport, None)
            return False
        silent_s = _LAST_ACK_RECV.unpack(info)[0] / 1000
        # A connection that was silent for long, because nothing was said, has just begun to be without an answer.
        silent_s = min(silent_s, now_s - self._unanswered_since.setdefault(transport, now_s))
        return bool(silent_s >= self._timeout_s)
