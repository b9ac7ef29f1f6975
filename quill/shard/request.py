"""What a sidecar is asked: one prompt, and how long its answer may take."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from quill.errors import InvalidArgument, InvalidType, InvalidUsage
from quill.shard.config import check_count, check_positive

Transport: TypeAlias = Literal["http_poll", "websocket", "auto"]

MAX_REQUEST_ID_BYTES = 128
MAX_PROMPT_BYTES = 16_000
"""Dialects B and C."""
MAX_DRAFT_TOKENS = 512
"""Dialects B and C, polled: ``min_tokens`` is at most that."""
MAX_NEW_TOKENS = 2048
"""Dialect C."""
MAX_BODY_BYTES = 2 * 1024 * 1024

_RESERVED = frozenset(
    {"request_id", "prompt", "prompt_context", "input_token_ids", "min_tokens", "max_new_tokens", "model", "stream"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRequest:
    """A prompt for the network.

    Raises:
        InvalidUsage: A value cannot be used. Nothing is sent.
        InvalidType: A value is of the wrong type.
    """

    prompt: str
    token_ids: Sequence[int] = ()
    """The prompt's token ids, for dialects that read them."""
    max_tokens: int = 128
    model: str = ""
    """Left out where empty."""
    transport: Transport = "http_poll"
    """``"auto"``: the WebSocket where the sidecar has one, else polling."""
    request_id: str | None = None
    """1 to 128 bytes; None makes one that begins with ``sdk-``. The same id must not be used again."""
    timeout_ms: float | None = None
    """For all of it; None is what the configuration says, as for the next two."""
    first_token_timeout_ms: float | None = None
    idle_timeout_ms: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Options of sampling by name, as JSON. Dialect A is sent them; B and C read none, and the end has a warning."""

    def __post_init__(self) -> None:
        for name in ("prompt", "model"):
            _check_text(name, getattr(self, name))
        check_count("max_tokens", self.max_tokens)
        if self.transport not in get_args(Transport):
            known = ", ".join(map(repr, get_args(Transport)))
            raise InvalidUsage(f"transport must be one of {known}, got {self.transport!r:.80}")
        if self.request_id is not None:
            _check_id(self.request_id)
        for name in ("timeout_ms", "first_token_timeout_ms", "idle_timeout_ms"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in self.token_ids):
            raise InvalidType("token_ids must be whole numbers, at least 0")
        _check_extra(self.extra)


def new_request_id() -> str:
    """An id that no other request has."""
    return f"sdk-{secrets.token_hex(16)}"


def check_polled(request: ShardRequest, dialect: str, body: bytes) -> None:
    """What ``/broadcast-work`` would refuse for its size, found before it is sent.

    Raises:
        InvalidArgument: The sidecar of this dialect does not take it.
    """
    _check_body(body)
    if dialect not in {"B", "C"}:
        return
    if not request.prompt.strip():
        raise InvalidArgument("the prompt is blank, and the sidecar takes no blank one")
    if (size := len(request.prompt.encode())) > MAX_PROMPT_BYTES:
        raise InvalidArgument(f"the prompt has {size} bytes, and the sidecar takes at most {MAX_PROMPT_BYTES}")


def check_streamed(request: ShardRequest, dialect: str, message: bytes) -> None:
    """What ``/ws/generate`` would refuse for its size, likewise.

    Raises:
        InvalidArgument: The sidecar of this dialect does not take it.
    """
    _check_body(message)
    if dialect == "C" and request.max_tokens > MAX_NEW_TOKENS:
        raise InvalidArgument(f"max_tokens is {request.max_tokens}, and the sidecar takes at most {MAX_NEW_TOKENS}")


def _check_body(body: bytes) -> None:
    if len(body) > MAX_BODY_BYTES:
        raise InvalidArgument(f"the request has {len(body)} bytes, and a sidecar takes at most {MAX_BODY_BYTES}")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidType(f"{name} must be a string, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidUsage(f"{name} holds half of a surrogate pair, which is no text") from None


def _check_id(request_id: object) -> None:
    _check_text("request_id", request_id)
    size = len(str(request_id).encode())
    if not 1 <= size <= MAX_REQUEST_ID_BYTES:
        raise InvalidUsage(f"request_id must have 1 to {MAX_REQUEST_ID_BYTES} bytes, got {size}")


def _check_extra(extra: object) -> None:
    if not isinstance(extra, Mapping):
        raise InvalidType(f"extra must be a mapping, got {type(extra).__name__}")
    if taken := sorted(_RESERVED & set(extra)):
        raise InvalidUsage(f"extra must not hold {', '.join(taken)}: the request itself says that")
    try:
        json.dumps(dict(extra), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise InvalidUsage(f"extra must hold JSON, under {', '.join(map(repr, extra))}") from None
