"""Values as people write them, for messages that name an option and what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from itertools import islice
from typing import Any

from google.protobuf.message import Message

_SHOWN = 80
"""Characters of a value in a message."""

_ITEMS_SHOWN = 4


def shown(value: Any) -> str:
    """A value of the contract, shortened before it is formatted: it may have megabytes."""
    match value:
        case float():
            return f"{value:g}"  # 0.1 as float32 is 0.10000000149011612
        case bool() | int():
            return str(value).lower()
        case str():
            return repr(value) if len(value) <= _SHOWN else repr(value[:_SHOWN]) + "…"
        case Message():
            size = value.ByteSize()
            return " ".join(str(value).split()) if size <= _SHOWN else f"<{size} bytes>"
        case Mapping():
            first = ", ".join(f"{key}: {shown(value[key])}" for key in islice(value, _ITEMS_SHOWN))
            return "{" + first + _rest(value) + "}"
        case _:
            return "[" + ", ".join(map(shown, value[:_ITEMS_SHOWN])) + _rest(value) + "]"


def _rest(items: Sized) -> str:
    return f", … {len(items)} in all" if len(items) > _ITEMS_SHOWN else ""
