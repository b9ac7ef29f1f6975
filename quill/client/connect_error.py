"""Errors of the Connect protocol: as JSON objects, and as HTTP statuses of answers that are none of Connect's."""

from __future__ import annotations

import base64
import binascii
import http
from collections.abc import Mapping
from typing import Any

from quill.errors import Code, ErrorDetail, RpcError

_CODES = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}
"""The code of an answer that is no Connect error (https://connectrpc.com/docs/protocol#http-to-error-code)."""


def from_http_status(status: int, codes: Mapping[int, Code] = _CODES) -> RpcError:
    """What an answer that says no more than its status means: the code for it, UNKNOWN where it has none."""
    try:
        name = f"HTTP {status} ({http.HTTPStatus(status).phrase})"
    except ValueError:
        name = f"HTTP {status}"
    if status // 100 == 3:  # noqa: PLR2004 - the class of redirects
        return RpcError.of(Code.UNKNOWN, f"the server answered with {name}; redirects are not followed")
    return RpcError.of(codes.get(status, Code.UNKNOWN), f"the server answered with {name}")


def from_json(described: dict[str, Any], fallback: RpcError) -> RpcError:
    """The error that a Connect error object describes; its parts that cannot be read are left out."""
    name, message = described.get("code"), described.get("message")
    code = fallback.code
    if isinstance(name, str):
        known = Code.from_connect(name, fallback.code)
        code = fallback.code if known is Code.OK else known
    elif message is None:
        return fallback
    details = described.get("details")
    parsed = [_detail(detail) for detail in details] if isinstance(details, list) else []
    return RpcError.of(
        code,
        message if isinstance(message, str) else "",
        details=[detail for detail in parsed if detail is not None],
    )


def _detail(described: Any) -> ErrorDetail | None:
    """One detail: a type name, and a message in base64 without padding."""
    if not isinstance(described, dict):
        return None
    name, value = described.get("type"), described.get("value")
    if not isinstance(name, str) or not isinstance(value, str):
        return None
    try:
        return ErrorDetail(name, base64.b64decode(value + "=" * (-len(value) % 4), validate=True))
    except binascii.Error:
        return None
