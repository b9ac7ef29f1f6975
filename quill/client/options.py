"""What a client was told when it was made, checked, and the rules for the timeouts of a call."""

from __future__ import annotations

from dataclasses import dataclass

from quill.errors import InvalidType, InvalidUsage
from quill.version import VERSION

MAX_TIMEOUT_MS = 9_999_999_999
"""The longest timeout that Connect can tell a server: ten digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The settings of a client that its transports need.

    Raises:
        InvalidType: A value is of the wrong type.
        InvalidUsage: A value is outside its range.
    """

    timeout_ms: int = 30_000
    """Bounds a unary call, and a stream's wait for its first message."""
    idle_timeout_ms: int | None = 300_000
    """Bounds the gap between two messages of a stream; None for no bound."""
    enable_compression: bool = False
    """Whether requests are compressed. Replies may always be."""
    max_message_bytes: int = 64 * 1024 * 1024
    """How large a request or a reply may be, after decompression."""
    http2: bool = False
    """Whether HTTP/2 is spoken in clear text, with prior knowledge. Over TLS the server chooses."""

    def __post_init__(self) -> None:
        check_timeout("timeout_ms", self.timeout_ms)
        if self.idle_timeout_ms is not None:
            check_timeout("idle_timeout_ms", self.idle_timeout_ms)
        if not isinstance(self.enable_compression, bool):
            raise InvalidType(f"enable_compression must be a bool, got {type(self.enable_compression).__name__}")
        if isinstance(self.max_message_bytes, bool) or not isinstance(self.max_message_bytes, int):
            raise InvalidType(f"max_message_bytes must be an int, got {type(self.max_message_bytes).__name__}")
        if not 1 <= self.max_message_bytes < 2**31:
            raise InvalidUsage(f"max_message_bytes must be from 1 to {2**31 - 1}, got {self.max_message_bytes}")
        if not isinstance(self.http2, bool):
            raise InvalidType(f"http2 must be a bool, got {type(self.http2).__name__}")


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
