"""Raw TCP: sixteen bytes that say what follows, then the elements, from and into warm buffers.

usage: python tcp.py serve | python tcp.py drive ADDRESS
"""

from __future__ import annotations

import socket
import struct
import sys
import threading

import numpy as np
from work import ITEM_BYTES, Array, Receipt, announce, drive, tensor

_HEAD = struct.Struct("<qq")
"""Whether it is a put, and how many bytes."""
_RECEIPT = struct.Struct("<qqq")
_buffers: dict[int, Array] = {}


def _receive(connection: socket.socket, size_bytes: int) -> Array:
    array = _buffers.get(size_bytes)
    if array is None:
        array = _buffers[size_bytes] = np.zeros(size_bytes // ITEM_BYTES, np.float32)
    view, done = array.data.cast("B"), 0
    while done < size_bytes:
        count = connection.recv_into(view[done:])
        if not count:
            raise EOFError(f"the connection ended after {done} of {size_bytes} bytes")
        done += count
    return array


def serve() -> None:
    """One connection at a time, until standard input ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        announce("{}:{}".format(*listener.getsockname()))
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        sys.stdin.read()


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while head := connection.recv(_HEAD.size, socket.MSG_WAITALL):
                is_put, size_bytes = _HEAD.unpack(head)
                if is_put:
                    connection.sendall(_RECEIPT.pack(*Receipt.of(_receive(connection, size_bytes)).values()))
                else:
                    connection.sendall(tensor(size_bytes).data.cast("B"))


class TcpDriver:
    """One connection."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._connection = socket.create_connection((host, int(port)))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, array: Array, variant: str) -> Receipt:
        """Send head and elements."""
        self._connection.sendmsg([_HEAD.pack(1, array.nbytes)])
        self._connection.sendall(array.data.cast("B"))
        return Receipt(*_RECEIPT.unpack(self._connection.recv(_RECEIPT.size, socket.MSG_WAITALL)))

    def get(self, size_bytes: int, variant: str) -> list[Array]:
        """Ask, and receive into a warm buffer."""
        self._connection.sendall(_HEAD.pack(0, size_bytes))
        return [_receive(self._connection, size_bytes)]


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else drive(TcpDriver)
