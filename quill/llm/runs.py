"""The runs of one server instance: those that are alive, and finished ones that can still be found."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from uuid import uuid4

from quill.errors import Aborted, AlreadyExists, Cancelled, NotFound, ResourceExhausted, Unavailable
from quill.limits import Limits
from quill.llm.alarms import Alarms
from quill.llm.backend import ModelInfo
from quill.llm.models import check_ready, default_max_tokens
from quill.llm.run import Run, RunKey, Timeouts
from quill.llm.stepping import AnyBackend
from quill.llm.store import JournalStore
from quill.llm.turns import Turns
from quill.principal import Principal
from quill.proto import GenerateRequest, Resume
from quill.wire.pushback import pushback

_log = logging.getLogger("quill.llm")

_RUN_OVERHEAD_BYTES = 8192
"""What a run costs beside its request and its journal, for the bounds of what is kept: 7 KB, measured."""

_MIN_JOURNAL_BYTES = 64 * 1024
_TOKEN_BYTES = 256
"""What is set aside for a token: much more than one takes that is a row of a block, less than one that is not."""
_MESSAGE_BYTES = 768
_CANDIDATE_BYTES = 256
"""For a token with candidates, which is a message, and for each of these."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the table knows of a run that is alive."""

    is_named: bool
    """Whether the caller chose its id, and so can ask for it again without having been told."""
    reserved_bytes: int
    """What the store holds for it."""


class RunTable:
    """Starts runs, finds them by whom they belong to and what was asked, and ends them all.

    A run is what a principal asked under an id. The same request under the same id is the same run: one start of the
    backend, and any number of readers. What principals call their runs is their own affair: the same id of two
    principals names two runs.

    A run can be found while it is alive. One whose caller named it, or that can be resumed, can be found for a time
    after its end, if its reply is whole or the run resumable: a caller who lost the reply gets it by asking again.

    Args:
        backend: Who runs them; stays the caller's.
        limits: How many runs there may be, how large their journals, how long and how much is kept.
        timeouts: How long they wait for others.
    """

    def __init__(self, backend: AnyBackend, limits: Limits, timeouts: Timeouts) -> None:
        self.epoch = uuid4().hex
        """Names this server instance."""
        self._backend = backend
        self._limits = limits
        self._timeouts = timeouts
        self._runs: dict[tuple[Principal, str], Run] = {}
        self._alive: dict[Run, _Claim] = {}
        self._store = JournalStore(limits, self._drop)
        self._closing = False
        self._turns = Turns()
        self._alarms = Alarms()

    async def settle(self, principal: Principal, request_id: str) -> None:
        """Wait while a run of this id is being ended that will not be found afterwards, so that it can start anew.

        Bounded by the backend's time to be told.
        """
        while (run := self._runs.get((principal, request_id))) is not None and run.is_ending and not run.is_resumable:
            await run.wait()

    def start(self, principal: Principal, request: GenerateRequest, model: ModelInfo) -> Run:
        """The run of a valid request: that which is there, else a new one.

        Args:
            principal: To whom it belongs.
            request: The request as it came; copied.
            model: The model that it names.

        Raises:
            AlreadyExists: A run of this principal has the id and other parameters.
            ResourceExhausted: There are as many runs as there may be, or there is no room to keep one more.
            Unavailable: The table is closing, or the model is not ready.
        """
        request_id = request.request_id or f"run-{uuid4().hex}"
        key = RunKey.of(principal, request_id, request)
        there = self._find(key)
        if there is not None:
            return there
        if self._closing:
            raise Unavailable("the server is shutting down and starts no more runs", trailers=(pushback(250),))
        check_ready(model)
        if len(self._alive) >= self._limits.max_runs:
            raise ResourceExhausted(
                f"{len(self._alive)} runs are alive and max_runs is {self._limits.max_runs}; try again later"
            )
        return self._start(key, request, model)

    def resume(self, principal: Principal, request: GenerateRequest, resume: Resume) -> Run:
        """The run that a request wants to go on with. Nothing is started.

        Raises:
            Aborted: It ran on another server instance.
            NotFound: It cannot be found: it never was, is no longer kept, or belongs to somebody else.
            AlreadyExists: A run of this principal has the id and other parameters.
        """
        request_id = request.request_id
        if resume.epoch != self.epoch:
            raise Aborted(
                f"run {request_id!r} is lost: it ran on server instance {resume.epoch[:64]!r}, this is {self.epoch!r}"
            )
        run = self._find(RunKey.of(principal, request_id, request))
        if run is None:
            raise NotFound(f"there is no run {request_id!r}: it is no longer kept, or has never been")
        return run

    async def cancel(self, principal: Principal, request_id: str, reason: str) -> bool:
        """End a live run of a principal with CANCELLED.

        Returns:
            Whether there was one. Then its backend has been told.
        """
        run = self._runs.get((principal, request_id))
        if run is None or run.journal.closed:
            return False
        _log.info("run %r of %r is cancelled: %r", request_id, principal.name, reason[:200])
        run.abort(Cancelled(f"run {request_id!r} was cancelled by CancelGenerate"))
        await run.wait()
        return True

    async def aclose(self, grace_s: float) -> None:
        """Start no more runs, give those that are read ``grace_s`` seconds to end, and end the rest with UNAVAILABLE.

        Returns when the backend has been told of every end. Nothing is kept.
        """
        self._closing = True
        for run in list(self._alive):
            if not run.journal.readers:
                self._shut_down(run)
        waits = {asyncio.create_task(run.wait()) for run in self._alive}
        try:
            if waits:
                await asyncio.wait(waits, timeout=grace_s)
        finally:
            for run in list(self._alive):
                self._shut_down(run)
            await asyncio.gather(*waits)
            for run in list(self._runs.values()):
                self._forget(run)

    def _find(self, key: RunKey) -> Run | None:
        run = self._runs.get((key.principal, key.request_id))
        if run is not None and run.key != key:
            state = "kept" if run.journal.closed else "running"
            raise AlreadyExists(
                f"run {key.request_id!r} is already {state} with other parameters; use another request_id"
            )
        return run

    def _start(self, key: RunKey, request: GenerateRequest, model: ModelInfo) -> Run:
        own = GenerateRequest()
        own.CopyFrom(request)
        own.model, own.request_id = model.name, key.request_id
        if not own.HasField("max_tokens"):
            own.max_tokens = default_max_tokens(model)
        most_ms = min(int(self._limits.max_resume_ttl_s * 1000), 2**32 - 1)
        own.stream_options.resume_ttl_ms = min(own.stream_options.resume_ttl_ms, most_ms)
        max_journal_bytes, reserved_bytes = self._limits.max_journal_bytes, 0
        if own.stream_options.resume_ttl_ms:
            max_journal_bytes = min(max_journal_bytes, _enough_journal_bytes(own))
            reserved_bytes = _memory_bytes(own, max_journal_bytes)
            self._store.reserve(key.principal, reserved_bytes)
        run = Run(
            key,
            own,
            model,
            self._backend,
            epoch=self.epoch,
            max_journal_bytes=max_journal_bytes,
            timeouts=self._timeouts,
            turns=self._turns,
            alarms=self._alarms,
            on_end=self._ended,
            on_expiry=self._forget,
        )
        self._runs[key.principal, key.request_id] = run
        self._alive[run] = _Claim(bool(request.request_id), reserved_bytes)
        run.start()
        return run

    def _shut_down(self, run: Run) -> None:
        at = run.journal.end
        run.abort(Unavailable(f"the server is shutting down; run {run.key.request_id!r} ended at entry {at}"))

    def _ended(self, run: Run) -> None:
        """Keep a run that has ended, or forget it."""
        claim = self._alive.pop(run)
        if claim.reserved_bytes:
            self._store.release(run.key.principal, claim.reserved_bytes)
        is_reply = claim.is_named and run.is_whole and not run.journal.is_trimmed
        if self._closing or not (run.is_resumable or is_reply):
            self._forget(run)
            return
        run.keep()
        self._store.keep(run, _memory_bytes(run.request, run.journal.kept_bytes))

    def _forget(self, run: Run) -> None:
        """A run can be found no longer."""
        self._store.forget(run)
        self._drop(run)

    def _drop(self, run: Run) -> None:
        run.leave()
        self._runs.pop((run.key.principal, run.key.request_id), None)


def _memory_bytes(request: GenerateRequest, journal_bytes: int) -> int:
    return _RUN_OVERHEAD_BYTES + request.ByteSize() + journal_bytes


def _enough_journal_bytes(request: GenerateRequest) -> int:
    """How much the journal of a run takes that is kept from its first entry to its last, in most cases."""
    if request.echo or request.HasField("prompt_logprobs"):
        return 2**63
    per_token = _MESSAGE_BYTES + _CANDIDATE_BYTES * request.logprobs if request.logprobs else _TOKEN_BYTES
    return max(_MIN_JOURNAL_BYTES, request.max_tokens * max(1, request.n) * per_token)
