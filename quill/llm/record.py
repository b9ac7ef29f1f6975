"""What a backend tells, written into a run's journal: Started, tokens with their text, ends, and the account."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import assert_never

from quill.llm.backend import (
    BackendEvent,
    Finished,
    ModelInfo,
    Note,
    Progress,
    PromptTokens,
    Reasoning,
    Seeded,
    Tokens,
    ToolCallDelta,
    UsageReport,
)
from quill.llm.block import Entry, TokenRows
from quill.llm.columns import whole_tokens
from quill.llm.journal import Journal
from quill.llm.sequence import Sequence, Shape
from quill.llm.usage import UsageMeter
from quill.proto import (
    Completed,
    Delta,
    GenerateRequest,
    PromptProgress,
    Started,
    Timings,
    Token,
    TokenBatch,
    ToolCall,
)


class Record:
    """Writes the events of one run, in the order of the contract, from Started to Completed.

    Started is told at once, or with the backend's first event where that will tell the seed. Where the request has
    prompt_logprobs, it waits for PromptTokens.

    Args:
        journal: Where the entries go; empty.
        request: The request as prepared for the backend, with request_id and max_tokens filled in.
        model: The model that runs.
        epoch: The server instance, told in Started.
        arrived_s: When the request arrived, by the clock of the event loop.
        echo: The tokens of the prompt that stand before every output.
    """

    def __init__(
        self,
        journal: Journal,
        request: GenerateRequest,
        model: ModelInfo,
        *,
        epoch: str,
        arrived_s: float,
        echo: Collection[Token] = (),
    ) -> None:
        self._journal = journal
        self._request = request
        resumable = request.stream_options.resume_ttl_ms > 0
        self._started = Started(request_id=request.request_id, model=model.name, epoch=epoch, resumable=resumable)
        shape = Shape.of(request, model)
        self.sequences = [Sequence(number, shape, echo) for number in range(max(1, request.n))]
        self.notes: dict[tuple[str, str], None] = {}
        """What the caller should know besides, as trailing metadata, in order."""
        self._usage = UsageMeter(request)
        self._queue_ms = 0.0
        """From the arrival to the backend's first word; 0 before it. A message would take half a kilobyte."""
        self._first_token_ms = 0.0
        """From the arrival to the first token; 0 before it."""
        self._loop = asyncio.get_running_loop()
        self._arrived_s = arrived_s
        if request.HasField("seed"):
            self._started.seed = request.seed
        if echo and not request.HasField("prompt_logprobs"):
            self._started.prompt_token_batch.tokens.extend(echo)
        tells_seed = "seed" in model.options and not request.HasField("seed")
        if not tells_seed and not request.HasField("prompt_logprobs"):
            self._start()

    @property
    def has_tokens(self) -> bool:
        """Whether the backend has told a token."""
        return self._first_token_ms > 0

    async def write_prompt(self, event: PromptTokens) -> None:
        """Tell the tokens of the prompt in Started. Waits only for a thread of its own, where they are many.

        Raises:
            ValueError: Started has been told, or the columns differ in length.
        """
        if self._journal.end:
            raise ValueError("the backend told of the prompt's tokens after the start of the generation")
        self._note_beginning(event)
        tokens = await whole_tokens(event.tokens, candidates=self._request.prompt_logprobs)
        self._started.prompt_token_batch.CopyFrom(TokenBatch(tokens=tokens))
        self._start()

    def write(self, event: BackendEvent, sequences: list[Sequence]) -> None:
        """Write one event of a start of the backend, other than PromptTokens.

        Args:
            event: What the backend told.
            sequences: The sequences that it was asked for, in its own numbering.

        Raises:
            ValueError: The event is of a sequence that was not asked for, or its columns differ in length.
        """
        if not self.has_tokens:
            self._start_with(event)
            self._note_beginning(event)
        match event:
            case Tokens():
                self._write_tokens(event, _pick(event.sequence, sequences))
            case Finished():
                self._append(_pick(event.sequence, sequences).end(event.finish))
            case Reasoning() | ToolCallDelta():
                sequence = _pick(event.sequence, sequences)
                if not sequence.ended:
                    self._append([*sequence.begin(), _delta(sequence.sequence_id, event)])
            case UsageReport():
                self._usage.tell(event.usage)
            case Progress():
                if self._journal.end:
                    self._journal.note(_progress(event))
            case Note():
                self.notes[event.key, event.value] = None
            case Seeded() | PromptTokens():
                pass
            case _:
                assert_never(event)

    def _write_tokens(self, event: Tokens, sequence: Sequence) -> None:
        if event.data and not self.has_tokens:
            self._first_token_ms = self._elapsed_ms()
        rows = sequence.take_rows(event)
        if rows is not None:  # columns, of which nothing but their text is to be seen to
            self._journal.append_tokens(rows)
        else:
            self._append(sequence.take(event))

    def end_start(self, sequences: list[Sequence]) -> None:
        """End a start of the backend, and those of its sequences that it has not ended itself."""
        self._start()
        for sequence in sequences:
            self._append(sequence.end())
        cut = any(sequence.cut for sequence in sequences)
        self._usage.end_start(sum(sequence.tokens for sequence in sequences), cut=cut)

    def complete(self) -> None:
        """Write the last entry, after all starts have ended."""
        total_ms, entries = self._elapsed_ms(), self._journal.end + 1
        timings = Timings(queue_ms=self._queue_ms, first_token_ms=self._first_token_ms, total_ms=total_ms)
        self._journal.append(Completed(usage=self._usage.total(), timings=timings, entries=entries))

    def used_tokens(self) -> int:
        """How many tokens the run has used, prompt and completion, also where it does not come to its end."""
        return self._usage.used(sum(sequence.tokens for sequence in self.sequences))

    def _start_with(self, event: BackendEvent) -> None:
        """Write entry 0 before what an event tells, unless that still leaves the prompt's tokens to come."""
        if self._journal.end == 0:
            if isinstance(event, Seeded):
                self._started.seed = event.seed
            waits = self._request.HasField("prompt_logprobs") and isinstance(event, Seeded | UsageReport | Progress)
            if not waits:
                self._start()

    def _start(self) -> None:
        """Write entry 0, once."""
        if self._journal.end == 0:
            self._journal.append(self._started)

    def _append(self, entries: list[Entry | TokenRows]) -> None:
        for entry in entries:
            if isinstance(entry, TokenRows):
                self._journal.append_tokens(entry)
            else:
                self._journal.append(entry)

    def _note_beginning(self, event: BackendEvent) -> None:
        waits = isinstance(event, Seeded) or (isinstance(event, Progress) and event.queue_position > 0)
        if not self._queue_ms and not waits:
            self._queue_ms = self._elapsed_ms()

    def _elapsed_ms(self) -> float:
        return (self._loop.time() - self._arrived_s) * 1000


def _pick(number: int, sequences: list[Sequence]) -> Sequence:
    if not 0 <= number < len(sequences):
        raise ValueError(f"the backend told of sequence {number}, and was asked for {len(sequences)}")
    return sequences[number]


def _progress(event: Progress) -> PromptProgress:
    return PromptProgress(processed=event.processed, total=event.total, queue_position=event.queue_position)


def _delta(sequence_id: int, event: Reasoning | ToolCallDelta) -> Delta:
    if isinstance(event, Reasoning):
        return Delta(sequence_id=sequence_id, reasoning=event.text)
    call = event.call
    piece = ToolCall(index=call.index, id=call.id, name=call.name, arguments=call.arguments)
    return Delta(sequence_id=sequence_id, tool_calls=[piece])
