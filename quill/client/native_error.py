"""Errors of the Quill framework's protocol: problem documents (RFC 9457), and the HTTP statuses that say the code."""

from __future__ import annotations

from typing import Any

from quill.client.connect_error import from_http_status
from quill.errors import Code, ErrorDetail, RpcError
from quill.wire.base64 import decode_base64

PROBLEM = "application/problem+json"
"""The content type of a problem document."""

_CODES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ALREADY_EXISTS,
    412: Code.FAILED_PRECONDITION,
    413: Code.RESOURCE_EXHAUSTED,
    415: Code.UNIMPLEMENTED,
    422: Code.INVALID_ARGUMENT,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
"""The framework says what went wrong by the status alone; these are the codes that stand for it."""


def from_status(status: int) -> RpcError:
    """What an answer without a problem document means."""
    return from_http_status(status, _CODES)


def from_problem(problem: dict[str, Any], fallback: RpcError) -> RpcError:
    """The error that a problem document describes; its parts that cannot be read are left out.

    Args:
        problem: The document.
        fallback: What the status of the answer means: the code, and the text where the document has none.
    """
    texts = [text for text in (problem.get("detail"), problem.get("title")) if isinstance(text, str) and text]
    detail = _detail(problem.get("quill_proto_type"), problem.get("quill_proto_detail_base64"))
    return RpcError.of(
        fallback.code,
        texts[0] if texts else fallback.message,
        details=() if detail is None else (detail,),
    )


def _detail(name: Any, value: Any) -> ErrorDetail | None:
    """The typed detail of an error; None where there is none that can be read."""
    if not isinstance(name, str) or not isinstance(value, str):
        return None
    try:
        return ErrorDetail(name.rpartition("/")[2], decode_base64(value))
    except ValueError:
        return None
