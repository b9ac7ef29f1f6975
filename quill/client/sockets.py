"""Blocking sockets under httpcore: every wait ends at the deadline of its call, or at once when the call is cancelled.

httpcore hands the timeout of a request through to its network stream as it is. Here that "timeout" is the Patience
of the call, which is asked anew before every system call. So a deadline is exact however the bytes trickle, and no
thread watches over it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterable
from typing import Any, cast

import httpcore

from quill.client import faults
from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.tuning import tune


class Patience:
    """How long one call waits for its socket.

    Args:
        clock: The call's clock.
    """

    def __init__(self, clock: CallClock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._cancelled = False

    def enter(self, sock: socket.socket) -> None:
        """Prepare to block on a socket.

        Raises:
            DeadlineExceeded: The time is up.
            Cancelled: The call was cancelled.
        """
        with self._lock:
            self._socket = sock
        self.check()
        sock.settimeout(self._remaining_s())

    def check(self, error: OSError | None = None) -> None:
        """Find out whether a system call failed, or came back empty, for a reason of the call itself.

        Raises:
            DeadlineExceeded: The time is up.
            Cancelled: The call was cancelled.
        """
        if self._cancelled:
            raise faults.closed_while_running() from None
        # ETIMEDOUT, which Python makes a TimeoutError too, is the network's own: the peer is gone.
        if isinstance(error, TimeoutError) and error.errno is None:
            raise self._clock.expired() from None

    def cancel(self) -> None:
        """End the call's waits, from any thread: a blocked system call returns at once."""
        with self._lock:
            self._cancelled = True
            sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):  # closed already
                # Not SSLSocket.shutdown, which drops the TLS state under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def leave(self) -> None:
        """The call is done with its socket, which may serve another call now."""
        with self._lock:
            self._socket = None

    def _remaining_s(self) -> float | None:
        remaining = self._clock.remaining_s()
        if remaining is not None and remaining <= 0:
            raise self._clock.expired()
        return remaining


class PatientStream(httpcore.NetworkStream):
    """A connected socket."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self._socket = sock
        self._address = address

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes, or none at the end; ``timeout`` is a Patience."""
        patience = _patience(timeout)
        patience.enter(self._socket)
        try:
            data = self._socket.recv(max_bytes)
        except OSError as error:
            patience.check(error)
            raise faults.lost(self._address) from None
        if not data:
            patience.check()
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of the bytes; ``timeout`` is a Patience."""
        patience = _patience(timeout)
        rest = memoryview(buffer)
        while rest:
            patience.enter(self._socket)
            try:
                rest = rest[self._socket.send(rest) :]
            except OSError as error:
                patience.check(error)
                # httpcore then reads: a server may answer and hang up before it has taken the whole request.
                raise httpcore.WriteError from None

    def close(self) -> None:
        """Close the socket, without a word to the peer: a forked process may still use the connection."""
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same connection under TLS; ``timeout`` is a Patience."""
        patience = _patience(timeout)
        secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname, do_handshake_on_connect=False)
        try:
            patience.enter(secured)
            secured.do_handshake()
        except ssl.SSLCertVerificationError:
            secured.close()
            raise faults.unreachable(self._address, faults.UNTRUSTED) from None
        except OSError as error:
            secured.close()
            patience.check(error)
            raise faults.unreachable(self._address, faults.TLS_FAILED) from None
        except BaseException:
            secured.close()
            raise
        return PatientStream(secured, self._address)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks of a stream."""
        match info:
            case "is_readable":
                return _is_readable(self._socket)
            case "ssl_object":
                return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        return None


class PatientBackend(httpcore.NetworkBackend):
    """Makes the connections to one server.

    Args:
        address: The server, for the texts of errors.
    """

    def __init__(self, address: Address) -> None:
        self._address = address

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first of the host's addresses that takes one; ``timeout`` is a Patience."""
        patience = _patience(timeout)
        failure: OSError | None = None
        try:
            for family, _, _, _, target in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                try:
                    return PatientStream(_connect(family, target, patience), self._address)
                except OSError as error:
                    patience.check(error)
                    failure = failure or error
        except socket.gaierror as error:
            failure = error
        raise faults.unreachable_errno(self._address, failure or OSError())


def _connect(family: int, target: Any, patience: Patience) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        patience.enter(sock)
        sock.connect(target)
        tune(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _patience(timeout: object) -> Patience:
    """The Patience that stands in for a timeout."""
    return cast("Patience", timeout)


def _is_readable(sock: socket.socket) -> bool:
    """Whether an idle connection has something to read, which can only be its end."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
