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
from quill.client.peer import Peer
from quill.client.tls import ClientTls, names_in, tls_context
from quill.client.tuning import tune
from quill.errors import QuillError, RpcError, Unavailable

_MISNAMED = {62, 64}
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


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
        self._has_sent = False

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

    def note_sent(self) -> None:
        """Something of the request was written."""
        self._has_sent = True

    def judge(self, error: RpcError) -> RpcError:
        """The same error of the connection, marked where nothing of the request was written."""
        return error if self._has_sent else faults.not_sent(error)

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

    def __init__(self, sock: socket.socket, peer: Peer) -> None:
        self._socket = sock
        self._peer = peer
        self._address = peer.address

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes, or none at the end; ``timeout`` is a Patience."""
        patience = _patience(timeout)
        patience.enter(self._socket)
        try:
            data = self._socket.recv(max_bytes)
        except OSError as error:
            patience.check(error)
            raise patience.judge(self._lost(error)) from None
        if not data:
            patience.check()
        self._peer.answered |= bool(data)
        return data

    def _lost(self, error: OSError) -> Unavailable:
        """What the end of the connection means. In TLS 1.3 a client's certificate is judged after the handshake."""
        if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            return faults.insecure(self._address, error, self._peer.tls)
        return self._peer.lost()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of the bytes; ``timeout`` is a Patience."""
        patience = _patience(timeout)
        rest = memoryview(buffer)
        while rest:
            patience.enter(self._socket)
            try:
                rest = rest[self._socket.send(rest) :]
                patience.note_sent()
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
        """The same connection under TLS, with the certificates of the moment; ``timeout`` is a Patience."""
        patience = _patience(timeout)
        context = self._peer.context() or ssl_context
        family = self._socket.family
        target: Any = None
        try:
            target = self._socket.getpeername()
            return PatientStream(_shake_hands(self._socket, context, server_hostname, patience), self._peer)
        except OSError as error:
            self._socket.close()
            patience.check(error)
            names = self._names(family, target, patience) if getattr(error, "verify_code", 0) in _MISNAMED else ()
            raise faults.insecure(self._address, error, self._peer.tls, names) from None

    def _names(self, family: int, target: Any, patience: Patience) -> tuple[str, ...]:
        """The names of the server's certificate, from a second connection: for the words of an error.

        The ssl module shows only a certificate that was accepted. This one is trusted, and not for the name that was
        asked for; nothing is sent.
        """
        context = tls_context(self._peer.tls)
        context.check_hostname = False
        try:
            sock = _connect(family, target, patience)
            with _shake_hands(sock, context, None, patience) as secured:
                return names_in(secured.getpeercert() or {})
        except (OSError, QuillError):
            return ()

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
        tls: Whom to trust and what to show over TLS.
        http2: Ask for HTTP/2 over TLS, else for HTTP/1.1.

    Raises:
        InvalidUsage: The certificates cannot be used.
    """

    def __init__(self, address: Address, tls: ClientTls | None = None, *, http2: bool = False) -> None:
        self._address = address
        self.peer = Peer.of(address, tls, ["h2" if http2 else "http/1.1"])

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
                    return PatientStream(_connect(family, target, patience), self.peer)
                except OSError as error:
                    patience.check(error)
                    failure = failure or error
        except socket.gaierror as error:
            failure = error
        raise faults.unreachable_errno(self._address, failure or OSError())

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        """A connection to a Unix socket; ``timeout`` is a Patience."""
        patience = _patience(timeout)
        try:
            return PatientStream(_connect(socket.AF_UNIX, path, patience), self.peer)
        except OSError as error:
            patience.check(error)
            raise faults.unreachable_errno(self._address, error) from None


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


def _shake_hands(
    sock: socket.socket, context: ssl.SSLContext, server_hostname: str | None, patience: Patience
) -> ssl.SSLSocket:
    """The socket under TLS; closed where that fails."""
    secured = context.wrap_socket(sock, server_hostname=server_hostname, do_handshake_on_connect=False)
    try:
        patience.enter(secured)
        secured.do_handshake()
    except BaseException:
        secured.close()
        raise
    return secured


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
