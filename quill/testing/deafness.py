"""Sockets that hear nothing: the kernel drops every segment before TCP sees it (socket(7), SO_ATTACH_FILTER).

So nothing is acknowledged, as when the machine at the other end has lost its power. Linux only; needs no privilege.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

from quill.errors import InvalidUsage

_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_NO_FILTER = struct.pack("i", 0)
_RETURN_NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""One instruction of classic BPF: keep 0 bytes of the packet."""


def check_possible() -> None:
    """Whether this system can do it.

    Raises:
        InvalidUsage: It cannot.
    """
    if sys.platform != "linux":
        raise InvalidUsage(f"deaf needs Linux, this is {sys.platform}; black_hole works everywhere")


def set_deaf(sock: socket.socket, *, deaf: bool) -> None:
    """Drop all that comes for a socket from now on, or no more. A Unix socket has no segments to drop."""
    if sock.fileno() < 0 or sock.family == socket.AF_UNIX:
        return
    if deaf:
        program = ctypes.create_string_buffer(_RETURN_NOTHING)
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))
    else:
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, _NO_FILTER)
