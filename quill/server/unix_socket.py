"""Unix sockets: ``unix:PATH``, as gRPC writes their addresses, and the files that they leave behind."""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from pathlib import Path

from quill.errors import InvalidUsage

_SCHEME = "unix:"
_ALIVE = (0, errno.EAGAIN, errno.EINPROGRESS)
"""What a connect says where somebody listens, with room for one more or without."""


def path_of(address: str) -> Path | None:
    """The path of ``unix:PATH`` or ``unix:///PATH``; None for an address of another kind."""
    if not address.startswith(_SCHEME):
        return None
    path = address.removeprefix(_SCHEME)
    return Path(path.removeprefix("//") if path.startswith("///") else path)


def clear(path: Path) -> None:
    """Remove the socket file that a server left behind which was killed.

    Raises:
        InvalidUsage: Somebody listens on it, or the file is no socket.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # no file, or none that can be looked at: listening will say what is wrong
    if not stat.S_ISSOCK(mode):
        raise InvalidUsage(f"cannot listen on 'unix:{path}': there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(str(path)) in _ALIVE:
            raise InvalidUsage(f"cannot listen on 'unix:{path}': the socket is in use")
    path.unlink(missing_ok=True)


def listen(path: Path, backlog: int) -> socket.socket:
    """A listening socket. Who may connect, the permissions of its directory say.

    Raises:
        InvalidUsage: The path cannot be listened on.
    """
    clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise InvalidUsage(f"cannot listen on 'unix:{path}': {error.strerror or error}") from None
    return listener


class SocketFile:
    """The file of a socket that listens; it is removed unless another server has put its own in its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Remove the file."""
        if self._identity is not None and _identity(self._path) == self._identity:
            with contextlib.suppress(OSError):
                self._path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
