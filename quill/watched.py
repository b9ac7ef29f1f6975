"""Values made of files, made anew when the files change: certificates, keys."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from quill.errors import InvalidUsage

_INTERVAL_S = 1.0
"""How often the files are looked at, at most."""

T = TypeVar("T")
_Signature: TypeAlias = tuple[tuple[int, ...] | None, ...]


class Watched(Generic[T]):
    """The value of some files as they are now, a second ago at most.

    Files that cannot be used keep the value that was there before, and are reported once, in one line of the log.
    May be asked from any thread.

    Args:
        paths: The files; a symbolic link stands for what it leads to.
        load: Makes the value; raises InvalidUsage where the files are wrong, without a word of their content.
        log: Where it is told what became of new files.

    Raises:
        InvalidUsage: The files are wrong at the beginning.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], T], log: logging.Logger) -> None:
        self._paths = tuple(paths)
        self._load = load
        self._log = log
        self._lock = threading.Lock()
        self._signature = self._look()
        self._looked_s = time.monotonic()
        self._value = load()

    def get(self) -> T:
        """The value."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._looked_s < _INTERVAL_S:
                return self._value
            self._looked_s = now_s
            # Looked at before they are read: what changes meanwhile is seen the next time.
            signature = self._look()
            if signature != self._signature:
                self._signature = signature
                self._reload()
            return self._value

    def _reload(self) -> None:
        try:
            self._value = self._load()
        except InvalidUsage as error:
            self._log.error("%s; what was loaded before stays in use", error)
        else:
            self._log.info("loaded %s anew", ", ".join(map(str, self._paths)))

    def _look(self) -> _Signature:
        return tuple(map(_signature, self._paths))


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
