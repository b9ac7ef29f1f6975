"""Memory that two processes of one user share: a file in /dev/shm that both map and that has lost its name by then.

One side creates a region, the other attaches to it by its name, and takes the name away. From then on the memory is
there for as long as either maps it. Each side holds a lock on a byte of the file, which the system lets go when its
process ends, however it ends; so each can ask whether the other is there. A name that is left because its creator died
first says whose it was: ``remove_left`` takes it away.

Linux only; elsewhere, and where /dev/shm cannot hold a region, there is none. Not multiprocessing.shared_memory, whose
resource tracker takes regions away from under other processes, and which does not allocate what it promises.

Source: fcntl_locking(2) on open file description locks, tmpfs(5), proc(5) on field 22 of /proc/PID/stat.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import re
import secrets
import stat
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from quill.errors import InvalidUsage, ResourceExhausted

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FOLDER = Path("/dev/shm")  # noqa: S108 - the memory of POSIX; names in it are random, and files new or refused
_NAME = re.compile(r"quill-(?P<pid>[0-9]{1,10})-(?P<start>[0-9]{1,20})-[0-9a-f]{32}")

_CREATOR, _GUEST = 0, 1
"""The bytes of the file that the two sides lock."""
_LOCK = struct.Struct("hhqqi")
"""struct flock of Linux on 64 bits: type, whence, start, length, process."""

_FREED_AT_ONCE_BYTES = 4 * 1024 * 1024
"""What goes back to the system within a millisecond or two. A gigabyte takes half a second."""

_FREE_REFERENCES = 2
"""To an array that nobody else knows: the attribute's, and that of the question itself."""


class Region:
    """A region as one of its two sides sees it. Made by ``create`` and ``attach``."""

    def __init__(self, fd: int, name: str, size_bytes: int, side: int) -> None:
        import numpy as np

        self.name = name
        """Under which the other side finds it, until it has."""
        self.size_bytes = size_bytes
        self._fd = -1
        self._side = side
        self._pid = os.getpid()
        self._array: NDArray[Any] = np.frombuffer(mmap.mmap(fd, size_bytes), np.uint8)
        self._fd = fd

    @classmethod
    def create(cls, size_bytes: int) -> Self:
        """A new region, whose memory is there for sure.

        Raises:
            ResourceExhausted: /dev/shm cannot hold it, or there is none.
        """
        name = f"quill-{os.getpid()}-{_start_of(os.getpid())}-{secrets.token_hex(16)}"
        try:
            fd = os.open(_FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ResourceExhausted(f"no memory can be shared: {_FOLDER} says {error.strerror}") from None
        try:
            _lock(fd, _CREATOR)
            os.posix_fallocate(fd, 0, size_bytes)
            return cls(fd, name, size_bytes, _CREATOR)
        except BaseException as error:
            _unlink(name)
            os.close(fd)
            if isinstance(error, OSError):
                raise ResourceExhausted(
                    f"{size_bytes} bytes cannot be shared, {_FOLDER} has {_free_bytes()} free: {error.strerror}"
                ) from None
            raise

    @classmethod
    def attach(cls, name: str, size_bytes: int) -> Self:
        """The region that another process has created under this name, which is then gone.

        Args:
            name: As the other side told it.
            size_bytes: As the other side told it.

        Raises:
            InvalidUsage: It is no region, not this user's, of another size, or has another guest, nobody holds it any
                more, or this process has no room for it.
        """
        if not _NAME.fullmatch(name):
            raise InvalidUsage(f"{name[:100]!r} is no name of a region")
        try:
            fd = os.open(_FOLDER / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidUsage(f"region {name} cannot be opened: {error.strerror}") from None
        try:
            _check(os.fstat(fd), name, size_bytes)
            _enter(fd, name)
            _unlink(name)
            return cls(fd, name, size_bytes, _GUEST)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError):
                raise InvalidUsage(f"region {name} of {size_bytes} bytes cannot be mapped: {error.strerror}") from None
            raise

    @property
    def has_other(self) -> bool:
        """Whether the other side has the region: it is alive, and has not closed it."""
        return _is_locked(self._fd, 1 - self._side)

    @property
    def is_lent(self) -> bool:
        """Whether somebody still holds a view of it."""
        return sys.getrefcount(self._array) > _FREE_REFERENCES

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Bytes of the region, writable, of format B.

        Raises:
            InvalidUsage: They go past its end.
        """
        if offset + size_bytes > self.size_bytes:
            raise InvalidUsage(
                f"{size_bytes} bytes at {offset} end at {offset + size_bytes}, the region has {self.size_bytes}"
            )
        return memoryview(self._array)[offset : offset + size_bytes]  # type: ignore[arg-type]  # before Python 3.12

    def close(self) -> None:
        """Let go, on an event loop as well. The memory stays for as long as a view of it lives, here or there."""
        held = self._leave()
        if self.size_bytes > _FREED_AT_ONCE_BYTES and held:
            threading.Thread(target=held.clear, name="quill-lane-free", daemon=True).start()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> list[NDArray[Any]]:
        """Let go but for the mapping, which ends with what is returned."""
        if self._fd < 0:
            return []
        if self._pid == os.getpid():  # else name and lock are another's, in a process that was forked
            if self._side == _CREATOR:
                _unlink(self.name)
            _lock(self._fd, self._side, fcntl.F_UNLCK)  # the mapping has the file open for as long as it lives
        os.close(self._fd)
        self._fd = -1
        held = [self._array]
        del self._array
        return held


def neighbourhood() -> str:
    """What two processes have in common that can share memory: machine, /dev/shm and user; empty where none can.

    A hash, so that the other side is told nothing that it does not know.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        shown = _FOLDER.stat()
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {shown.st_dev} {shown.st_ino} {os.geteuid()}".encode()).hexdigest()


def remove_left() -> int:
    """Take away the names of regions of this user whose creators died before somebody attached; how many they were."""
    removed = 0
    try:
        names = [entry.name for entry in os.scandir(_FOLDER) if _NAME.fullmatch(entry.name)]
    except OSError:
        return 0
    for name in names:
        if _is_left(name):
            _unlink(name)
            removed += 1
    return removed


def _is_left(name: str) -> bool:
    """Whether the creator is dead by its name, and by its lock: its number may be from another namespace."""
    told = _NAME.fullmatch(name)
    if told is None or _start_of(int(told["pid"])) == told["start"]:
        return False
    try:
        fd = os.open(_FOLDER / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.fstat(fd).st_uid == os.geteuid() and not _is_locked(fd, _CREATOR)
    finally:
        os.close(fd)


def _check(shown: os.stat_result, name: str, size_bytes: int) -> None:
    if not stat.S_ISREG(shown.st_mode) or shown.st_uid != os.geteuid() or shown.st_mode & 0o077:
        raise InvalidUsage(
            f"region {name} is foreign: it belongs to user {shown.st_uid} with mode {stat.filemode(shown.st_mode)}, "
            f"and this is user {os.geteuid()}"
        )
    if shown.st_size != size_bytes or shown.st_blocks * 512 < size_bytes:
        raise InvalidUsage(f"region {name} has {shown.st_size} bytes, and {size_bytes} were told")


def _enter(fd: int, name: str) -> None:
    """Become the guest of a region."""
    if not _is_locked(fd, _CREATOR):
        raise InvalidUsage(f"region {name} is stale: its creator is gone")
    try:
        _lock(fd, _GUEST)
    except OSError:
        raise InvalidUsage(f"region {name} has a guest already") from None


def _start_of(pid: int) -> str:
    """When a process started, in ticks since the system did; empty where it is gone."""
    try:
        told = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    # Field 2 is the program's name in parentheses, and may hold anything.
    return told.rpartition(b")")[2].split()[19].decode("ascii")


def _lock(fd: int, byte: int, kind: int = fcntl.F_WRLCK) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def _is_locked(fd: int, byte: int) -> bool:
    """Whether another open file has locked this byte."""
    asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind: int = _LOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def _unlink(name: str) -> None:
    (_FOLDER / name).unlink(missing_ok=True)


def _free_bytes() -> int:
    shown = os.statvfs(_FOLDER)
    return shown.f_bavail * shown.f_frsize
