"""How the sidecar behaves as long as nobody says otherwise: what its network writes, how fast, and in which words."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from quill.errors import InvalidUsage

MAX_TOKENS = 4096
MAX_PEERS = 8


def _number(default: Any, low: float, high: float, *, whole: bool = False, optional: bool = False) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "whole": whole, "optional": optional})


def _choice(default: str, *others: str) -> Any:
    return field(default=default, metadata={"choices": (default, *others)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """The switches that stay as they are set. Where nothing else is said, all dialects have them."""

    tokens: int | None = _number(None, 0, MAX_TOKENS, whole=True, optional=True)
    """How many tokens the model writes, whatever a request asks; None for what it asks."""
    tokens_per_s: float | None = _number(None, 0.01, 1e6, optional=True)
    """The pace; None gives tokens as fast as the model writes them. A draft comes when all of it is written."""
    first_token_delay_ms: float = _number(0.0, 0, 3_600_000)
    """How long the network thinks before its first token."""
    peers: int = _number(1, 0, MAX_PEERS, whole=True)
    """How many peers answer each request; 0 is a network where nobody listens. A has one answer at most."""
    text_field: str = _choice("token", "text", "delta", "draft_text")
    """What A calls a token."""
    end: str = _choice("event:done", "event:eos", "event:completed", "done", "eos", "completed", "none")
    """How A says the end: as an event, as a field that is true, or not at all."""
    end_with_token: bool = False
    """Whether A says the end in the object of the last token."""
    number_field: str = _choice("none", "seq", "index")
    """What numbers the tokens of A, from 0, and the frames of C."""
    with_request_id: bool = False
    """Whether A's results name their request."""
    websocket_limit_s: float = _number(30.0, 0.01, 3600)
    """When C says that a stream is done, whatever it has."""
    stalled: bool = False
    """Whether nothing leaves the queue of requests, which fills up."""
    fallback: str = _choice("never", "draft", "text")
    """Whether C answers /broadcast-work at once, with a draft or with plain text as the result."""
    result_ttl_s: float = _number(60.0, 0.01, 3600)
    """How long A keeps results that nobody asks for."""

    @classmethod
    def read(cls, values: Mapping[str, object]) -> Self:
        """The behaviour with these switches set.

        Raises:
            InvalidUsage: There is no such switch, or it has no such value.
        """
        known = {one.name: one for one in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise InvalidUsage(f"there is no switch {name!r}; there are {', '.join(known)}")
            _check(known[name], value)
        return cls(**dict(values))  # type: ignore[arg-type]


def assignments(texts: list[str]) -> dict[str, object]:
    """The values in KEY=VALUE texts, as on a command line. A value is JSON, or else a plain text.

    Raises:
        InvalidUsage: A text has no =.
    """
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidUsage(f"{text!r} is no KEY=VALUE")
        try:
            values[key.strip()] = json.loads(value)
        except (ValueError, RecursionError):
            values[key.strip()] = value.strip()
    return values


def _check(known: dataclasses.Field[Any], value: object) -> None:
    rule = known.metadata
    if "choices" in rule:
        allowed, fits = " or ".join(rule["choices"]), value in rule["choices"]
    elif "low" in rule:
        kind = "a whole number" if rule["whole"] else "a number"
        allowed = f"{kind} from {rule['low']:g} to {rule['high']:g}" + (" or null" if rule["optional"] else "")
        fits = (value is None and rule["optional"]) or _is_number(value, rule)
    else:
        allowed, fits = "true or false", isinstance(value, bool)
    if not fits:
        raise InvalidUsage(f"{known.name} must be {allowed}, got {value!r:.80}")


def _is_number(value: object, rule: Mapping[str, Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if rule["whole"] and not isinstance(value, int):
        return False
    return math.isfinite(value) and bool(rule["low"] <= value <= rule["high"])
