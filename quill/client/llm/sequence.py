"""One sequence of a generation as far as it has come: columns as they arrived, and tokens once somebody wants them."""

from __future__ import annotations

from array import array
from codecs import utf_8_decode
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any

from quill.generation import Choice, Delta, Finish, FinishReason, ToolCall
from quill.token.token import Token, tokens_of_columns

if TYPE_CHECKING:
    from quill.wire.columns import Row, Rows

UNFINISHED = Finish(FinishReason.UNSPECIFIED)


class _Pieces:
    """Bytes of known lengths, one after the other. Objects for all would take eight times the memory."""

    __slots__ = ("_joined", "_lengths")

    def __init__(self, joined: bytearray, lengths: array[int]) -> None:
        self._joined = joined
        self._lengths = lengths

    def __iter__(self) -> Iterator[bytes]:
        return map(BytesIO(self._joined).read, self._lengths)


class Sequence:
    """Puts together what comes of one sequence. The text of columns is what one decoder makes of their bytes."""

    __slots__ = (
        "_begin",
        "_calls",
        "_ids",
        "_incomplete",
        "_joined",
        "_lengths",
        "_logprobs",
        "_reasoning",
        "_texts",
        "_tokens",
        "_unmade",
        "finish",
    )

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self._texts: list[str] = []
        self._tokens: list[Token] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, ToolCall] = {}
        self._incomplete = b""
        """What a decoder has of a character that is not complete, after all that has come."""
        self._begin_columns(0, has_ids=False, has_logprobs=False)

    @property
    def place(self) -> int:
        """The place of the next token."""
        return self._begin + len(self._lengths)

    def extend_row(self, row: Row) -> Delta:
        """Take the next token. Returns what it adds."""
        _, sequence_id, id_, logprob, data = row
        ids, logprobs, lengths, before = self._ids, self._logprobs, self._lengths, self._incomplete
        if (id_ is None) is not (ids is None) or (logprob is None) is not (logprobs is None):
            self._turn_columns(has_ids=id_ is not None, has_logprobs=logprob is not None)
            return self.extend_row(row)
        text = self._decode(data) if before or not data.isascii() else data.decode()
        delta = Delta.of_columns(text, sequence_id, (self._begin + len(lengths), before, id_, logprob, data))
        if ids is not None and id_ is not None:
            ids.append(id_)
        if logprobs is not None and logprob is not None:
            logprobs.append(logprob)
        lengths.append(len(data))
        self._joined += data
        return delta

    def extend_rows(self, rows: Rows) -> Delta:
        """Take the next tokens. Returns what they add."""
        ids, logprobs, data = rows.ids, rows.logprobs, rows.data
        if (ids is None) is not (self._ids is None) or (logprobs is None) is not (self._logprobs is None):
            self._turn_columns(has_ids=ids is not None, has_logprobs=logprobs is not None)
        lengths, joined, before = self._lengths, b"".join(data), self._incomplete
        text = self._decode(joined) if before or not joined.isascii() else joined.decode()
        delta = Delta.of_columns(text, rows.sequence_id, (self._begin + len(lengths), before, ids, logprobs, data))
        if self._ids is not None and ids is not None:
            self._ids.extend(ids)
        if self._logprobs is not None and logprobs is not None:
            self._logprobs.extend(logprobs)
        lengths.extend(map(len, data))
        self._joined += joined
        return delta

    def extend(self, delta: Delta) -> None:
        """Take the next piece, which came as a message."""
        self._make_tokens()
        self._texts.append(delta.text)
        if delta.tokens:
            self._tokens += delta.tokens
            self._incomplete = b""
            self._begin_columns(delta.tokens[-1].position + 1, has_ids=False, has_logprobs=False)
        self._reasoning.append(delta.reasoning)
        for piece in delta.tool_calls:
            call = self._calls.get(piece.index, ToolCall(piece.index))
            self._calls[piece.index] = ToolCall(
                piece.index, call.id or piece.id, call.name or piece.name, call.arguments + piece.arguments
            )

    def text(self) -> str:
        """All of the text so far."""
        return "".join(self._texts) + utf_8_decode(self._unmade + self._joined, "replace", False)[0]

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
        if self._tokens or not self._lengths:
            return Choice(tokens=self.tokens(), **fields)
        pieces = _Pieces(self._joined, self._lengths)
        return Choice.of_columns((self._begin, self._unmade, self._ids, self._logprobs, pieces), **fields)

    def _decode(self, data: bytes) -> str:
        data = self._incomplete + data
        text, used = utf_8_decode(data, "replace", False)
        self._incomplete = data[used:]
        return text

    def _make_tokens(self) -> None:
        """Turn the columns into tokens."""
        if self._lengths:
            self._turn_columns(has_ids=self._ids is not None, has_logprobs=self._logprobs is not None)

    def _turn_columns(self, *, has_ids: bool, has_logprobs: bool) -> None:
        """Go on with other columns; those that are there become tokens."""
        pieces = _Pieces(self._joined, self._lengths)
        made = tokens_of_columns(self._begin, self._unmade, self._ids, self._logprobs, pieces)
        self._tokens += made
        self._texts += [token.text or "" for token in made]
        self._begin_columns(self.place, has_ids=has_ids, has_logprobs=has_logprobs)

    def _begin_columns(self, place: int, *, has_ids: bool, has_logprobs: bool) -> None:
        """Have columns without a token."""
        self._begin = place
        """The place of their first token."""
        self._unmade = self._incomplete
        """What a decoder has of a character that is not complete, before them."""
        self._ids = array("I") if has_ids else None
        self._logprobs = array("f") if has_logprobs else None
        self._joined = bytearray()
        """The raw bytes of their tokens."""
        self._lengths = array("I")
        """How many each token has."""
