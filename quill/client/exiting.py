"""The end of the process, for libraries whose own threads call into Python.

A pyqwest thread hands a result to the event loop by Python code that writes to a socket. If the interpreter is
finalized while that thread waits to get the GIL back, CPython ends the thread by force (until 3.13), which a Rust
thread does not survive: the whole process aborts after all its work was done, about once in a hundred short programs.
"""

from __future__ import annotations

import atexit
import functools
import sys
import threading
import time

_TIMEOUT_S = 1.0


@functools.cache
def let_threads_leave_python() -> None:
    """From now on, wait at exit until no foreign thread is inside Python code. Once is enough for the process."""
    atexit.register(_wait)


def _wait() -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        # Releases the GIL, which is what such a thread waits for; the first turn lets one come in that is on its way.
        time.sleep(0.001)
        if not _foreign_threads():
            return


def _foreign_threads() -> set[int]:
    """Threads that run Python code and were not started by Python."""
    known = {thread.ident for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}  # noqa: SLF001 - the type of foreign threads
    return sys._current_frames().keys() - known  # noqa: SLF001 - the documented way to see other threads
