"""One sequence of a generation as far as it has come: columns as they arrived, and tokens once somebody wants them."""

from __future__ import annotations

from array import array
from codecs import utf_8_decode
from functools import partial

from quill.generation import Choice, Delta, Finish, FinishReason, ToolCall
from quill.token import Token
from quill.wire.columns import Rows

UNFINISHED = Finish(FinishReason.UNSPECIFIED)


class Sequence:
    """Puts together what comes of one sequence. The text of columns is what one decoder makes of their bytes."""

    __slots__ = (
        "_calls",
        "_data",
        "_ids",
        "_incomplete",
        "_kind",
        "_lengths",
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
        self._ids: array[int] | None = None
        """Of the columns of which no tokens were made, as those after it."""
        self._logprobs: array[float] | None = None
        self._kind = False, False
        """Whether ids, and whether log probabilities are missing there."""
        self._lengths = array("I")
        self._data = bytearray()
        self._unmade = b""
        """What a decoder has of a character that is not complete, before these columns."""
        self._incomplete = b""
        """The same after them."""

    def extend_rows(self, rows: Rows) -> Delta:
        """Take the next tokens, as columns. Returns what they add."""
        data, place, before = rows.data, self.place, self._incomplete
        if not before and data.isascii():
            text = data.decode()
        else:
            data = before + data
            text, used = utf_8_decode(data, "replace", False)
            self._incomplete = data[used:]
        if self._lengths and (rows.ids is None, rows.logprobs is None) == self._kind:
            if self._ids is not None and rows.ids is not None:
                self._ids += rows.ids
            if self._logprobs is not None and rows.logprobs is not None:
                self._logprobs += rows.logprobs
            self._lengths += rows.lengths
            self._data += rows.data
        else:
            self._make_tokens()
            self._ids = None if rows.ids is None else rows.ids[:]
            self._logprobs = None if rows.logprobs is None else rows.logprobs[:]
            self._kind = rows.ids is None, rows.logprobs is None
            self._lengths, self._data, self._unmade = rows.lengths[:], bytearray(rows.data), before
        self.place = place + len(rows.lengths)
        return Delta.of_columns(text, rows.sequence_id, partial(_tokens, place, before, rows))

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
        return "".join(self._texts) + utf_8_decode(self._unmade + self._data, "replace", False)[0]

    def tokens(self) -> tuple[Token, ...]:
        """All tokens so far."""
        self._make_tokens()
        return tuple(self._tokens)

    def choice(self, sequence_id: int) -> Choice:
        """The sequence once nothing more comes."""
        return Choice.of_columns(
            sequence_id=sequence_id,
            text=self.text(),
            make_tokens=self.tokens,
            finish=self.finish or UNFINISHED,
            reasoning="".join(self._reasoning),
            tool_calls=tuple(call for _, call in sorted(self._calls.items())),
        )

    def _make_tokens(self) -> None:
        """Turn the columns into tokens."""
        if self._lengths:
            place = self.place - len(self._lengths)
            columns = Rows(0, 0, 0, self._ids, self._logprobs, self._lengths, bytes(self._data))
            made = _tokens(place, self._unmade, columns)
            self._tokens += made
            self._texts += [token.text or "" for token in made]
            self._lengths, self._data, self._unmade = array("I"), bytearray(), b""


def _tokens(place: int, incomplete: bytes, rows: Rows) -> tuple[Token, ...]:
    """The tokens of columns.

    Args:
        place: The place of the first.
        incomplete: The bytes of a character that is not complete, before them.
        rows: The columns.
    """
    tokens, begin = [], 0
    data, ids, logprobs = rows.data, rows.ids, rows.logprobs
    for row, length in enumerate(rows.lengths):
        piece = data[begin : begin + length]
        begin += length
        if not incomplete and piece.isascii():
            text = piece.decode()
        else:
            text, used = utf_8_decode(incomplete + piece, "replace", False)
            incomplete = (incomplete + piece)[used:]
        id_ = None if ids is None else ids[row]
        logprob = None if logprobs is None else logprobs[row]
        tokens.append(Token.from_columns(id_, place + row, text, logprob, piece))
    return tuple(tokens)
