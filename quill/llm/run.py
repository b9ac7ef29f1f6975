"""A run: one generation, owned by a task of its own that asks the backend and writes the journal.

RPC handlers only read the journal. A run ends when its backend has, or by ``abort``, whatever the cause: an
explicit cancel, the last reader gone for longer than the run may be alone, a timeout, the end of the server. There
is at most one abort, and the journal closes after the backend's iterator has been closed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import isasyncgen
from typing import cast

from quill.boundary import let_go, status_of
from quill.errors import Aborted, Cancelled, Code, DeadlineExceeded, RpcError, Unavailable
from quill.llm.alarms import Alarm, Alarms
from quill.llm.backend import Backend, BackendEvent, ModelInfo
from quill.llm.journal import Journal, Reader
from quill.llm.output import Output
from quill.llm.prompt import prepare
from quill.llm.record import Record
from quill.llm.sequence import Sequence
from quill.llm.stepping import AnyBackend, Submission, steps
from quill.llm.turns import Turns
from quill.principal import Principal, token_meter
from quill.proto import GenerateRequest
from quill.wire.pushback import FORBIDDEN, PUSHBACK_KEY, pushback

_log = logging.getLogger("quill.llm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a run waits for others."""

    backend_idle_timeout_s: float = 300.0
    """For the next event or answer of the backend, the first included. DEADLINE_EXCEEDED after it."""
    reader_stall_timeout_s: float = 300.0
    """For a reader to make room in the journal. ABORTED after it."""
    backend_close_timeout_s: float = 5.0
    """For the backend to be told that nothing more is wanted."""
    finished_run_s: float = 30.0
    """How long a finished run is kept at least, for a caller who did not get the reply and asks again under its id."""


@dataclass(frozen=True, slots=True)
class RunKey:
    """What makes two requests the same run."""

    principal: Principal
    request_id: str
    request_hash: bytes
    """Of the request without request_id, metadata and stream_options, which do not change what is generated."""

    @classmethod
    def of(cls, principal: Principal, request_id: str, request: GenerateRequest) -> RunKey:
        """The key of a request as the caller sent it, under the id that it has or was given."""
        content = GenerateRequest()
        content.CopyFrom(request)
        for name in ("request_id", "metadata", "stream_options"):
            content.ClearField(name)
        digest = hashlib.blake2b(content.SerializeToString(deterministic=True), digest_size=16).digest()
        return cls(principal, request_id, digest)


class Run:
    """One generation. Nothing runs before ``start``.

    Args:
        key: Whose run it is and what was asked.
        request: The request, valid, with model, request_id and max_tokens filled in. Owned by the run.
        model: The model that runs.
        backend: Who runs it.
        epoch: The server instance, told in Started.
        max_journal_bytes: How far the backend may be ahead of the fastest reader.
        timeouts: How long to wait for others.
        turns: Those of the event loop.
        alarms: Likewise.
        on_end: Called once, when the journal closes.
        on_expiry: Called once, when nobody has read the finished run for as long as it is to be kept.
    """

    def __init__(
        self,
        key: RunKey,
        request: GenerateRequest,
        model: ModelInfo,
        backend: AnyBackend,
        *,
        epoch: str,
        max_journal_bytes: int,
        timeouts: Timeouts,
        turns: Turns,
        alarms: Alarms,
        on_end: Callable[[Run], None],
        on_expiry: Callable[[Run], None],
    ) -> None:
        self.key = key
        self.request = request
        self.journal = Journal(max_journal_bytes)
        self._model = model
        self._epoch = epoch
        self._backend = backend
        self._timeouts = timeouts
        self._turns = turns
        self._alarms = alarms
        self._on_end = on_end
        self._on_expiry = on_expiry
        self._ttl_s = request.stream_options.resume_ttl_ms / 1000
        self._meter = token_meter.get()
        """Of the call that starts the run, whoever reads it."""
        self._loop = asyncio.get_running_loop()
        self._arrived_s = self._loop.time()
        self._output: Output | None = None
        """What the backend's present start gives; None before the first."""
        self.notes: tuple[tuple[str, str], ...] = ()
        """What the backend noted, for trailing metadata; whole once the journal is closed."""
        self._record: Record | None = None
        """None until the prompt is prepared."""
        self._ending: RpcError | None = None
        self._closing_backend = False
        self._watchdog: Alarm | None = None
        self._last_resort: Alarm | None = None
        self._loneliness: Alarm | None = None
        """Runs while nobody reads a run that may be alone for a time."""
        self._task: asyncio.Task[None] | None = None
        self._succeeded = False
        self._kept = False
        """Whether it has ended and can be found."""

    def start(self) -> None:
        """Start the task that owns the generation."""
        self._task = asyncio.create_task(self._supervise(), name=f"run {self.key.request_id}")
        self._task.add_done_callback(self._ended)
        self._watch()

    @property
    def is_resumable(self) -> bool:
        """Whether it outlives its last reader."""
        return self._ttl_s > 0

    @property
    def is_ending(self) -> bool:
        """Whether it is being aborted, and its backend has not been told yet."""
        return self._ending is not None and not self.journal.closed

    @property
    def is_whole(self) -> bool:
        """Whether it has come to its end, and well."""
        return self._succeeded

    @contextmanager
    def follow(self, position: int = 0) -> Iterator[Reader]:
        """Read the journal. When the last reader goes before the end, the run is aborted, or has its time to be alone.

        Raises:
            OutOfRange: The journal has no entry ``position``, or no longer.
        """
        reader = self.journal.follow(position)
        self._stop_timer()
        try:
            yield reader
        finally:
            reader.close()
            if not self.journal.readers:
                self._alone()

    def leave(self) -> None:
        """Nobody will find the run any more: there is nothing to wait for."""
        self._kept = False
        self._stop_timer()

    def keep(self) -> None:
        """The run has ended, and can still be found for a time."""
        self._kept = True
        if not self.journal.readers:
            self._alone()

    def abort(self, error: RpcError) -> None:
        """End the run with ``error``, unless it has ended or is being aborted. Returns at once.

        The backend is told in the next turn of the event loop; ``wait`` returns when it has been.
        """
        if self._ending is not None or self.journal.closed or self._task is None:
            return
        self._ending = error
        if self._output is not None:
            self._output.end()
        if not self._closing_backend:
            self._task.cancel()
        # A backend that hangs while it is being told is interrupted once more, and then left.
        self._last_resort = self._alarms.after(self._timeouts.backend_close_timeout_s, self._task.cancel)

    async def wait(self) -> None:
        """Return when the run has ended: its backend's iterator is closed and so is the journal.

        Bounded by the run's own timeouts; after an abort, by backend_close_timeout_s twice.
        """
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _supervise(self) -> None:
        """Generate, and close the journal with what came of it.

        No coroutine of its own asks the backend: each between this one and the backend's is gone through at each token.
        """
        try:
            record = await self._begin()
            for request, sequences in self._starts(record):
                self._output = output = Output(record, sequences, self.journal, self._turns)
                start: AsyncIterator[BackendEvent] | Submission | None = None
                try:
                    if steps(self._backend):
                        start = self._backend.submit(request, model=self._model, output=output)
                        await output.over()
                    else:
                        start = cast(Backend, self._backend).generate(request, model=self._model)
                        await output.pump(start)
                finally:
                    output.end()
                    await self._close_backend(start)
                if self._ending is not None:
                    raise self._ending  # noqa: TRY301  # as what the backend raises
                output.raise_failure()
                record.end_start(sequences)
            record.complete()
        except asyncio.CancelledError as error:
            if self._ending is None and self._cancelled_from_outside():
                raise  # the event loop is being shut down; _ended closes the journal
            self._close(self._ending or status_of(error))
        except Exception as error:  # noqa: BLE001  # whatever a backend raises ends its run with a status
            self._close(self._ending or status_of(error))
        else:
            self._close(None)

    def _cancelled_from_outside(self) -> bool:
        """Whether somebody cancelled the task, or the backend only let a cancellation of its own escape."""
        return self._task is not None and self._task.cancelling() > 0

    async def _begin(self) -> Record:
        echo = await prepare(self.request, self._model)
        self._record = record = Record(
            self.journal, self.request, self._model, epoch=self._epoch, arrived_s=self._arrived_s, echo=echo
        )
        return record

    def _starts(self, record: Record) -> Iterator[tuple[GenerateRequest, list[Sequence]]]:
        """What the backend is asked, and for which sequences."""
        if "n" in self._model.options:
            yield self._backend_request(), record.sequences
        else:
            # One after the other: an engine without n is likely to have one slot, and sequence 0 comes first.
            for sequence in record.sequences:
                yield self._backend_request(sequence.sequence_id), [sequence]

    def _backend_request(self, sequence_id: int | None = None) -> GenerateRequest:
        """What the backend is asked, of that what it honours itself: for one sequence, or for all where None."""
        request = GenerateRequest()
        request.CopyFrom(self.request)
        request.ClearField("stream_options")
        options = self._model.options
        if "stop" not in options or (request.include_stop and "include_stop" not in options):
            request.ClearField("stop")
        if "include_stop" not in options:
            request.ClearField("include_stop")
        if sequence_id is not None:
            request.ClearField("n")
            if sequence_id > 0:
                request.ClearField("prompt_logprobs")
            if request.HasField("seed"):
                request.seed = _wrap_int64(request.seed + sequence_id)
        return request

    async def _close_backend(self, start: AsyncIterator[BackendEvent] | Submission | None) -> None:
        """Close what the backend started, which is the abort where it has not ended. Its failure is only logged."""
        close = getattr(start, "aclose", None)
        if close is None or (isasyncgen(start) and start.ag_frame is None):  # one that has come to its end
            return
        limit_s = self._timeouts.backend_close_timeout_s
        self._closing_backend = True
        try:
            async with asyncio.timeout(limit_s):
                await close()
        except TimeoutError:
            _log.error("backend %s did not take the end of a run within %g s", self._backend.name, limit_s)
        except Exception:  # noqa: BLE001  # the run has ended, and its status is known
            _log.exception("backend %s failed to end a run", self._backend.name)
        finally:
            self._closing_backend = False

    def _watch(self) -> None:
        """Abort the run when it has waited for too long, for the backend or for a reader. One timer, none per event."""
        idle_limit_s, output = self._timeouts.backend_idle_timeout_s, self._output
        stall_limit_s = max(self._timeouts.reader_stall_timeout_s, self._ttl_s)
        limit_s = stall_limit_s if self.journal.full else idle_limit_s
        waited_s = self._loop.time() - (self._arrived_s if output is None else output.heard_s)
        if self._closing_backend:
            waited_s = 0.0
        if waited_s < limit_s:
            # Whose turn it is may change meanwhile.
            self._watchdog = self._alarms.after(min(limit_s - waited_s, idle_limit_s, stall_limit_s), self._watch)
        elif self.journal.full:
            request_id = self.key.request_id
            self.abort(Aborted(f"run {request_id!r} was ended: nobody read from it for {limit_s:g} s"))
        else:
            self.abort(DeadlineExceeded(f"backend {self._backend.name} gave nothing for {limit_s:g} s"))

    def _ended(self, _task: asyncio.Task[None]) -> None:
        """The task is done, or was cancelled before it began."""
        for timer in (self._watchdog, self._last_resort):
            if timer is not None:
                timer.cancel()
        self._watchdog = self._last_resort = self._task = None
        self._close(self._ending or Unavailable("the server is shutting down"))

    def _close(self, error: RpcError | None) -> None:
        if not self.journal.closed:
            if error is not None:
                let_go(error)  # its traceback has this run, which has it: nothing but a collection would free them
            self._succeeded = error is None
            self.journal.close(None if error is None else self._final(error))
            if self._record is not None:
                self.notes = tuple(self._record.notes)
                self._meter(self._record.used_tokens())
                self._record = self._output = None
            self._stop_timer()
            self._on_end(self)

    def _final(self, error: RpcError) -> RpcError:
        """The error for every reader. That of a resumable run says so where it might be taken for the network's."""
        if error.code not in {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED} or not self.is_resumable:
            return error
        kept = [(key, value) for key, value in error.trailers if key != PUSHBACK_KEY]
        return RpcError.of(error.code, error.message, details=error.details, trailers=(*kept, pushback(FORBIDDEN)))

    def _alone(self) -> None:
        """The last reader has gone, or none was there at the end."""
        self._stop_timer()
        if self._kept:
            wait_s = max(self._ttl_s, self._timeouts.finished_run_s)
            self._loneliness = self._alarms.after(wait_s, partial(self._on_expiry, self))
        elif self.journal.closed:
            return
        elif self._ttl_s:
            self._loneliness = self._alarms.after(self._ttl_s, self._nobody_came)
        else:
            self.abort(Cancelled(f"run {self.key.request_id!r} was ended: its caller is gone"))

    def _nobody_came(self) -> None:
        self.abort(Cancelled(f"run {self.key.request_id!r} was ended: nobody resumed it within {self._ttl_s:g} s"))

    def _stop_timer(self) -> None:
        if self._loneliness is not None:
            self._loneliness.cancel()
            self._loneliness = None


def _wrap_int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
