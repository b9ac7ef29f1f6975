"""What a server says about sending a failed call again: the trailer of gRFC A6, the same on every protocol.

Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md.
"""

from __future__ import annotations

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailer: after so many milliseconds the call may be sent again; a number below 0, or none at all, forbids it."""

PREVIOUS_ATTEMPTS_KEY = "grpc-previous-rpc-attempts"
"""Request header: how often the call was sent before."""

FORBIDDEN = -1
"""The pushback of a call that must not be sent again."""

_MAX_DIGITS = 10


def pushback(delay_ms: int) -> tuple[str, str]:
    """The trailer of a call that did not run, and may be sent again after a time."""
    return PUSHBACK_KEY, str(delay_ms)


def read_pushback(text: str) -> int:
    """Milliseconds to wait, or FORBIDDEN."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return int(text) if is_number else FORBIDDEN
