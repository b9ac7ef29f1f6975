"""One sequence of a generation as far as it has come: columns as they arrived, and tokens once somebody wants them."""

from __future__ import annotations

from codecs import utf_8_decode
from typing import TYPE_CHECKING, Any

from quill.generation import Choice, Delta, Finish, FinishReason, ToolCall
from quill.token.token import Token, tokens_of_columns

if TYPE_CHECKING:
    from quill.wire.columns import Rows

UNFINISHED = Finish(FinishReason.UNSPECIFIED)


class Sequence:
    """Puts together what comes of one sequence. The text of columns is what one decoder makes of their bytes."""

    __slots__ = (
        "_calls",
        "_data",
        "_ids",
        "_incomplete",
        "_logprobs",
        "_reasoning",
        "_texts",
        "_tokens",
        "_unmade",
        "finish",
        "place",
    )

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self.place = 0
        """The place of the next token."""
        self._texts: list[str] = []
        self._tokens: list[Token] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, ToolCall] = {}
        self._ids: list[int] | None = None
        """Of the columns of which no tokens were made, as those after it."""
        self._logprobs: list[float] | None = None
        self._data: list[bytes] = []
        self._unmade = b""
        """What a decoder has of a character that is not complete, before these columns."""
        self._incomplete = b""
        """The same after them."""

    def extend_rows(self, rows: Rows) -> Delta:
        """Take the next tokens, as columns. Returns what they add."""
        _, _, sequence_id, ids, logprobs, data = rows
        place, before = self.place, self._incomplete
        joined = data[0] if len(data) == 1 else b"".join(data)
        if not before and joined.isascii():
            text = joined.decode()
        else:
            joined = before + joined
            text, used = utf_8_decode(joined, "replace", False)
            self._incomplete = joined[used:]
        if (
            not self._data
            or (ids is None) is not (self._ids is None)
            or (logprobs is None) is not (self._logprobs is None)
        ):
            self._make_tokens()
            self._ids = None if ids is None else []
            self._logprobs = None if logprobs is None else []
            self._unmade = before
        if self._ids is not None and ids is not None:
            self._ids += ids
        if self._logprobs is not None and logprobs is not None:
            self._logprobs += logprobs
        self._data += data
        self.place = place + len(data)
        return Delta.of_columns(text, sequence_id, (place, before, ids, logprobs, data))

    def extend(self, delta: Delta) -> None:
        """Take the next piece, which came as a message."""
        self._make_tokens()
        self._texts.append(delta.text)
        if delta.tokens:
            self._tokens += delta.tokens
            self.place = delta.tokens[-1].position + 1
            self._incomplete = b""
        self._reasoning.append(delta.reasoning)
        for piece in delta.tool_calls:
            call = self._calls.get(piece.index, ToolCall(piece.index))
            self._calls[piece.index] = ToolCall(
                piece.index, call.id or piece.id, call.name or piece.name, call.arguments + piece.arguments
            )

    def text(self) -> str:
        """All of the text so far."""
        return "".join(self._texts) + utf_8_decode(self._unmade + b"".join(self._data), "replace", False)[0]

    def tokens(self) -> tuple[Token, ...]:
        """All tokens so far."""
        self._make_tokens()
        return tuple(self._tokens)

    def choice(self, sequence_id: int) -> Choice:
        """The sequence once nothing more comes."""
        fields: dict[str, Any] = {
            "sequence_id": sequence_id,
            "text": self.text(),
            "finish": self.finish or UNFINISHED,
            "reasoning": "".join(self._reasoning),
            "tool_calls": tuple(call for _, call in sorted(self._calls.items())),
        }
        if self._tokens or not self._data:
            return Choice(tokens=self.tokens(), **fields)
        place = self.place - len(self._data)
        return Choice.of_columns((place, self._unmade, self._ids, self._logprobs, self._data), **fields)

    def _make_tokens(self) -> None:
        """Turn the columns into tokens."""
        if self._data:
            place = self.place - len(self._data)
            made = tokens_of_columns(place, self._unmade, self._ids, self._logprobs, self._data)
            self._tokens += made
            self._texts += [token.text or "" for token in made]
            self._data, self._unmade = [], b""
