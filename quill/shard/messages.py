"""The JSON that goes between a client and a sidecar, in all three dialects. No socket, no clock."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quill.shard.request import MAX_DRAFT_TOKENS, ShardRequest

_TEXTS = ("token", "text", "delta", "draft_text")
_ENDS = ("done", "eos", "completed")
_KNOWN = frozenset({*_TEXTS, *_ENDS, "draft_tokens", "event", "error"})
_EXCERPT_CHARACTERS = 80
_MAX_NUMBER = 2**53
"""Beyond it, and as NaN, a number of /health says nothing."""
_NOTHING = b'{"result":null}'
_NOTHING_BYTES = 32
"""With any spaces in it that a serializer puts there."""
_SECRET = re.compile(
    r"(?i)(bearer\s+|(?:api[-_]?key|authorization|password|secret|cookie)[\"']?\s*[:=]\s*[\"']?(?:bearer\s+)?)[^\s\"',;}]+"
)


class Malformed(Exception):  # noqa: N818 - it is what was read
    """A reply is not what the protocol says. The text is for people."""


@dataclass(frozen=True, slots=True)
class Item:
    """One result, or one frame: some tokens, the end, an error, or several of these."""

    texts: tuple[str, ...] = ()
    """The texts of tokens, none of them empty."""
    request_id: str | None = None
    peer_id: str | None = None
    number: int | None = None
    """Its place among the results of its request, from 0, where it tells one."""
    is_draft: bool = False
    """It came as ``draft_tokens``: what one peer wrote, unverified."""
    ended: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class BroadcastReply:
    """What the sidecar says to a prompt."""

    accepted: bool
    detail: str = ""
    """Why not."""
    result: Item | None = None
    """The whole answer, where the sidecar gives it at once."""
    fallback_reason: str | None = None
    """Why the answer did not come from the network."""


@dataclass(frozen=True, slots=True)
class Health:
    """What the sidecar says of itself; None where it does not."""

    status: str | None = None
    version: str | None = None
    peer_id: str | None = None
    connected_peers: int | None = None
    uptime_ms: float | None = None


def broadcast_body(request: ShardRequest, request_id: str, dialect: str) -> bytes:
    """The body of ``POST /broadcast-work``."""
    drafts = dialect in {"B", "C"}
    fields: dict[str, Any] = {} if drafts else dict(request.extra)
    fields |= {
        "request_id": request_id,
        "prompt_context": request.prompt,
        "input_token_ids": list(request.token_ids),
        # Dialect A streams and may end early. In a draft, this is how many tokens there are.
        "min_tokens": 1 if dialect == "A" else min(MAX_DRAFT_TOKENS, request.max_tokens),
        "max_new_tokens": request.max_tokens,
    }
    return _encode(fields, request)


def websocket_request(request: ShardRequest, request_id: str, dialect: str) -> bytes:
    """The first message on ``/ws/generate``, as UTF-8."""
    fields: dict[str, Any] = {} if dialect == "C" else dict(request.extra)
    fields |= {
        "request_id": request_id,
        "prompt": request.prompt,
        "input_token_ids": list(request.token_ids),
        "max_new_tokens": request.max_tokens,
        "stream": True,
    }
    return _encode(fields, request)


def parse_broadcast_reply(body: bytes) -> BroadcastReply:
    """The reply of ``POST /broadcast-work``. An empty one accepts: the documented contract does not say what it is.

    Raises:
        Malformed: It is no JSON object, or its fields have wrong types.
    """
    if not body.strip():
        return BroadcastReply(accepted=True)
    fields = _object(body)
    if fields.get("ok", True) is not True:
        detail = fields.get("detail", fields.get("error"))
        return BroadcastReply(accepted=False, detail=shown(detail) if detail is not None else "it gives no reason")
    if fields.get("error"):
        return BroadcastReply(accepted=False, detail=shown(fields["error"]))
    reason = shown(fields.get("reason") or "it gives no reason") if fields.get("fallback") else None
    return BroadcastReply(accepted=True, result=_inline(fields.get("result"), body), fallback_reason=reason)


def parse_pop_result(body: bytes) -> Item | None:
    """The reply of ``GET /pop-result``; None where there is no result yet.

    Raises:
        Malformed: It is no JSON object, has no ``result``, or that is no result.
    """
    if len(body) <= _NOTHING_BYTES and body.translate(None, b" \t\r\n") == _NOTHING:
        return None  # of most polls, some hundred a second
    fields = _object(body)
    around = _item({key: value for key, value in fields.items() if key not in {*_TEXTS, "draft_tokens"}}, body)
    if "result" not in fields:
        # An end or an error may stand alone.
        if around.ended or around.error is not None:
            return around
        raise Malformed(f"it has no result: {excerpt(body)}")
    result = fields["result"]
    if result is None:
        return around if around.ended or around.error is not None else None
    if not isinstance(result, dict):
        raise Malformed(f"its result is no object: {excerpt(body)}")
    if not _KNOWN & result.keys():
        raise Malformed(f"its result holds no token, no end and no error: {excerpt(body)}")
    item = _item(result, body)
    if around.ended or around.error is not None:
        return Item(
            texts=item.texts,
            request_id=item.request_id if item.request_id is not None else around.request_id,
            peer_id=item.peer_id,
            number=item.number,
            is_draft=item.is_draft,
            ended=item.ended or around.ended,
            error=item.error if item.error is not None else around.error,
        )
    return item


def parse_frame(frame: str | bytes) -> Item:
    """One message of a WebSocket.

    Raises:
        Malformed: It is no JSON object, or says nothing.
    """
    body = frame if isinstance(frame, bytes) else frame.encode("utf-8", "replace")
    fields = _object(body)
    if not _KNOWN & fields.keys():
        raise Malformed(f"it holds no token, no end and no error: {excerpt(body)}")
    return _item(fields, body)


def parse_health(body: bytes) -> Health:
    """The reply of ``GET /health``. Fields of other types than expected are left out.

    Raises:
        Malformed: It is no JSON object.
    """
    fields = _object(body)

    def text(name: str) -> str | None:
        return shown(fields[name]) if isinstance(fields.get(name), str) else None

    def number(name: str) -> Any:
        value = fields.get(name)
        sound = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER
        return value if sound else None

    peers = number("connected_peers")
    return Health(
        text("status"), text("version"), text("peer_id"), int(peers) if peers is not None else None, number("uptime_ms")
    )


def excerpt(body: bytes) -> str:
    """The beginning of a body as an error may show it: one printable line, without what looks like a secret."""
    return repr(shown(body[: 16 * _EXCERPT_CHARACTERS].decode("utf-8", "replace")))


def shown(value: object) -> str:
    """Text of the sidecar's as an error may show it."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value)
        except RecursionError:  # read, but too deep to be written
            return "something deep"
    value = value[: 16 * _EXCERPT_CHARACTERS]  # masked before it is cut to size: half a secret is one, too
    line = " ".join("".join(one if one.isprintable() else " " for one in value).split())
    line = _SECRET.sub(r"\1***", line)
    return line if len(line) <= _EXCERPT_CHARACTERS else line[:_EXCERPT_CHARACTERS] + "…"


def _encode(fields: dict[str, Any], request: ShardRequest) -> bytes:
    if request.model:
        fields["model"] = request.model
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise Malformed(f"it is no JSON: {excerpt(body)}") from None
    if not isinstance(value, dict):
        raise Malformed(f"it is no JSON object: {excerpt(body)}")
    return value


def _inline(result: object, body: bytes) -> Item | None:
    """The answer in the reply of /broadcast-work, which is a whole one."""
    if result is None:
        return None
    if isinstance(result, str):
        return Item(texts=_filled([result]), ended=True)
    if not isinstance(result, dict):
        raise Malformed(f"its result is neither an object nor a text: {excerpt(body)}")
    item = _item(result, body)
    return Item(texts=item.texts, peer_id=item.peer_id, is_draft=item.is_draft, ended=True, error=item.error)


def _item(fields: Mapping[str, Any], body: bytes) -> Item:
    drafts = fields.get("draft_tokens")
    event = fields.get("event")
    if drafts is not None:
        if not isinstance(drafts, list) or not all(isinstance(one, str) for one in drafts):
            raise Malformed(f"its draft_tokens are no list of texts: {excerpt(body)}")
        texts = drafts
    else:
        texts = [text for name in _TEXTS if (text := _text(fields, name, body)) is not None][:1]
    return Item(
        texts=_filled(texts),
        request_id=_text(fields, "request_id", body),
        peer_id=_text(fields, "peer_id", body),
        number=_number(fields, body),
        is_draft=drafts is not None,
        ended=event in _ENDS or any(fields.get(name) for name in _ENDS),
        error=_error(fields),
    )


def _text(fields: Mapping[str, Any], name: str, body: bytes) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise Malformed(f"its {name} is no text: {excerpt(body)}")
    return value


def _number(fields: Mapping[str, Any], body: bytes) -> int | None:
    for name in ("seq", "index"):
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise Malformed(f"its {name} is no whole number from 0: {excerpt(body)}")
        return value
    return None


def _error(fields: Mapping[str, Any]) -> str | None:
    if error := fields.get("error"):
        return shown(error)
    if fields.get("event") == "error":
        return shown(fields.get("message") or fields.get("detail") or "it gives no reason")
    return None


def _filled(texts: list[str]) -> tuple[str, ...]:
    return tuple(_whole(text) for text in texts if text)


def _whole(text: str) -> str:
    """JSON can name half of a surrogate pair, which is no text."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
