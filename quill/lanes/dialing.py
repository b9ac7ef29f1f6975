"""How both ends of a socket lane come to have it: the server listens, the client shows the token that a call gave it.

A greeting, the token, one byte as the answer; over TLS where the call had it, with the certificates of the call.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable

from quill.errors import InvalidUsage, Unavailable
from quill.lanes.socket import Connection

_GREETING = b"quill-lane 1\n"
_TOKEN_BYTES = 32
_WELCOME = b"\1"

HANDSHAKE_S = 5.0
"""How long names, connecting, TLS and the token may take together."""
_MAX_HANDSHAKES = 32
"""Connections at once that have not shown a token yet; more are closed."""

Taker = Callable[[Connection], None]
"""What is given the connection for which a token was made."""

MakeTls = Callable[[], ssl.SSLContext]
"""The TLS of the moment: certificates are renewed."""


class Listener:
    """Where clients connect to. It takes connections from its beginning until it is closed, in threads of its own.

    Args:
        host: The address of the gRPC port, without a port.
        tls: What connections are encrypted with; None for clear text.

    Raises:
        InvalidUsage: The address cannot be listened on.
    """

    def __init__(self, host: str, tls: MakeTls | None) -> None:
        try:
            family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            self._sock = socket.create_server((host, 0), family=family, backlog=_MAX_HANDSHAKES)
        except OSError as error:
            raise InvalidUsage(f"lanes cannot be listened for on {host}: {error.strerror}") from None
        self.port: int = self._sock.getsockname()[1]
        self._tls = tls
        self._awaited: dict[bytes, tuple[float, Taker]] = {}
        self._lock = threading.Lock()
        self._handshakes: set[socket.socket] = set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._accept, name="quill-lanes", daemon=True)
        self._thread.start()

    def token(self, taker: Taker) -> bytes:
        """A token for one connection, within the next seconds; ``taker`` is given that, in a thread."""
        token = secrets.token_bytes(_TOKEN_BYTES)
        with self._lock:
            # By its hash, so that the time that looking it up takes tells nothing of the token.
            self._awaited[_digest(token)] = (time.monotonic() + HANDSHAKE_S, taker)
        return token

    def close(self) -> None:
        """Take no more connections, and end those that have not shown their token."""
        with self._lock:
            self._is_closed = True
            self._awaited.clear()
            pending = list(self._handshakes)
        for sock in (self._sock, *pending):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._thread.join(HANDSHAKE_S)
        self._sock.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                if not self._is_closed:
                    time.sleep(0.05)  # no descriptors, or a connection that is gone already
                continue
            with self._lock:
                self._forget_late()
                welcome = self._awaited and len(self._handshakes) < _MAX_HANDSHAKES and not self._is_closed
                if welcome:
                    self._handshakes.add(sock)
            if welcome:
                threading.Thread(target=self._welcome, args=(sock,), name="quill-lane", daemon=True).start()
            else:
                sock.close()

    def _welcome(self, sock: socket.socket) -> None:
        """One handshake. A connection that shows no token that is awaited is closed without a word."""
        try:
            deadline_s = time.monotonic() + HANDSHAKE_S
            sock.settimeout(HANDSHAKE_S)
            if self._tls is not None:
                sock = self._encrypted(sock, self._tls())
                sock.do_handshake()
            shown = _read(sock, len(_GREETING) + _TOKEN_BYTES, deadline_s)
            taker = self._taker(shown.removeprefix(_GREETING))
            if taker is None:
                sock.close()
                return
            # Given first: once it is welcome, the client's call may be there at any moment.
            taker(Connection(sock))
            sock.sendall(_WELCOME)
        except OSError:
            sock.close()
        finally:
            with self._lock:
                self._handshakes.discard(sock)

    def _encrypted(self, sock: socket.socket, tls: ssl.SSLContext) -> ssl.SSLSocket:
        """What stands in the place of a connection from here on, before its handshake."""
        encrypted = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._handshakes.discard(sock)
            self._handshakes.add(encrypted)
            if self._is_closed:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(encrypted, socket.SHUT_RDWR)
        return encrypted

    def _taker(self, token: bytes) -> Taker | None:
        with self._lock:
            self._forget_late()
            _, taker = self._awaited.pop(_digest(token), (0.0, None))
        return taker

    def _forget_late(self) -> None:
        """Await no token any more whose time is over. The lock is held."""
        now_s = time.monotonic()
        for digest in [digest for digest, (until_s, _) in self._awaited.items() if until_s < now_s]:
            del self._awaited[digest]


def dial(host: str, port: int, token: bytes, tls: ssl.SSLContext | None, timeout_s: float) -> Connection:
    """The client's end.

    Args:
        host: Where the call went.
        port: As the server told.
        token: As the server told.
        tls: What the call was encrypted with; None where it was not.
        timeout_s: How long all of it may take.

    Raises:
        Unavailable: Nobody is there who takes the token, or it is none.
    """
    if len(token) != _TOKEN_BYTES:  # with a port and bytes of its choice a server could have us say anything to others
        raise Unavailable(f"no lane to {host}, port {port}: its token has {len(token)} bytes, must have {_TOKEN_BYTES}")
    sock: socket.socket | None = None
    try:
        deadline_s = time.monotonic() + min(timeout_s, HANDSHAKE_S)
        sock = socket.create_connection((host, port), timeout=_left_s(deadline_s))
        sock.settimeout(_left_s(deadline_s))
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=host)
        sock.sendall(_GREETING + token)
        _read(sock, len(_WELCOME), deadline_s)
        return Connection(sock)
    except OSError as error:
        if sock is not None:
            sock.close()
        reason = "TLS failed" if isinstance(error, ssl.SSLError) else error.strerror or "it took too long"
        raise Unavailable(f"no lane to {host}, port {port}: {reason}") from None


def _read(sock: socket.socket, size_bytes: int, deadline_s: float) -> bytes:
    data = b""
    while len(data) < size_bytes:
        sock.settimeout(_left_s(deadline_s))
        more = sock.recv(size_bytes - len(data))
        if not more:
            raise ConnectionResetError(0, "it was closed")
        data += more
    return data


def _left_s(deadline_s: float) -> float:
    """What a socket may wait; 0 would be no waiting at all."""
    return max(0.001, deadline_s - time.monotonic())


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
