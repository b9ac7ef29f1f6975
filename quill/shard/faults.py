"""What a sidecar's refusals and failures mean: the table of statuses, and the words."""

from __future__ import annotations

import os
import re
import socket
import ssl

from quill.errors import Code, Internal, InvalidArgument, RpcError, Unavailable
from quill.shard.messages import excerpt


class SidecarProtocolError(Internal):
    """The sidecar answered what is not in its protocol."""


class Failed(Exception):  # noqa: N818 - what became of an exchange
    """An exchange failed.

    Args:
        error: For the caller.
        sent: Whether the sidecar may have seen the request.
        lost: Whether a reply may have been lost on its way.
        again: Whether a poll may be tried again.
    """

    def __init__(self, error: RpcError, *, sent: bool, lost: bool = False, again: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.sent = sent
        self.lost = lost
        self.again = again


_STATUSES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    405: Code.UNIMPLEMENTED,
    408: Code.UNAVAILABLE,
    409: Code.ABORTED,
    413: Code.INVALID_ARGUMENT,
    415: Code.INVALID_ARGUMENT,
    422: Code.INVALID_ARGUMENT,
    429: Code.RESOURCE_EXHAUSTED,
}
_SERVER_ERRORS = range(500, 600)
_REDIRECTS = range(300, 400)
_TOO_MANY = 429
_ERRNO = re.compile(r"\[Errno (\d{1,4})\]")
_MAX_RETRY_AFTER_S = 24 * 3600

_INVALID = re.compile(
    r"(?i)must|invalid|required|missing|blank|empty|exceed|too (long|large|many|short|small|big)"
    r"|between|at (least|most)|out of range|malformed|unsupported|unknown"
)
_UNAVAILABLE = re.compile(
    r"(?i)queue|\bfull\b|busy|overload|unavailable|capacity|channel|closed|shutting|timed? ?out|try again|no peers?\b"
    r"|not connected|disconnected|offline|backpressure"
)


def status(place: str, code: int, body: bytes, retry_after: str | None) -> RpcError:
    """What an HTTP status means that is not the one that was wanted.

    Args:
        place: Who answered, and to what.
        code: The status.
        body: What came with it, or its beginning.
        retry_after: The header, where there was one.
    """
    if code in _REDIRECTS:
        return RpcError.of(
            Code.FAILED_PRECONDITION,
            f"{place} answered with a redirect (HTTP {code}), and redirects are not followed: give the address itself",
        )
    fallback = Code.UNAVAILABLE if code in _SERVER_ERRORS else Code.INTERNAL
    because = f": {excerpt(body)}" if body.strip() else ""
    message = f"{place} answered with HTTP {code}{because}"
    if code != _TOO_MANY or (seconds := _seconds(retry_after)) is None:
        return RpcError.of(_STATUSES.get(code, fallback), message)
    header = (("retry-after", str(seconds)),)
    message = f"{message}; try again in {seconds} s"
    return RpcError.of(Code.RESOURCE_EXHAUSTED, message, metadata=header, trailers=header)


def refused(place: str, detail: str) -> RpcError:
    """``ok`` is false: for what the request says, or because there is no room."""
    kind = Unavailable if _UNAVAILABLE.search(detail) and not _INVALID.search(detail) else InvalidArgument
    return kind(f"{place} refused the request: {detail}")


def told(place: str, error: str) -> RpcError:
    """The sidecar sent an error in place of a result."""
    kind = InvalidArgument if _INVALID.search(error) and not _UNAVAILABLE.search(error) else Unavailable
    return kind(f"{place} ended the generation with an error: {error}")


def reason(error: OSError) -> str:
    """Why no connection could be made, in the words of the operating system where it has some."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    if isinstance(error, ssl.SSLError):
        return "the TLS handshake failed"
    if isinstance(error, socket.gaierror):
        return "the name of its host is not known"
    number = error.errno
    if number is None and (several := _ERRNO.search(str(error))):  # one of each address of the host
        number = int(several.group(1))
    return os.strerror(number).lower() if number else "the connection failed"


def _seconds(retry_after: str | None) -> int | None:
    if retry_after is None or not re.fullmatch(r"\s*[0-9]{1,9}\s*", retry_after):
        return None
    return min(int(retry_after), _MAX_RETRY_AFTER_S)
