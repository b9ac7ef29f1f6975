"""What clients may ask, per dialect, and the words in which the sidecar refuses the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Never

DIALECTS = ("A", "B", "C")
MAX_REQUEST_ID_BYTES = 128
MAX_PROMPT_BYTES = 16_000
MAX_MIN_TOKENS = 512
MAX_NEW_TOKENS = 2048
DEFAULT_NEW_TOKENS = 128
_UNSIGNED_32 = 2**32 - 1


class Refused(Exception):  # noqa: N818 - it is the answer
    """The request is answered with a status of HTTP and a line of text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Declined(Exception):  # noqa: N818 - likewise
    """The request is well formed and says what the sidecar does not do: ``ok`` is false."""


@dataclass(frozen=True, slots=True)
class Work:
    """A prompt for the network."""

    request_id: str
    prompt: str
    """Of a long one in A and on a WebSocket, the end."""
    tokens: int
    """How many tokens are asked."""


def parse(body: bytes | str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refused: 400 where it is no JSON, 422 where it is no object.
    """
    try:
        value = json.loads(body if isinstance(body, str) else body.decode(), parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the request body is not JSON: {reason:.200}") from None
    if not isinstance(value, dict):
        raise Refused(422, f"the request body must be a JSON object, got {type(value).__name__}")
    return value


def read_broadcast(body: bytes, dialect: str) -> Work:
    """What ``POST /broadcast-work`` asks.

    Raises:
        Refused: The body is no JSON object, or a field is missing or has a wrong type; in A also a wrong value.
        Declined: B and C: a value is outside its limits.
    """
    fields = parse(body)
    return _documented(fields) if dialect == "A" else _released(fields)


def read_websocket(text: str, dialect: str) -> Work:
    """What the first message on ``/ws/generate`` asks.

    Raises:
        Refused: It is not what the dialect takes.
    """
    fields = parse(text)
    if dialect == "A":
        return _documented(fields, prompt_name="prompt")
    prompt = _text(fields, "prompt", "") or _text(fields, "prompt_context", "")
    if not prompt.strip():
        raise Refused(422, "prompt is missing or blank")
    return Work(_text(fields, "request_id", ""), prompt[-MAX_PROMPT_BYTES:], _new_tokens(fields))


def _documented(fields: Mapping[str, Any], prompt_name: str = "prompt_context") -> Work:
    request_id = _text(fields, "request_id")
    if not 1 <= (size := len(request_id.encode())) <= MAX_REQUEST_ID_BYTES:
        raise Refused(422, f"request_id must have 1 to {MAX_REQUEST_ID_BYTES} bytes, got {size}")
    prompt = _text(fields, prompt_name, "")
    ids = fields.get("input_token_ids", [])
    if not isinstance(ids, list) or not all(_is_whole(one) and one >= 0 for one in ids):
        raise Refused(422, "input_token_ids must be a list of whole numbers, at least 0")
    if not prompt and not ids:
        raise Refused(422, f"{prompt_name} and input_token_ids are both empty")
    _text(fields, "model", "")
    if not isinstance(fields.get("stream", True), bool):
        raise Refused(422, "stream must be true or false")
    return Work(request_id, prompt[-MAX_PROMPT_BYTES:] or json.dumps(ids[-64:]), _new_tokens(fields))


def _released(fields: Mapping[str, Any]) -> Work:
    request_id = _text(fields, "request_id")
    prompt = _text(fields, "prompt_context")
    tokens = fields.get("min_tokens", "missing")
    if not _is_whole(tokens) or not 0 <= tokens <= _UNSIGNED_32:
        raise Refused(422, f"min_tokens must be a whole number, at least 0, got {tokens!r:.40}")
    if not 1 <= (size := len(request_id.encode())) <= MAX_REQUEST_ID_BYTES:
        raise Declined(f"request_id must have 1 to {MAX_REQUEST_ID_BYTES} bytes, got {size}")
    if not prompt.strip():
        raise Declined("prompt_context must not be blank")
    if (size := len(prompt.encode())) > MAX_PROMPT_BYTES:
        raise Declined(f"prompt_context must have at most {MAX_PROMPT_BYTES} bytes, got {size}")
    if not 1 <= tokens <= MAX_MIN_TOKENS:
        raise Declined(f"min_tokens must be 1 to {MAX_MIN_TOKENS}, got {tokens}")
    return Work(request_id, prompt, tokens)


def _new_tokens(fields: Mapping[str, Any]) -> int:
    tokens = fields.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    if not _is_whole(tokens) or not 1 <= tokens <= MAX_NEW_TOKENS:
        raise Refused(422, f"max_new_tokens must be a whole number from 1 to {MAX_NEW_TOKENS}, got {tokens!r:.40}")
    return int(tokens)


def _text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if value is None and name not in fields:
        raise Refused(422, f"{name} is missing")
    if not isinstance(value, str):
        raise Refused(422, f"{name} must be a text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:  # an escape can name half of a surrogate pair
        raise Refused(400, f"{name} holds a lone surrogate, which is no text") from None
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _no_json(constant: str) -> Never:
    raise ValueError(f"{constant} is no JSON")
