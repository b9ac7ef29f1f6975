"""What to say when a connection fails: the same words whatever the transport underneath says."""

from __future__ import annotations

import os
import re
import socket

from quill.client.address import Address
from quill.errors import Cancelled, Code, Internal, ResourceExhausted, RpcError, Unavailable

UNKNOWN_NAME = "the name does not resolve"
TLS_FAILED = "the TLS handshake failed"
UNTRUSTED = "its certificate is not trusted, or is not for this name"

_RESETS = {7: Code.UNAVAILABLE, 8: Code.CANCELLED, 11: Code.RESOURCE_EXHAUSTED, 12: Code.PERMISSION_DENIED}
"""What error codes of HTTP/2 mean for a call, where it is not INTERNAL; as gRPC has it."""

_REASONS = (
    (re.compile(r"connection refused", re.IGNORECASE), "connection refused"),
    (
        re.compile(r"dns error|errors resolving|DNS resolution failed|lookup (error|failed)", re.IGNORECASE),
        UNKNOWN_NAME,
    ),
    (re.compile(r"certificate verify failed|invalid peer certificate|CERTIFICATE_VERIFY_FAILED"), UNTRUSTED),
    (re.compile(r"\btls\b|\bssl\b|handshake|corrupt message", re.IGNORECASE), TLS_FAILED),
    (re.compile(r"HTTP/2|http1"), "it speaks no gRPC"),
    (re.compile(r"network is unreachable", re.IGNORECASE), "network is unreachable"),
    (re.compile(r"no route to host", re.IGNORECASE), "no route to host"),
    (re.compile(r"timed out|timeout", re.IGNORECASE), "no answer"),
)
"""What the libraries write when they cannot connect, and what it means."""


def unreachable(address: Address, reason: str) -> Unavailable:
    """No connection could be made: the request was not sent."""
    return Unavailable(f"cannot reach {address.authority}: {reason}")


def unreachable_text(address: Address, text: str) -> Unavailable:
    """As ``unreachable``, for what a library wrote."""
    reason = next((reason for pattern, reason in _REASONS if pattern.search(text)), "the connection failed")
    return unreachable(address, reason)


def unreachable_errno(address: Address, error: OSError) -> Unavailable:
    """As ``unreachable``, for what the operating system said."""
    if isinstance(error, socket.gaierror):
        return unreachable(address, UNKNOWN_NAME)
    return unreachable(address, os.strerror(error.errno).lower() if error.errno else "the connection failed")


def lost(address: Address) -> Unavailable:
    """The connection ended before the call did: the call may have run."""
    return Unavailable(f"the connection to {address.authority} was lost before the call ended")


def not_http(address: Address, version: str = "HTTP") -> Internal:
    """The peer broke the rules of HTTP."""
    return Internal(f"{address.authority} did not answer with valid {version}")


def reset(address: Address, code: int) -> RpcError:
    """The server broke off the call's stream of HTTP/2, for a reason by its number (RFC 9113, section 7)."""
    text = f"{address.authority} broke off the call (HTTP/2 error code {code})"
    return RpcError.of(_RESETS.get(code, Code.INTERNAL), text)


def request_too_large(size: int, limit: int, *, several: bool = False) -> ResourceExhausted:
    """Found before the request was sent; ``several`` where others of its call may have been."""
    if several:
        return ResourceExhausted(f"a request of the stream has {size} bytes, max_message_bytes is {limit}")
    return ResourceExhausted(f"the request has {size} bytes, max_message_bytes is {limit}; nothing was sent")


def reply_too_large(size: int | None, limit: int) -> ResourceExhausted:
    """Found before it was buffered; ``size`` is None where only the limit is known to be passed."""
    has = f"more than {limit}" if size is None else str(size)
    return ResourceExhausted(f"the reply has {has} bytes, max_message_bytes is {limit}")


def closed_while_running() -> Cancelled:
    """The caller closed the stream or the client under a call."""
    return Cancelled("the call was cancelled: its stream or its client was closed")


def unexpected(address: Address, error: BaseException) -> RpcError:
    """What no rule foresaw; the class tells where to look, the text may hold anything and stays inside."""
    return Internal(f"the call to {address.authority} failed inside the client ({type(error).__name__})")
