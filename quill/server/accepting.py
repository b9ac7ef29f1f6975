"""Connections, taken from a listening socket as they come.

asyncio's own server does the same until the process has no file descriptors left: from then on it logs a traceback for
every place in its backlog, thousands of them a second (CPython 3.11, ``_accept_connection``).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

_log = logging.getLogger("quill.server")

_MAX_AT_ONCE = 256
"""Connections that are taken before the event loop has its turn."""
_PAUSE_S = 1.0
_SHUTDOWN_S = 86_400.0
"""How long TLS may take to end, and all that was written before to leave: longer than any. asyncio would cut a reply
off there; the protocol knows whether its peer still reads."""


class Acceptor:
    """Gives each connection of a listening socket a protocol of its own, in the running loop.

    While the system has no descriptors or memory for more, connections wait in the socket's backlog; it is asked
    again every second. The log says so once, until a connection is taken again.

    Args:
        listener: Bound, listening and not blocking. Owned from here on.
        protocol: Makes the protocol of a connection.
        tls: Secures each connection before its protocol sees it; None for clear text.
        handshake_timeout_s: How long that may take.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        *,
        tls: ssl.SSLContext | None,
        handshake_timeout_s: float,
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._timeouts_s = (
            {}
            if tls is None
            else {
                "ssl_handshake_timeout": handshake_timeout_s,
                "ssl_shutdown_timeout": _SHUTDOWN_S,
            }
        )
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._out_of_room = False
        self._beginning: set[asyncio.Task[object]] = set()

    def start(self) -> None:
        """Accept connections, until closed."""
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept no more, and close the listener. May be called again."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for task in self._beginning:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_MAX_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._wait_for_room(error)
                return
            self._out_of_room = False
            connection.setblocking(False)
            task: asyncio.Task[object] = self._loop.create_task(
                self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls, **self._timeouts_s)
            )
            self._beginning.add(task)
            task.add_done_callback(self._begun)

    def _begun(self, task: asyncio.Task[object]) -> None:
        self._beginning.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("a connection did not begin: %s", type(error).__name__)

    def _wait_for_room(self, error: OSError) -> None:
        if not self._out_of_room:
            _log.warning("connections have to wait: %s", error.strerror)
        self._out_of_room = True
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(_PAUSE_S, self.start)
