"""The connections that this process accepted at an address, from the kernel: for hosts that do not show theirs.

Linux lists the descriptors of a process (proc(5)); elsewhere none is found.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_DESCRIPTORS = Path("/proc/self/fd")
_PREFACE_BYTES = 24
"""Of HTTP/2 (RFC 9113, section 3.4); a request of HTTP/1.1 with its Host has more."""
_TCP_INFO = struct.Struct("=52xI72xQ")
"""``tcpi_last_data_recv``, in milliseconds, and ``tcpi_bytes_received`` of Linux's struct tcp_info."""


def accepted_at(address: Any) -> Iterator[socket.socket]:
    """The connections whose own end is at the address of a listener, as a socket each, which is closed behind it.

    A descriptor may be somebody else's by the time it is duplicated, so the duplicate itself is asked what it is.
    Descriptors of files are left alone: to close any of them would give up the locks of the process.
    """
    for name in _names():
        with contextlib.suppress(OSError):
            if not str((_DESCRIPTORS / name).readlink()).startswith("socket:"):
                continue
            descriptor = os.dup(int(name))
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                continue
            with socket.socket(fileno=descriptor) as duplicate:
                if _is_at(duplicate.getsockname(), address) and duplicate.getpeername() is not None:
                    yield duplicate


def unbegun(connections: Iterable[socket.socket], timeout_s: float) -> Iterator[socket.socket]:
    """Those of TCP on which fewer bytes have come than any protocol begins with, and none for so long."""
    for connection in connections:
        if connection.family == socket.AF_UNIX:
            continue
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        if len(info) == _TCP_INFO.size:
            silent_ms, received_bytes = _TCP_INFO.unpack(info)
            if received_bytes < _PREFACE_BYTES and silent_ms >= timeout_s * 1000:
                yield connection


def _names() -> list[str]:
    try:
        return os.listdir(_DESCRIPTORS)  # noqa: PTH208 - names of descriptors, not of files
    except OSError:
        return []


def _is_at(name: Any, address: Any) -> bool:
    """Whether a connection's own end is at the address of a listener."""
    if isinstance(address, str):
        return bool(name == address)
    return isinstance(name, tuple) and name[1] == address[1] and address[0] in (name[0], "0.0.0.0", "::")  # noqa: S104
