"""What a client was told when it was made, checked, and the rules for the timeouts of a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from quill.client.tls import ClientTls
from quill.errors import InvalidType, InvalidUsage
from quill.version import VERSION
from quill.wire.compression import MIN_COMPRESS_BYTES

MAX_TIMEOUT_MS = 9_999_999_999
"""The longest timeout that Connect can tell a server: ten digits."""

Compression = Literal["gzip", "zstd"]
"""How requests may be compressed."""

MAX_ATTEMPTS = 5
"""The most that gRFC A6 allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The settings of a client that its transports need.

    Raises:
        InvalidType: A value is of the wrong type.
        InvalidUsage: A value is outside its range.
    """

    timeout_ms: int | None = 30_000
    """Bounds a unary call, and a stream's wait for its first message; None for no bound."""
    idle_timeout_ms: int | None = 300_000
    """Bounds the gap between two messages of a stream; None for no bound."""
    enable_compression: bool = False
    """Whether requests are compressed. Replies may always be."""
    compression: Compression | None = None
    """What the server is known to understand in requests; None where it is not known."""
    compress_from_bytes: int = MIN_COMPRESS_BYTES
    """How large a request is compressed."""
    use_get: bool = False
    """Whether unary methods without side effects are called by GET over Connect."""
    max_message_bytes: int = 64 * 1024 * 1024
    """How large a request or a reply may be, after decompression."""
    http2: bool = False
    """Whether Connect, gRPC-Web and the Quill protocol go over HTTP/2 and nothing else."""
    keepalive_ms: int | None = None
    """After how much silence gRPC asks the server whether it is still there, as often as it takes. A server may send
    away who asks more often than it allows: Quill's every five seconds, grpc's own every five minutes. None asks after
    30 s, twice at most while nothing is sent, which every server allows."""
    keepalive_timeout_ms: int = 10_000
    """How long the server may take to answer that; then its calls end with UNAVAILABLE."""
    tls: ClientTls | None = None
    """Whom to trust and what to show over TLS; None for whom this machine trusts, and nothing."""
    max_attempts: int = MAX_ATTEMPTS
    """How often a call may be sent, where it provably did not run."""

    def __post_init__(self) -> None:
        for name in ("timeout_ms", "idle_timeout_ms", "keepalive_ms"):
            if getattr(self, name) is not None:
                check_timeout(name, getattr(self, name))
        check_timeout("keepalive_timeout_ms", self.keepalive_timeout_ms)
        for name in ("enable_compression", "use_get", "http2"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidType(f"{name} must be a bool, got {type(getattr(self, name)).__name__}")
        if self.tls is not None and not isinstance(self.tls, ClientTls):
            raise InvalidType(f"tls must be a ClientTls, got {type(self.tls).__name__}")
        if self.compression not in (None, *get_args(Compression)):
            raise InvalidUsage(f"compression must be 'gzip', 'zstd' or None, got {self.compression!r:.64}")
        _check_count("compress_from_bytes", self.compress_from_bytes, 0, 2**31 - 1)
        _check_count("max_message_bytes", self.max_message_bytes, 1, 2**31 - 1)
        check_attempts(self.max_attempts)


def _check_count(name: str, value: int, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidType(f"{name} must be an int, got {type(value).__name__}")
    if not least <= value <= most:
        raise InvalidUsage(f"{name} must be from {least} to {most}, got {value}")
    return value


def check_attempts(value: int) -> int:
    """How often a call may be sent.

    Raises:
        InvalidType: It is no int.
        InvalidUsage: It is not from 1 to MAX_ATTEMPTS.
    """
    return _check_count("max_attempts", value, 1, MAX_ATTEMPTS)


def check_timeout(name: str, value: int) -> int:
    """A timeout in whole milliseconds.

    Raises:
        InvalidType: It is no int.
        InvalidUsage: It is not positive, or longer than a protocol can tell.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidType(f"{name} must be an int, in milliseconds, got {type(value).__name__}")
    if not 0 < value <= MAX_TIMEOUT_MS:
        raise InvalidUsage(f"{name} must be from 1 to {MAX_TIMEOUT_MS} milliseconds, got {value}")
    return value


def user_agent() -> str:
    """How the client names itself to servers."""
    return f"quill-python/{VERSION}"
