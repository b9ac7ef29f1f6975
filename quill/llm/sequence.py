"""One sequence of a run: a backend's columns in, journal entries out, until it has ended."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from quill import generation
from quill.llm.backend import Candidate, ModelInfo, Tokens
from quill.llm.journal import Entry, TokenEntry
from quill.llm.text import TextAssembler
from quill.proto import Finish, FinishReason, GenerateRequest, SequenceDone, Token, TopLogprob


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
            special_text=request.HasField("skip_special_tokens") and not request.skip_special_tokens,
        )


class Sequence:
    """Gives each token its text and place, and decides where the sequence ends if the backend does not.

    Args:
        sequence_id: Its number in the run.
        shape: What the request asks of it.
    """

    def __init__(self, sequence_id: int, shape: Shape) -> None:
        self.sequence_id = sequence_id
        self.tokens = 0
        """How many tokens it has, those included that wait for their text."""
        self.ended = False
        self.cut = False
        """Whether it was ended here, by a stop string or max_tokens, and not by the backend."""
        self._shape = shape
        self._text = TextAssembler(shape.stops, include_stop=shape.include_stop, min_tokens=shape.min_tokens)
        self._unsettled: deque[Token] = deque()

    def take(self, columns: Tokens) -> list[Entry]:
        """Take the next tokens. What comes after the end is dropped.

        Returns:
            The tokens whose text is settled now, in order; then SequenceDone, if they ended the sequence.

        Raises:
            ValueError: The columns differ in length.
        """
        _check_lengths(columns)
        entries: list[Entry] = []
        if self.ended:
            return entries
        for row, data in enumerate(columns.data):
            if self.tokens == self._shape.max_tokens:
                return entries + self._cut()
            special = columns.special is not None and columns.special[row]
            self._unsettled.append(self._token(columns, row, special=special))
            self.tokens += 1
            entries += self._settle(self._text.push(b"" if special and not self._shape.special_text else data))
            if self._text.matched is not None:
                return entries + self._cut()
        if self.tokens == self._shape.max_tokens and not self._shape.ends_itself:
            entries += self._cut()
        return entries

    def end(self, finish: generation.Finish | None = None) -> list[Entry]:
        """End the sequence, with the backend's account of it where there is one. Once: then nothing more comes.

        Returns:
            The tokens that waited for their text, then SequenceDone.
        """
        if self.ended:
            return []
        self.ended = True
        entries = self._settle(self._text.finish())
        return [*entries, SequenceDone(sequence_id=self.sequence_id, finish=self._finish(finish))]

    def _cut(self) -> list[Entry]:
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

    def _settle(self, texts: list[str]) -> list[Entry]:
        entries: list[Entry] = []
        for text in texts:
            token = self._unsettled.popleft()
            token.text = text
            entries.append(TokenEntry(self.sequence_id, token))
        return entries

    def _token(self, columns: Tokens, row: int, *, special: bool) -> Token:
        token = Token(position=self.tokens, data=columns.data[row])
        if columns.ids is not None:
            token.id = columns.ids[row]
        if special:
            token.is_special = True
        if self._shape.candidates is not None:
            if columns.logprobs is not None:
                token.logprob = columns.logprobs[row]
            if columns.top_logprobs is not None:
                token.top_logprobs.extend(map(_top_logprob, columns.top_logprobs[row][: self._shape.candidates]))
        return token


def _check_lengths(columns: Tokens) -> None:
    for name in ("ids", "logprobs", "top_logprobs", "special"):
        column = getattr(columns, name)
        if column is not None and len(column) != len(columns.data):
            raise ValueError(f"the backend gave {len(columns.data)} tokens, and {name} for {len(column)}")


def _top_logprob(candidate: Candidate) -> TopLogprob:
    text = candidate.data.decode("utf-8", errors="replace")
    return TopLogprob(id=candidate.id, text=text, logprob=candidate.logprob, data=candidate.data)


def _as_message(finish: generation.Finish) -> Finish:
    told = Finish(reason=FinishReason.ValueType(finish.reason.value))
    if finish.stop_text is not None:
        told.stop_text = finish.stop_text
    if finish.stop_token_id is not None:
        told.stop_token_id = finish.stop_token_id
    return told
