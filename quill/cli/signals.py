"""What a server's process does when it is told to stop."""

from __future__ import annotations

import asyncio
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
