"""A streamed generation put together from its messages: positions checked, what was seen before dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quill.client.llm.sequence import UNFINISHED, Sequence
from quill.errors import Code, DataLoss, RpcError
from quill.generation import (
    Choice,
    Delta,
    Finish,
    FinishReason,
    Generation,
    StreamInterrupted,
    Timings,
    ToolCall,
    Usage,
)
from quill.token import Token

if TYPE_CHECKING:
    from quill import proto
    from quill.wire.columns import Row, Rows


class Fold:
    """What has arrived of one generation.

    Args:
        request_id: The id that the client asked under.
    """

    __slots__ = (
        "_began",
        "_first",
        "_sequences",
        "completed",
        "epoch",
        "model",
        "position",
        "prompt_tokens",
        "request_id",
        "resumable",
        "seed",
        "timings",
        "usage",
    )

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.model = ""
        self.seed: int | None = None
        self.usage: Usage | None = None
        self.timings: Timings | None = None
        self.prompt_tokens: tuple[Token, ...] = ()
        self.position = 0
        """The number of the first journal entry that has not arrived."""
        self.epoch = ""
        """The server instance that holds the run; empty until Started has arrived."""
        self.resumable = False
        """Whether the run outlives its connection."""
        self.completed = False
        self._began = False
        self._first = Sequence()
        self._sequences = {0: self._first}

    @property
    def text(self) -> str:
        """The text of sequence 0 so far."""
        return self._first.text()

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of sequence 0 so far."""
        return self._first.tokens()

    @property
    def finish(self) -> Finish | None:
        """How sequence 0 ended; None before."""
        return self._first.finish

    def add(self, message: proto.StreamGenerateResponse) -> Delta | None:
        """Take the next message. Returns what it adds to the output, where it adds something.

        Raises:
            DataLoss: Entries are missing.
        """
        self._began = True
        event = message.WhichOneof("event")
        if event == "progress":  # not an entry
            return None
        entries = max(1, len(message.delta.tokens.tokens)) if event == "delta" else 1
        seen = self._advance(message.position, entries)
        if seen >= entries:
            return None
        match event:
            case "started":
                self._start(message.started)
            case "delta":
                return self._extend(message.delta, seen)
            case "sequence_done":
                done = message.sequence_done
                self._sequence(done.sequence_id).finish = _finish(done.finish)
            case "completed":
                self._complete(message.completed)
        return None

    def add_row(self, row: Row) -> Delta | None:
        """Take the next token, told by columns. Returns what it adds, where it was not seen before.

        Raises:
            DataLoss: Entries are missing.
        """
        position, sequence_id, _, _, _ = row
        if position == self.position:
            self.position = position + 1
        elif self._advance(position, 1):
            return None
        sequence = self._sequence(sequence_id) if sequence_id else self._first
        return sequence.extend_row(row)

    def add_rows(self, rows: Rows) -> Delta | None:
        """Take the next tokens, told by columns. Returns what they add, where they add something.

        Raises:
            DataLoss: Entries are missing.
        """
        entries, sequence_id = len(rows.data), rows.sequence_id
        if rows.position == self.position:
            self.position += entries
        elif (seen := self._advance(rows.position, entries)) < entries:
            rows = rows.without(seen)
        else:
            return None
        sequence = self._sequence(sequence_id) if sequence_id else self._first
        return sequence.extend_rows(rows)

    def interruption(self, error: RpcError | None) -> RpcError:
        """What to raise when the stream ended before the generation was complete.

        Args:
            error: What ended it; None where the status was OK.

        Returns:
            ``error`` itself where nothing had arrived, so that a refusal is what it is; else a StreamInterrupted.
        """
        if error is not None and not self._began:
            return error
        tokens = self.tokens
        reason = "the stream ended with OK" if error is None else error.message
        return StreamInterrupted(
            f"the generation was cut off after {len(tokens)} tokens: {reason}",
            code=Code.OK if error is None else error.code,
            text=self.text,
            tokens=tokens,
            usage=self.usage,
            position=self.position,
            details=() if error is None else error.details,
            metadata=() if error is None else error.metadata,
            trailers=() if error is None else error.trailers,
        )

    def result(self) -> Generation:
        """The whole generation, once it is complete."""
        return Generation(
            request_id=self.request_id,
            model=self.model,
            choices=tuple(sequence.choice(number) for number, sequence in sorted(self._sequences.items())),
            usage=self.usage or Usage(),
            timings=self.timings or Timings(),
            seed=self.seed,
            prompt_tokens=self.prompt_tokens,
        )

    def _advance(self, position: int, entries: int) -> int:
        """Move on past a message. Returns how many of its entries were seen before."""
        if position > self.position:
            missing = position - self.position
            raise DataLoss(f"{missing} entries are missing: expected entry {self.position}, got entry {position}")
        seen = self.position - position
        self.position = max(self.position, position + entries)
        return seen

    def _start(self, started: proto.Started) -> None:
        self.request_id = started.request_id or self.request_id
        self.model = started.model
        self.epoch = started.epoch
        self.resumable = started.resumable
        self.seed = started.seed if started.HasField("seed") else None
        self.prompt_tokens = _tokens(started.prompt_token_batch)

    def _extend(self, message: proto.Delta, seen: int) -> Delta:
        tokens = tuple(map(Token.from_proto, message.tokens.tokens[seen:]))
        text = "".join(token.text or "" for token in tokens) if seen else message.text
        calls = tuple(map(_tool_call, message.tool_calls))
        delta = Delta(text, tokens, message.sequence_id, message.reasoning, calls)
        self._sequence(delta.sequence_id).extend(delta)
        return delta

    def _complete(self, completed: proto.Completed) -> None:
        if completed.entries != self.position:
            raise DataLoss(f"the generation has {completed.entries} entries, {self.position} have arrived")
        self.usage = usage(completed.usage)
        self.timings = _timings(completed.timings)
        self.completed = True

    def _sequence(self, number: int) -> Sequence:
        sequence = self._sequences.get(number)
        if sequence is None:
            sequence = self._sequences[number] = Sequence()
        return sequence


def generation(reply: proto.GenerateResponse) -> Generation:
    """The value of a reply to Generate."""
    in_order = sorted(reply.choices, key=lambda choice: choice.sequence_id)
    choices = tuple(map(_choice, in_order)) or (Choice(0, reply.text, (), UNFINISHED),)
    return Generation(
        request_id=reply.request_id,
        model=reply.model,
        choices=choices,
        usage=usage(reply.usage),
        timings=_timings(reply.timings),
        seed=reply.seed if reply.HasField("seed") else None,
        prompt_tokens=_tokens(reply.prompt_token_batch),
    )


def _choice(message: proto.Choice) -> Choice:
    return Choice(
        message.sequence_id,
        message.text,
        _tokens(message.tokens),
        _finish(message.finish),
        message.reasoning,
        tuple(map(_tool_call, message.tool_calls)),
    )


def _tokens(batch: proto.TokenBatch) -> tuple[Token, ...]:
    return tuple(map(Token.from_proto, batch.tokens))


def _finish(message: proto.Finish) -> Finish:
    try:
        reason = FinishReason(message.reason)
    except ValueError:  # of a newer contract
        reason = FinishReason.OTHER
    return Finish(
        reason,
        message.stop_text if message.HasField("stop_text") else None,
        message.stop_token_id if message.HasField("stop_token_id") else None,
    )


def _tool_call(message: proto.ToolCall) -> ToolCall:
    return ToolCall(message.index, message.id, message.name, message.arguments)


def usage(message: proto.Usage) -> Usage:
    """The value of a count."""
    return Usage(
        message.prompt_tokens,
        message.completion_tokens,
        message.cached_tokens,
        message.reasoning_tokens,
        message.estimated,
    )


def _timings(message: proto.Timings) -> Timings:
    return Timings(message.queue_ms, message.first_token_ms, message.total_ms)
