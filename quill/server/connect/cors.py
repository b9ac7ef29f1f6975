"""Cross-origin requests: which web pages may call, and what they may read (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

from quill.errors import InvalidType, InvalidUsage
from quill.server.connect.request import Request
from quill.server.http_host import Message, Send

ANY = "*"

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_TOKENS = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: *, *[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_MAX_AGE_S = 7200
"""How long a browser may remember a preflight; browsers cap it at this."""
_ALWAYS_EXPOSED = ("grpc-status", "grpc-message", "grpc-status-details-bin")
_DEFAULT_HEADERS = (
    "content-type, connect-protocol-version, connect-timeout-ms, connect-content-encoding, connect-accept-encoding, "
    "grpc-timeout, grpc-encoding, grpc-accept-encoding, x-grpc-web, x-user-agent, authorization"
)


class Cors:
    """An allow-list of origins.

    A page of a listed origin may send any header, with credentials, and read every header of the reply. Pages of
    other origins are not told anything. The guard decides about calls from either; this only tells browsers.

    Args:
        origins: Origins as browsers write them, ``https://app.example``. ``"*"`` alone allows every page, without
            credentials.

    Raises:
        InvalidType: This is one string rather than several, or something else than strings.
        InvalidUsage: One of them is no origin.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        if isinstance(origins, str):
            raise InvalidType(f"cors is a sequence of origins: write cors=({origins!r},)")
        self._origins = frozenset(_checked(origin) for origin in origins)
        if ANY in self._origins and len(self._origins) > 1:
            raise InvalidUsage("cors allows every origin with '*': name no others beside it")

    def __bool__(self) -> bool:
        """Whether any origin is allowed."""
        return bool(self._origins)

    def is_preflight(self, request: Request) -> bool:
        """Whether a browser asks what it may send."""
        return (
            request.method == "OPTIONS"
            and request.header("origin") is not None
            and request.header("access-control-request-method") is not None
        )

    async def answer_preflight(self, request: Request, send: Send) -> None:
        """Say what a page of the request's origin may send."""
        allowed = self._allowed(request)
        headers = [(b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")]
        if allowed:
            asked = request.header("access-control-request-headers") or ""
            granted = asked if _TOKENS.fullmatch(asked) else _DEFAULT_HEADERS
            headers += [
                *allowed,
                (b"access-control-allow-methods", b"GET, POST"),
                (b"access-control-allow-headers", granted.encode()),
                (b"access-control-max-age", str(_MAX_AGE_S).encode()),
            ]
        else:
            headers.append((b"content-length", b"0"))  # which the 204 may not have (RFC 9110, section 8.6)
        status = HTTPStatus.NO_CONTENT if allowed else HTTPStatus.FORBIDDEN
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def sender(self, request: Request, send: Send) -> Send:
        """A ``send`` that lets the page that asked read the reply."""
        allowed = self._allowed(request)

        async def send_readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = [name.decode() for name, _ in message["headers"] if name not in (b"vary", b"set-cookie")]
                exposed = ", ".join(dict.fromkeys([*names, *_ALWAYS_EXPOSED]))
                headers = [*_varied(message["headers"]), *allowed]
                if allowed:
                    headers.append((b"access-control-expose-headers", exposed.encode()))
                message = {**message, "headers": headers}
            await send(message)

        return send_readable

    def _allowed(self, request: Request) -> list[tuple[bytes, bytes]]:
        """The headers that name the origin as allowed; none where it is not."""
        if ANY in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        origin = request.header("origin")
        if origin not in self._origins:
            return []
        return [(b"access-control-allow-origin", origin.encode()), (b"access-control-allow-credentials", b"true")]


def _varied(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers, with word to caches that the reply is for one origin."""
    headers = list(headers)
    varies = [value for name, value in headers if name == b"vary"]
    return [header for header in headers if header[0] != b"vary"] + [(b"vary", b", ".join([*varies, b"Origin"]))]


def _checked(origin: str) -> str:
    if not isinstance(origin, str):
        raise InvalidType(f"an origin must be a string, got {type(origin).__name__}")
    if origin != ANY and not _ORIGIN.fullmatch(origin):
        raise InvalidUsage(f"{origin!r} is no origin: write scheme://host[:port] in lower case, without a path")
    return origin
