"""How a client learns whether a server is well: the standard health service, else the HTTP health page.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md. The messages have one field each, so they
are read here without their generated classes.
"""

from __future__ import annotations

from quill.client.transport import Call

TIMEOUT_MS = 5_000
HTTP_PATH = "/healthz"

REQUEST = b""
"""grpc.health.v1.HealthCheckRequest with an empty service: the server as a whole."""

_SERVING = b"\x08\x01"
"""grpc.health.v1.HealthCheckResponse, field 1 (status) = SERVING."""
_HTTP_OK = 200


def check_call() -> Call:
    """The call; without any header of the user, so that no credential goes along."""
    return Call(service="grpc.health.v1.Health", method="Check", timeout_ms=TIMEOUT_MS)


def is_serving(reply: bytes) -> bool:
    """Whether a reply says that the server is well."""
    return reply.startswith(_SERVING)


def is_healthy_page(status: int | None) -> bool:
    """Whether the health page says that the server is well."""
    return status == _HTTP_OK
