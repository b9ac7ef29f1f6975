"""What to say when a connection fails: the same words whatever the transport underneath says."""

from __future__ import annotations

import os
import re
import socket
import ssl
from typing import TypeVar

from quill.client.address import Address
from quill.errors import Cancelled, Code, Internal, ResourceExhausted, RpcError, Unavailable

E = TypeVar("E", bound=RpcError)

UNKNOWN_NAME = "the name does not resolve"
TLS_FAILED = "the TLS handshake failed"
UNTRUSTED = "its certificate is not trusted, or is not for this name"

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
    if isinstance(error, TimeoutError) and not error.errno:
        return unreachable(address, "no answer")
    return unreachable(address, os.strerror(error.errno).lower() if error.errno else "the connection failed")


def insecure(address: Address, error: OSError) -> Unavailable:
    """No secure connection could be made: the request was not sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return unreachable(address, UNTRUSTED)
    return unreachable(address, TLS_FAILED)


def not_sent(error: E) -> E:
    """Mark the error of a call that provably did not run: no byte of it was sent, or the server says so.

    The same error, whose ``did_not_run`` is True now.
    """
    vars(error)["did_not_run"] = True
    return error


def refused(address: Address) -> Unavailable:
    """The server did not begin with the call."""
    return Unavailable(f"{address.authority} refused the call before it ran")


def going_away(address: Address) -> Unavailable:
    """The server closes the connection, and did not begin with the call."""
    return Unavailable(f"{address.authority} is going away; the call did not run")


def reset(address: Address, code: int) -> RpcError:
    """The server ended the call by an error code of HTTP/2 (gRPC over HTTP2, section "Errors")."""
    if code == _REFUSED_STREAM:
        return not_sent(refused(address))
    meaning, name = _RESETS.get(code, (Code.INTERNAL, f"error {code:#x}"))
    return RpcError.of(meaning, f"{address.authority} ended the call: {name} (HTTP/2)")


_REFUSED_STREAM = 0x7
_RESETS = {
    0x0: (Code.INTERNAL, "NO_ERROR"),
    0x1: (Code.INTERNAL, "PROTOCOL_ERROR"),
    0x2: (Code.INTERNAL, "INTERNAL_ERROR"),
    0x3: (Code.INTERNAL, "FLOW_CONTROL_ERROR"),
    0x4: (Code.INTERNAL, "SETTINGS_TIMEOUT"),
    0x5: (Code.INTERNAL, "STREAM_CLOSED"),
    0x6: (Code.INTERNAL, "FRAME_SIZE_ERROR"),
    0x8: (Code.CANCELLED, "CANCEL"),
    0x9: (Code.INTERNAL, "COMPRESSION_ERROR"),
    0xA: (Code.INTERNAL, "CONNECT_ERROR"),
    0xB: (Code.RESOURCE_EXHAUSTED, "ENHANCE_YOUR_CALM"),
    0xC: (Code.PERMISSION_DENIED, "INADEQUATE_SECURITY"),
}


def lost(address: Address) -> Unavailable:
    """The connection ended before the call did: the call may have run."""
    return Unavailable(f"the connection to {address.authority} was lost before the call ended")


def not_http(address: Address) -> Internal:
    """The peer broke the rules of HTTP."""
    return Internal(f"{address.authority} did not answer with valid HTTP")


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
