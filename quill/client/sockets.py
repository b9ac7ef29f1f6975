"""Blocking sockets: every wait ends at the deadline of its call, or at once when the call is cancelled.

A socket here does not block itself. What blocks is one poll, for no longer than the Patience of the call allows, which
is asked anew each time. So a deadline is exact however the bytes trickle, no thread watches over it, and signals
interrupt it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import select
import socket
import ssl
import threading
from typing import Any

from quill.client import faults
from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.peer import Peer
from quill.client.tls import ClientTls, names_in, tls_context
from quill.client.tuning import ADDRESS_PATIENCE_S, tune
from quill.errors import QuillError, RpcError

_READ_BYTES = 64 * 1024
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
        self.has_sent = False
        """Whether anything of the request was written."""

    def enter(self, sock: socket.socket) -> float | None:
        """Prepare to use a socket. Returns for how many seconds the call may wait for it.

        Raises:
            DeadlineExceeded: The time is up.
            Cancelled: The call was cancelled.
        """
        if self._socket is not sock:
            with self._lock:
                self._socket = sock
        self.check()
        remaining = self._clock.remaining_s()
        if remaining is not None and remaining <= 0:
            raise self._clock.expired()
        return remaining

    def wait(self, sock: socket.socket, events: int) -> int:
        """Wait until a socket can do one of these (``select.poll``). Returns what it can do.

        Raises:
            DeadlineExceeded: The time is up.
            Cancelled: The call was cancelled.
            OSError: The socket is closed.
        """
        remaining = self.enter(sock)
        found = _poll(sock, events, None if remaining is None else math.ceil(remaining * 1000))
        self.check()
        if not found:
            raise self._clock.expired()
        return found

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
        """End the call's waits, from any thread: one that lasts ends at once."""
        with self._lock:
            self._cancelled = True
            sock = self._socket
        if sock is not None:
            _end(sock)

    def judge(self, error: RpcError) -> RpcError:
        """The same error of the connection, marked where nothing of the request was written."""
        return error if self.has_sent else faults.not_sent(error)

    def leave(self) -> None:
        """The call is done with its socket, which may serve another call now."""
        with self._lock:
            self._socket = None


class PatientSocket:
    """A connected socket, with or without TLS.

    Args:
        sock: Belongs to this object now.
        peer: The server at its other end.
    """

    def __init__(self, sock: socket.socket, peer: Peer) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._peer = peer
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        self._room = select.POLLOUT
        """What to wait for before more can be sent."""
        self._awaits = 0 if self._is_tls else select.POLLIN
        """What to wait for before more can be read; 0 where there may be more already."""
        self._is_waited_for = False
        self._has_ended = False

    def send(self, data: memoryview, patience: Patience) -> int:
        """Send what goes at once. Returns how much that was; what is left must be offered again as it is.

        Raises:
            RpcError: The call may not go on.
            OSError: The peer takes nothing any more; what it has said can still be read.
        """
        patience.enter(self._socket)
        try:
            sent = self._socket.send(data)
        except ssl.SSLWantReadError:
            self._room = select.POLLIN
            return 0
        except (BlockingIOError, ssl.SSLWantWriteError) as error:
            self._room = select.POLLOUT
            patience.has_sent |= isinstance(error, ssl.SSLError)  # TLS may have sent the beginning
            return 0
        patience.has_sent = True
        return sent

    def receive(self, patience: Patience, *, or_room: bool = False) -> bytes | None:
        """What comes next, or none at the end; None where something can be sent first, and that is asked for.

        Raises:
            RpcError: The connection is lost, or the call may not go on.
        """
        room = self._room if or_room else 0
        try:
            while True:
                if not self._awaits:
                    patience.enter(self._socket)
                elif self._wait(self._awaits | room, patience) & room:
                    return None
                if (data := self._read()) is not None:
                    break
        except QuillError:  # a deadline is an OSError too
            raise
        except OSError as error:
            patience.check()
            raise patience.judge(self._lost(error)) from None
        if not data:
            patience.check()
        self._peer.answered |= bool(data)
        return data

    def receive_now(self) -> bytes | None:
        """What has come; None where nothing has, no bytes at the end.

        Raises:
            OSError: The connection is lost.
        """
        return self._read()

    def close(self) -> None:
        """Close the socket, without a word to the peer: a forked process may still use the connection.

        While a thread waits for it only that thread may; see ``end``.
        """
        self._socket.close()

    def end(self) -> None:
        """Close the connection, from any thread.

        One that waits for the socket is woken and closes it. A poll that was woken looks at the number of its socket
        again, which by then could be that of another one.
        """
        self._has_ended = True
        if not self._is_waited_for:
            self._socket.close()
            return
        _end(self._socket)

    def _wait(self, events: int, patience: Patience) -> int:
        # Whoever ends the connection says so first and looks for those who wait then; here it is the other way around.
        self._is_waited_for = True
        try:
            if self._has_ended:
                raise ConnectionAbortedError
            return patience.wait(self._socket, events)
        finally:
            self._is_waited_for = False
            if self._has_ended:
                self._socket.close()

    def _read(self) -> bytes | None:
        """What has come; None where nothing has."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            self._awaits = select.POLLIN
            return None
        except ssl.SSLWantWriteError:
            self._awaits = select.POLLOUT
            return None
        # TLS may hold more, of which the kernel knows nothing.
        is_all = len(data) < _READ_BYTES and not self._is_tls
        self._awaits = select.POLLIN if is_all else 0
        return data

    def _lost(self, error: OSError) -> RpcError:
        """What the end of the connection means. In TLS 1.3 a client's certificate is judged after the handshake."""
        if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            return self._peer.insecure(error)
        return self._peer.lost()


def connect(peer: Peer, patience: Patience) -> tuple[PatientSocket, str | None]:
    """A connection to a server, over TLS where it speaks that, and the protocol that was agreed on (ALPN).

    Raises:
        RpcError: There is none; marked by ``faults.not_sent`` where another try may bring one.
        InvalidUsage: The certificates cannot be used.
    """
    context = peer.context()
    sock = _reach(peer, patience)
    if context is None:
        return PatientSocket(sock, peer), None
    family, target = sock.family, None
    try:
        target = sock.getpeername()
        secured = _shake_hands(sock, context, peer.address.host, patience)
    except OSError as error:
        sock.close()
        patience.check(error)
        names = _names(peer, family, target, patience) if getattr(error, "verify_code", 0) in _MISNAMED else ()
        raise faults.insecure(peer.address, error, peer.tls, names) from None
    return PatientSocket(secured, peer), secured.selected_alpn_protocol()


def _reach(peer: Peer, patience: Patience) -> socket.socket:
    """A socket that is connected to the first of the server's addresses that takes a connection."""
    failure: OSError | None = None
    try:
        targets = _targets(peer.address, patience)
    except QuillError:  # some are an OSError, too
        raise
    except OSError as error:
        raise faults.unreachable_errno(peer.address, error) from None
    for number, (family, target) in enumerate(targets, 1):
        try:
            return _connect(family, target, patience, None if number == len(targets) else ADDRESS_PATIENCE_S)
        except OSError as error:
            patience.check(error)
            failure = failure or error
    raise faults.unreachable_errno(peer.address, failure or OSError()) from None


def _targets(address: Address, patience: Patience) -> list[tuple[int, Any]]:
    """The addresses of a server. Only a name has to be waited for.

    Raises:
        OSError: The name has none.
    """
    if address.unix_path is not None:
        return [(socket.AF_UNIX, address.unix_path)]
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return _look_up(address, patience)
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [(family, target) for family, _, _, _, target in found]


def _look_up(address: Address, patience: Patience) -> list[tuple[int, Any]]:
    """The addresses of a name, from a thread: nothing else could end the wait for a resolver that does not answer."""
    found: list[tuple[int, Any]] = []
    failures: list[OSError] = []
    here, there = socket.socketpair()

    def resolve() -> None:
        with there:  # its end wakes the call
            try:
                for family, _, _, _, target in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
                    found.append((family, target))
            except OSError as error:
                failures.append(error)

    with here:
        threading.Thread(target=resolve, name="quill name lookup", daemon=True).start()
        patience.wait(here, select.POLLIN)
    if failures:
        raise failures[0]
    return found


def _connect(family: int, target: Any, patience: Patience, limit_s: float | None = None) -> socket.socket:
    """A connected socket, for which the call waits ``limit_s`` at most."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        remaining_s = patience.enter(sock)
        is_limited = limit_s is not None and (remaining_s is None or limit_s < remaining_s)
        sock.settimeout(limit_s if is_limited else remaining_s)
        try:
            sock.connect(target)
        except TimeoutError as error:
            if is_limited and error.errno is None:  # the call has time for the next address
                raise TimeoutError(errno.ETIMEDOUT, "no answer") from None
            raise
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
        secured.settimeout(patience.enter(secured))
        secured.do_handshake()
    except BaseException:
        secured.close()
        raise
    return secured


def _names(peer: Peer, family: int, target: Any, patience: Patience) -> tuple[str, ...]:
    """The names of the server's certificate, from a second connection: for the words of an error.

    The ssl module shows only a certificate that was accepted. This one is trusted, and not for the name that was
    asked for, so that no certificate of the client is shown to it, and nothing is sent.
    """
    context = tls_context(None if peer.tls is None else ClientTls(ca=peer.tls.ca))
    context.check_hostname = False
    try:
        with _shake_hands(_connect(family, target, patience), context, None, patience) as secured:
            return names_in(secured.getpeercert() or {})
    except (OSError, QuillError):
        return ()


def _end(sock: socket.socket) -> None:
    """End a connection, so that a thread that waits for it is woken."""
    with contextlib.suppress(OSError):  # closed already
        # Not SSLSocket.shutdown, which drops the TLS state under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _poll(sock: socket.socket, events: int, timeout_ms: int | None) -> int:
    descriptor = sock.fileno()
    if descriptor < 0:  # another thread has closed it
        raise ConnectionAbortedError
    poll = select.poll()
    poll.register(descriptor, events)
    found = poll.poll(timeout_ms)
    return found[0][1] if found else 0
