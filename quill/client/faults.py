"""What to say when a connection fails: the same words whatever the transport underneath says."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from typing import TypeVar

from quill.client.address import Address
from quill.client.tls import ClientTls
from quill.errors import Cancelled, Code, Internal, ResourceExhausted, RpcError, Unavailable
from quill.wire.pushback import read_pushback

E = TypeVar("E", bound=RpcError)

UNKNOWN_NAME = "the name does not resolve"
TLS_FAILED = "the TLS handshake failed"
UNTRUSTED = "its certificate does not verify"
_NO_GRPC = "it speaks no gRPC"

_MAX_NAMES_SHOWN = 5

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
"""What error codes of HTTP/2 mean for a call; as gRPC has it."""
_PASSING_RESETS = frozenset({0x0, 0x2, 0x5, 0x8, 0xA, 0xB})
"""Those of a peer, or of a proxy before it, that may answer the next call better."""

_LASTING = frozenset({UNKNOWN_NAME, _NO_GRPC})
"""Mistakes rather than troubles: a second try would only make the caller wait for the answer."""

_REASONS = (
    (re.compile(r"connection refused", re.IGNORECASE), "connection refused"),
    (
        re.compile(r"dns error|errors resolving|DNS resolution failed|lookup (error|failed)", re.IGNORECASE),
        UNKNOWN_NAME,
    ),
    (re.compile(r"HTTP/2|http1|ALPN"), _NO_GRPC),
    (re.compile(r"backend unhealthy"), "no server says of itself that it is well (grpc.health.v1)"),
    (re.compile(r"no such file or directory", re.IGNORECASE), "no such file or directory"),
    (re.compile(r"permission denied", re.IGNORECASE), "permission denied"),
    (re.compile(r"network is unreachable", re.IGNORECASE), "network is unreachable"),
    (re.compile(r"no route to host", re.IGNORECASE), "no route to host"),
    (re.compile(r"timed out|timeout", re.IGNORECASE), "no answer"),
)
"""What the libraries write when they cannot connect, and what it means."""

_IS_TLS = re.compile(
    r"\btls\b|\bssl\b|handshake|certificate|corrupt message|fatal alert|ALERT_|Unwrap failed|Hostname Verif",
    re.IGNORECASE,
)
_ALERT = re.compile(r"ALERT_(\w+)|fatal alert: (\w+)", re.IGNORECASE)
_ALERTS = {
    "unknownca": "it does not know who signed it",
    "certificateexpired": "it takes it for expired",
    "certificaterevoked": "it takes it for revoked",
    "badcertificate": "it is not one that it takes",
    "certificateunknown": "it is not one that it takes",
    "unsupportedcertificate": "it is not one that it takes",
    "accessdenied": "it is not one that it takes",
    "decrypterror": "it is not one that it takes",
}
"""What a server says of a client's certificate (RFC 8446, section 6.2; small letters only)."""
_CLOSED = re.compile(
    r"\bEOF\b|(socket|channel|connection) closed|connection reset|broken pipe|Unwrap failed|Secure read failed",
    re.IGNORECASE,
)
_CERTIFICATE_REASONS = (
    (
        re.compile(r"mismatch|not valid for|not in peer certificate|Hostname Verification", re.IGNORECASE),
        "its certificate is not for {name}{names}: use a name that it has, or have one issued for this name",
    ),
    (re.compile(r"expired", re.IGNORECASE), "its certificate has expired: the server needs a new one"),
    (
        re.compile(r"not (yet valid|valid yet)", re.IGNORECASE),
        "its certificate is not valid yet: compare the clocks of both machines",
    ),
    (
        re.compile(r"issuer|self.signed|verify the (first|leaf)", re.IGNORECASE),
        "its certificate is signed by nobody who is trusted here: give its authority as ca (quill.ClientTls, --ca)",
    ),
)


def insecure(
    address: Address, error: OSError | str, tls: ClientTls | None = None, names: Sequence[str] = ()
) -> Unavailable:
    """No TLS connection could be made, or the server ended it for a reason of TLS: what was wrong, what to do.

    Args:
        address: The server.
        error: What the ssl module raised, or what another library wrote.
        tls: What the client was given.
        names: The names in the server's certificate, where they are known.
    """
    text = str(error)
    if alert := _ALERT.search(text):
        return _mistaken(address, _refusal((alert[1] or alert[2]).replace("_", "").lower(), tls))
    if re.search(r"wrong.version.number|corrupt message|http.request", text, re.IGNORECASE):
        scheme = "grpc" if address.protocol == "grpc" else "http"
        return _mistaken(address, f"it speaks no TLS there; clear text is {scheme}://")
    if isinstance(error, ConnectionError) or _CLOSED.search(text):
        return unreachable(address, f"it closed the connection{_why_closed(address, tls)}")
    if re.search(r"verify.failed|Verification Check|peer certificate", text, re.IGNORECASE):
        reason = next((reason for pattern, reason in _CERTIFICATE_REASONS if pattern.search(text)), UNTRUSTED)
        return _mistaken(address, reason.format(name=repr(address.host), names=_listed(names)))
    return unreachable(address, TLS_FAILED)


def _refusal(alert: str, tls: ClientTls | None) -> str:
    """What a server means that ends the handshake with an alert."""
    shown = None if tls is None else tls.cert
    if alert == "certificaterequired" or (alert == "handshakefailure" and shown is None):
        perhaps = "asks" if alert == "certificaterequired" else "may ask"
        return f"it {perhaps} for a client certificate: give cert and key (quill.ClientTls, --cert and --key)"
    if shown is not None and alert in _ALERTS:
        return f"it refuses the client certificate {os.fspath(shown)}: {_ALERTS[alert]}"
    return TLS_FAILED


def _why_closed(address: Address, tls: ClientTls | None) -> str:
    """What may be the reason where a server closes a new connection without a word."""
    if address.unix_path is not None:
        return ""
    if not address.tls:
        return f"; if it expects TLS, use {'grpcs' if address.protocol == 'grpc' else 'https'}://"
    if tls is None or tls.cert is None:
        return "; if it asks for a client certificate, give cert and key (quill.ClientTls, --cert and --key)"
    return f"; it may not take the client certificate {os.fspath(tls.cert)}"


def _listed(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = len(names) - _MAX_NAMES_SHOWN
    return f", only for {', '.join(names[:_MAX_NAMES_SHOWN])}" + (f" and {more} more" if more > 0 else "")


_NOT_SENT = "quill.client.not_sent"
_CUT_OFF = "quill.client.cut_off"
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


def cut_off(error: E) -> E:
    """Mark an error that is the connection's or a proxy's, and no status of the handler: the answer has no end."""
    vars(error)[_CUT_OFF] = True
    return error


def was_cut_off(error: RpcError) -> bool:
    """Whether an error is marked so."""
    return _CUT_OFF in vars(error)


def was_refused(error: RpcError) -> bool:
    """Whether the call did not run: it was not sent, or the server wants it again later."""
    pushback = pushback_ms(error)
    return did_not_run(error) or (error.code is Code.UNAVAILABLE and pushback is not None and pushback >= 0)


def with_marks(error: E, original: RpcError) -> E:
    """An error that stands for another, with what is known of that."""
    marks = {name: value for name, value in vars(original).items() if name in {_NOT_SENT, _CUT_OFF, _PUSHBACK_MS}}
    vars(error).update(marks)
    return error


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
    error = _mistaken(address, reason)
    return error if reason in _LASTING else not_sent(error)


def _mistaken(address: Address, reason: str) -> Unavailable:
    """As ``unreachable``, for what the next try would meet too."""
    return Unavailable(f"cannot reach {address.place}: {reason}")


def unreachable_text(address: Address, text: str, tls: ClientTls | None = None) -> Unavailable:
    """As ``unreachable``, for what a library wrote."""
    # The words of a path or a name say nothing of the reason.
    text = re.sub(rf"(?<![\w.-]){re.escape(address.unix_path or address.host)}(?![\w.-])", "", text)
    if _CLOSED.search(text) or (address.tls and "ALPN" not in text and _IS_TLS.search(text)):
        return insecure(address, text, tls)
    reason = next((reason for pattern, reason in _REASONS if pattern.search(text)), "the connection failed")
    return unreachable(address, reason)


def unreachable_errno(address: Address, error: OSError) -> Unavailable:
    """As ``unreachable``, for what the operating system said."""
    if isinstance(error, socket.gaierror):
        return unreachable(address, UNKNOWN_NAME)
    if isinstance(error, TimeoutError) and not error.errno:
        return unreachable(address, "no answer")
    return unreachable(address, os.strerror(error.errno).lower() if error.errno else "the connection failed")


def refused(address: Address) -> Unavailable:
    """The server did not begin with the call."""
    return not_sent(Unavailable(f"{address.place} refused the call before it ran"))


def going_away(address: Address, code: int = 0) -> Unavailable:
    """The server closes the connection, and did not begin with the call. Its error code of HTTP/2 tells why."""
    why = f" ({_reset_meaning(code)[1]})" if code else ""
    return not_sent(Unavailable(f"{address.place} is going away{why}; the call did not run"))


def reset(address: Address, code: int) -> RpcError:
    """The server ended the call by an error code of HTTP/2 (gRPC over HTTP2, section "Errors")."""
    if code == _REFUSED_STREAM:
        return refused(address)
    meaning, name = _reset_meaning(code)
    error = RpcError.of(meaning, f"{address.place} ended the call: {name} (HTTP/2)")
    return cut_off(error) if code in _PASSING_RESETS else error


def dropped(address: Address) -> Unavailable:
    """The server gave up the call without a word."""
    why = "as servers do that stop or have too much to do"
    return Unavailable(f"{address.place} dropped the call, {why}; whether it ran is not known")


def _reset_meaning(code: int) -> tuple[Code, str]:
    return _RESETS.get(code, (Code.INTERNAL, f"error {code:#x}"))


def lost(address: Address) -> Unavailable:
    """The connection ended before the call did: the call may have run."""
    return Unavailable(f"the connection to {address.place} was lost before the call ended")


def hung_up(address: Address, tls: ClientTls | None = None) -> Unavailable:
    """As ``lost``, where the server never said anything yet: the reason may be TLS."""
    return Unavailable(f"{lost(address).message}, and it has never answered{_why_closed(address, tls)}")


def not_http(address: Address, version: str = "HTTP") -> Internal:
    """The peer broke the rules of HTTP."""
    return Internal(f"{address.place} did not answer with valid {version}")


def request_too_large(
    size: int, limit: int, *, bound: str = "max_message_bytes", several: bool = False
) -> ResourceExhausted:
    """Found before the request was sent; ``several`` where others of its call may have been."""
    if several:
        return ResourceExhausted(f"a request of the stream has {size} bytes, {bound} is {limit}")
    return ResourceExhausted(f"the request has {size} bytes, {bound} is {limit}; nothing was sent")


def reply_too_large(size: int | None, limit: int) -> ResourceExhausted:
    """Found before it was buffered; ``size`` is None where only the limit is known to be passed."""
    has = f"more than {limit}" if size is None else str(size)
    return ResourceExhausted(f"the reply has {has} bytes, max_message_bytes is {limit}")


def is_unknown_method(error: RpcError) -> bool:
    """Whether the server has no such method: a protocol whose errors are HTTP's own calls that NOT_FOUND."""
    return error.code in {Code.UNIMPLEMENTED, Code.NOT_FOUND}


def closed_while_running() -> Cancelled:
    """The caller closed the stream or the client under a call."""
    return Cancelled("the call was cancelled: its stream or its client was closed")


def unexpected(address: Address, error: BaseException) -> RpcError:
    """What no rule foresaw; the class tells where to look, the text may hold anything and stays inside."""
    return Internal(f"the call to {address.place} failed inside the client ({type(error).__name__})")
