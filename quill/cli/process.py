"""What the process of a server does: it ends on a signal, and has descriptors for its connections."""

from __future__ import annotations

import asyncio
import contextlib
import signal


def signalled() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second signal has its default effect."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        event.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return event


def allow_descriptors(wanted: int) -> None:
    """Let this process have so many file descriptors, one for each connection, or as many as the system allows.

    The usual soft limit of 1024 is for programs that call select(), as this one does not.
    """
    try:
        import resource
    except ImportError:  # no Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
