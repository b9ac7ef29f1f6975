"""Journal entries as the messages of the contract: streamed, or gathered into one reply."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import assert_never

from quill.errors import ResourceExhausted
from quill.llm.block import Entry, TokenEntry
from quill.proto import (
    Choice,
    Completed,
    Delta,
    GenerateResponse,
    PromptProgress,
    SequenceDone,
    Started,
    StreamGenerateResponse,
    Token,
    TokenBatch,
    ToolCall,
)


def stream_messages(position: int, entries: list[Entry] | list[PromptProgress]) -> Iterator[StreamGenerateResponse]:
    """The messages for entries that were read together. Consecutive tokens of one sequence share a message.

    Args:
        position: The number of the first entry.
        entries: The entries, or one PromptProgress, which has no number of its own.
    """
    for sequence_id, group in groupby(entries, key=_sequence_of_token):
        if sequence_id is not None:
            tokens = [entry.token for entry in group if isinstance(entry, TokenEntry)]
            yield _tokens_message(position, sequence_id, tokens)
            position += len(tokens)
            continue
        for entry in group:
            yield entry_message(position, entry)
            position += 1


def _sequence_of_token(entry: Entry | PromptProgress) -> int | None:
    return entry.sequence_id if isinstance(entry, TokenEntry) else None


def _tokens_message(position: int, sequence_id: int, tokens: list[Token]) -> StreamGenerateResponse:
    delta = Delta(sequence_id=sequence_id, text="".join(token.text for token in tokens))
    delta.tokens.tokens.extend(tokens)
    return StreamGenerateResponse(position=position, delta=delta)


def entry_message(position: int, entry: Entry | PromptProgress) -> StreamGenerateResponse:
    """The message for one entry."""
    match entry:
        case Started():
            return StreamGenerateResponse(position=position, started=entry)
        case Delta():
            return StreamGenerateResponse(position=position, delta=entry)
        case SequenceDone():
            return StreamGenerateResponse(position=position, sequence_done=entry)
        case Completed():
            return StreamGenerateResponse(position=position, completed=entry)
        case PromptProgress():
            return StreamGenerateResponse(position=position, progress=entry)
        case TokenEntry():
            return _tokens_message(position, entry.sequence_id, [entry.token])
        case _:
            assert_never(entry)


class ReplyAssembler:
    """Gathers the messages of a stream into the reply of the unary call.

    Args:
        max_bytes: How large the reply may become.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._reply = GenerateResponse()
        self._choices: dict[int, Choice] = {}
        self._texts: dict[int, list[str]] = {}

    def add(self, message: StreamGenerateResponse) -> None:
        """Take the next message.

        Raises:
            ResourceExhausted: The reply would be larger than it may be.
        """
        self._bytes += message.ByteSize()
        if self._bytes > self._max_bytes:
            raise ResourceExhausted(
                f"the reply has more than {self._bytes} bytes and max_reply_bytes is {self._max_bytes}; "
                "use StreamGenerate"
            )
        match message.WhichOneof("event"):
            case "started":
                self._start(message.started)
            case "delta":
                self._extend(message.delta)
            case "sequence_done":
                self._choice(message.sequence_done.sequence_id).finish.CopyFrom(message.sequence_done.finish)
            case "completed":
                self._reply.usage.CopyFrom(message.completed.usage)
                self._reply.timings.CopyFrom(message.completed.timings)

    def reply(self) -> GenerateResponse:
        """The reply, once Completed was added."""
        for sequence_id, choice in sorted(self._choices.items()):
            choice.text = "".join(self._texts[sequence_id])
            choice.tokens.is_final = True
            self._reply.choices.append(choice)
        self._reply.text = self._reply.choices[0].text
        return self._reply

    def _start(self, started: Started) -> None:
        self._reply.request_id = started.request_id
        self._reply.model = started.model
        if started.HasField("prompt_token_batch"):
            self._reply.prompt_token_batch.CopyFrom(started.prompt_token_batch)
        if started.HasField("seed"):
            self._reply.seed = started.seed

    def _extend(self, delta: Delta) -> None:
        choice = self._choice(delta.sequence_id)
        self._texts[delta.sequence_id].append(delta.text)
        choice.tokens.tokens.extend(delta.tokens.tokens)
        choice.reasoning += delta.reasoning
        for piece in delta.tool_calls:
            _add_piece(choice, piece)

    def _choice(self, sequence_id: int) -> Choice:
        if sequence_id not in self._choices:
            self._choices[sequence_id] = Choice(sequence_id=sequence_id, tokens=TokenBatch(sequence_id=sequence_id))
            self._texts[sequence_id] = []
        return self._choices[sequence_id]


def _add_piece(choice: Choice, piece: ToolCall) -> None:
    """Join the pieces of a tool call: id and name come with its first, arguments with any."""
    call = next((call for call in choice.tool_calls if call.index == piece.index), None)
    if call is None:
        choice.tool_calls.append(piece)
        return
    call.id = call.id or piece.id
    call.name = call.name or piece.name
    call.arguments += piece.arguments
