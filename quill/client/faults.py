"""What to say when a connection fails: the same words whatever the transport underneath says."""

from __future__ import annotations

import os
import re
import socket
from typing import TypeVar

from quill.client.address import Address
from quill.errors import Cancelled, Internal, ResourceExhausted, RpcError, Unavailable
from quill.wire.pushback import read_pushback

E = TypeVar("E", bound=RpcError)

UNKNOWN_NAME = "the name does not resolve"
TLS_FAILED = "the TLS handshake failed"
UNTRUSTED = "its certificate is not trusted, or is not for this name"
_NO_GRPC = "it speaks no gRPC"

_LASTING = frozenset({UNKNOWN_NAME, UNTRUSTED, _NO_GRPC})
"""Mistakes rather than troubles: a second try would only make the caller wait for the answer."""

_REASONS = (
    (re.compile(r"connection refused", re.IGNORECASE), "connection refused"),
    (
        re.compile(r"dns error|errors resolving|DNS resolution failed|lookup (error|failed)", re.IGNORECASE),
        UNKNOWN_NAME,
    ),
    (re.compile(r"certificate verify failed|invalid peer certificate|CERTIFICATE_VERIFY_FAILED"), UNTRUSTED),
    (re.compile(r"\btls\b|\bssl\b|handshake|corrupt message", re.IGNORECASE), TLS_FAILED),
    (re.compile(r"HTTP/2|http1"), _NO_GRPC),
    (re.compile(r"network is unreachable", re.IGNORECASE), "network is unreachable"),
    (re.compile(r"no route to host", re.IGNORECASE), "no route to host"),
    (re.compile(r"timed out|timeout", re.IGNORECASE), "no answer"),
)
"""What the libraries write when they cannot connect, and what it means."""

_NOT_SENT = "quill.client.not_sent"
_PUSHBACK_MS = "quill.client.pushback_ms"


def not_sent(error: E) -> E:
    """Mark an error that came before the server was given anything to run: the call may be sent again.

    That is: no connection, nothing of the request written, or the server's word that it left the request alone
    (HTTP/2: REFUSED_STREAM, or a GOAWAY below the stream).
    """
    vars(error)[_NOT_SENT] = True
    return error


def did_not_run(error: RpcError) -> bool:
    """Whether an error is marked so."""
    return _NOT_SENT in vars(error)


def pushed_back(error: E, text: str | None) -> E:
    """Note what the server said of sending the call again (the trailer ``grpc-retry-pushback-ms``), if it did."""
    if text is not None:
        vars(error)[_PUSHBACK_MS] = read_pushback(text)
    return error


def pushback_ms(error: RpcError) -> int | None:
    """After how long the server wants the call again; below 0 never; None where it said nothing."""
    pushback: int | None = vars(error).get(_PUSHBACK_MS)
    return pushback


def unreachable(address: Address, reason: str) -> Unavailable:
    """No connection could be made: the request was not sent."""
    error = Unavailable(f"cannot reach {address.authority}: {reason}")
    return error if reason in _LASTING else not_sent(error)


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
