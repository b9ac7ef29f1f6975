"""What is wrong with a JSON document, and where in it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from quill.limits import MAX_MESSAGE_DEPTH

_MAX_SHOWN_CHARACTERS = 40
_MAX_PATH_CHARACTERS = 200


class DocumentError(Exception):
    """A value that does not fit. Collects its path while it climbs to the root; never leaves quill.wire."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self._steps: list[str] = []

    def within(self, step: str | int) -> None:
        """The value lies within this field, or within this element of a list."""
        self._steps.append(f"[{step}]" if isinstance(step, int) else f".{_cut(step)}")

    def within_entry(self, key: object) -> None:
        """The value lies within the entry of a map that has this key."""
        self._steps.append(f"[{shown(key)}]")

    @property
    def path(self) -> str:
        """Where the value is: ``messages[2].role``, ``logit_bias["7"]``; empty at the root, cut where it is long."""
        whole = "".join(reversed(self._steps)).removeprefix(".")
        return whole if len(whole) <= _MAX_PATH_CHARACTERS else "…" + whole[-_MAX_PATH_CHARACTERS:]

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self._steps else self.reason


class UnknownField(DocumentError):  # noqa: N818 - it names what is wrong, as its base says that it is an error
    """A key that names no field, and perhaps the name that was meant."""

    def __init__(self, reason: str, near: str | None) -> None:
        super().__init__(reason)
        self.near = near

    def __str__(self) -> str:
        hint = f'; did you mean "{self.near}"?' if self.near else ""
        return f"{self.reason} (at {self.path}){hint}"


class TooDeep(DocumentError):  # noqa: N818 - as UnknownField
    """Messages within messages, more than may be."""


def check_depth(depth: int) -> None:
    """Refuse a message at this depth, counted from 1, where no parser would read it."""
    if depth > MAX_MESSAGE_DEPTH:
        raise TooDeep(f"messages are nested more than {MAX_MESSAGE_DEPTH} deep")


def shown(value: object) -> str:
    """A value as an error message shows it: short, in JSON's words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f'"{_cut(value)}"'
    if isinstance(value, int) and abs(value) >= 10**_MAX_SHOWN_CHARACTERS:
        return f"an integer of more than {_MAX_SHOWN_CHARACTERS} digits"
    if isinstance(value, (int, float)):
        return str(value)
    names = {Mapping: "an object", list: "an array", tuple: "an array"}
    kind = next((name for kind, name in names.items() if isinstance(value, kind)), None)
    return kind or f"a value of type {type(value).__name__}"


def _cut(text: str) -> str:
    """A text of bounded length without characters that cannot be printed; half a surrogate pair is one of them."""
    cut = text if len(text) <= _MAX_SHOWN_CHARACTERS else text[:_MAX_SHOWN_CHARACTERS] + "…"
    return json.dumps(cut, ensure_ascii=not cut.isprintable())[1:-1]
