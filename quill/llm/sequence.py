"""One sequence of a run: a backend's columns in, journal entries out, until it has ended."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from quill import generation
from quill.llm.backend import ModelInfo, Tokens
from quill.llm.block import Entry, TokenEntry, TokenRows
from quill.llm.columns import check_lengths, text_data, token_of, wants_special_text
from quill.llm.text import TextAssembler
from quill.proto import Finish, FinishReason, GenerateRequest, SequenceDone, Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a request asks of every sequence, as far as the layer above the backend sees to it."""

    stops: tuple[str, ...]
    include_stop: bool
    min_tokens: int
    max_tokens: int
    ends_itself: bool
    """Whether the backend ends a sequence at max_tokens and says how; else it ends here, at the last token."""
    candidates: int | None
    """How many top log probabilities to tell for each token; None for no log probabilities at all."""
    special_text: bool
    """Whether control tokens add their bytes to the text."""

    @classmethod
    def of(cls, request: GenerateRequest, model: ModelInfo) -> Shape:
        """What ``request``, whose max_tokens is set, asks of a sequence."""
        return cls(
            stops=tuple(request.stop),
            include_stop=request.include_stop,
            min_tokens=request.min_tokens,
            max_tokens=request.max_tokens,
            ends_itself="max_tokens" in model.options,
            candidates=request.logprobs if request.HasField("logprobs") else None,
            special_text=wants_special_text(request),
        )


class Sequence:
    """Gives each token its text and place, and decides where the sequence ends if the backend does not.

    An echo takes the first positions, and the output those after it: the text of the sequence is the prompt's and
    then, as without an echo, the output's. Nothing else of the sequence changes: the counts are of the output, and
    stops are looked for in it alone.

    Args:
        sequence_id: Its number in the run.
        shape: What the request asks of it.
        echo: The tokens of the prompt that stand before the output, numbered from 0. Never changed from now on.
    """

    def __init__(self, sequence_id: int, shape: Shape, echo: Collection[Token] = ()) -> None:
        self.sequence_id = sequence_id
        self.tokens = 0
        """How many tokens the output has, those included that wait for their text."""
        self.ended = False
        self.cut = False
        """Whether it was ended here, by a stop string or max_tokens, and not by the backend."""
        self._shape = shape
        self._text = TextAssembler(shape.stops, include_stop=shape.include_stop, min_tokens=shape.min_tokens)
        self._unsettled: deque[Token] = deque()
        self._incomplete = b""
        """What a decoder of the rows so far has of a character that is not complete."""
        self._echo = echo
        self.first_position = len(echo)
        """The place of the first token of the output."""
        self.tells_logprobs = shape.candidates is not None

    def begin(self) -> list[Entry | TokenRows]:
        """The echo, once; then nothing. It comes before everything else of the sequence."""
        echo, self._echo = self._echo, ()
        return [TokenEntry(self.sequence_id, token) for token in echo]

    def plain_left(self) -> int:
        """How many of the next tokens need no look at them if they are whole characters: only ``tokens`` counts up."""
        shape = self._shape
        if shape.stops or self._unsettled or self._incomplete or self._echo or self.ended:
            return 0
        return shape.max_tokens - (not shape.ends_itself) - self.tokens

    def take_rows(self, columns: Tokens) -> TokenRows | None:
        """Take the next tokens where that is plain: whole characters, nothing to look for in them, and not the end.

        Returns:
            The tokens; None where nothing was taken, and ``take`` has to look at each.

        Raises:
            ValueError: The columns differ in length.
        """
        data = columns.data
        count = len(data)
        if not 0 < count <= self.plain_left() or columns.special is not None:
            return None
        check_lengths(columns)
        logprobs: list[float] | None = None
        if self.tells_logprobs:
            logprobs = [logprob for logprob in columns.logprobs or () if logprob is not None] or None
            if columns.top_logprobs is not None or (logprobs is not None and len(logprobs) < count):
                return None
        joined = b"".join(data)
        if not joined.isascii() and codecs.utf_8_decode(joined, "replace", False)[1] < len(joined):
            return None
        place = self.first_position + self.tokens
        self.tokens += count
        return TokenRows(self.sequence_id, place, [*map(bytes, data)], columns.ids, logprobs)

    def take(self, columns: Tokens) -> list[Entry | TokenRows]:
        """Take the next tokens. What comes after the end is dropped.

        Returns:
            The tokens whose text is settled now, in order; then SequenceDone, if they ended the sequence.

        Raises:
            ValueError: The columns differ in length.
        """
        check_lengths(columns)
        entries = self.begin()
        if not self.ended:
            entries += self._take_each(columns)
        return entries

    def _take_each(self, columns: Tokens) -> list[Entry | TokenRows]:
        entries: list[Entry | TokenRows] = []
        for row in range(len(columns.data)):
            if self.tokens == self._shape.max_tokens:
                return entries + self._cut()
            position = self.first_position + self.tokens
            self._unsettled.append(token_of(columns, row, position=position, candidates=self._shape.candidates))
            self.tokens += 1
            entries += self._settle(self._text.push(text_data(columns, row, special_text=self._shape.special_text)))
            if self._text.matched is not None:
                return entries + self._cut()
        if self._must_end():
            entries += self._cut()
        return entries

    def end(self, finish: generation.Finish | None = None) -> list[Entry | TokenRows]:
        """End the sequence, with the backend's account of it where there is one. Once: then nothing more comes.

        Returns:
            The echo where nothing came after it, the tokens that waited for their text, then SequenceDone.
        """
        if self.ended:
            return []
        self.ended = True
        entries = self.begin() + self._settle(self._text.finish())
        return [*entries, SequenceDone(sequence_id=self.sequence_id, finish=self._finish(finish))]

    def _cut(self) -> list[Entry | TokenRows]:
        self.cut = True
        return self.end()

    def _finish(self, told: generation.Finish | None) -> Finish:
        if self._text.matched is not None:
            return Finish(reason=FinishReason.FINISH_REASON_STOP, stop_text=self._text.matched)
        if told is not None and told.reason is not generation.FinishReason.UNSPECIFIED:
            return _as_message(told)
        if self.tokens >= self._shape.max_tokens:
            return Finish(reason=FinishReason.FINISH_REASON_LENGTH)
        return Finish(reason=FinishReason.FINISH_REASON_STOP)

    def _must_end(self) -> bool:
        return self.tokens == self._shape.max_tokens and not self._shape.ends_itself

    def _settle(self, texts: list[str]) -> list[Entry | TokenRows]:
        entries: list[Entry | TokenRows] = []
        for text in texts:
            token = self._unsettled.popleft()
            so_far = self._incomplete + token.data
            piece, used = codecs.utf_8_decode(so_far, "replace", False)
            if piece == text and not token.is_special and not token.top_logprobs:
                entries.append(_row(self.sequence_id, token, self._incomplete))
                self._incomplete = so_far[used:]
            else:
                token.text = text
                entries.append(TokenEntry(self.sequence_id, token))
                self._incomplete = b""
        return entries


def _row(sequence_id: int, token: Token, carried: bytes) -> TokenRows:
    ids = [token.id] if token.HasField("id") else None
    logprobs = [token.logprob] if token.HasField("logprob") else None
    return TokenRows(sequence_id, token.position, [token.data], ids, logprobs, carried)


def _as_message(finish: generation.Finish) -> Finish:
    told = Finish(reason=FinishReason.ValueType(finish.reason.value))
    if finish.stop_text is not None:
        told.stop_text = finish.stop_text
    if finish.stop_token_id is not None:
        told.stop_token_id = finish.stop_token_id
    return told
