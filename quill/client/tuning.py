"""How every socket of a client is made and set up."""

from __future__ import annotations

import socket

ADDRESS_PATIENCE_S = 3.0
"""How long one of several addresses may take before the next is tried."""

_KEEPALIVE_IDLE_S = 30
"""After this much silence the kernel asks whether the peer is still there."""
_KEEPALIVE_PROBES = 3
_KEEPALIVE_GAP_S = 3
"""Between two probes: the last one has as long for its answer."""


def tune(sock: socket.socket) -> None:
    """Send at once, and notice a peer that is gone."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_GAP_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
