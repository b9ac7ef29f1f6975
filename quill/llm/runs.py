"""The runs that are alive on one server instance."""

from __future__ import annotations

import asyncio
import logging
from uuid import uuid4

from quill.errors import AlreadyExists, Cancelled, ResourceExhausted, Unavailable
from quill.limits import Limits
from quill.llm.backend import Backend, ModelInfo
from quill.llm.models import default_max_tokens
from quill.llm.run import Run, RunKey, Timeouts
from quill.principal import Principal
from quill.proto import GenerateRequest
from quill.wire.pushback import pushback

_log = logging.getLogger("quill.llm")


class RunTable:
    """Starts runs, finds them by whom they belong to, and ends them all.

    A run is in the table until its journal closes: its id is free again when Completed is written. What principals
    call their runs is their own affair: the same id of two principals names two runs.

    Args:
        backend: Who runs them; stays the caller's.
        limits: How many runs there may be, and how large their journals.
        timeouts: How long they wait for others.
    """

    def __init__(self, backend: Backend, limits: Limits, timeouts: Timeouts) -> None:
        self.epoch = uuid4().hex
        """Names this server instance."""
        self._backend = backend
        self._limits = limits
        self._timeouts = timeouts
        self._runs: dict[tuple[Principal, str], Run] = {}
        self._closing = False

    def start(self, principal: Principal, request: GenerateRequest, model: ModelInfo) -> Run:
        """Start the run of a valid request.

        Args:
            principal: To whom it belongs.
            request: The request as it came; copied.
            model: The model that it names.

        Raises:
            AlreadyExists: A live run of this principal has the id.
            ResourceExhausted: There are as many runs as there may be.
            Unavailable: The table is closing.
        """
        if self._closing:
            raise Unavailable("the server is shutting down and starts no more runs", trailers=(pushback(250),))
        request_id = request.request_id or f"run-{uuid4().hex}"
        key = RunKey.of(principal, request_id, request)
        self._refuse_second(key)
        if len(self._runs) >= self._limits.max_runs:
            raise ResourceExhausted(
                f"{len(self._runs)} runs are alive and max_runs is {self._limits.max_runs}; try again later"
            )
        own = GenerateRequest()
        own.CopyFrom(request)
        own.model, own.request_id = model.name, request_id
        if not own.HasField("max_tokens"):
            own.max_tokens = default_max_tokens(model)
        run = Run(
            key,
            own,
            model,
            self._backend,
            epoch=self.epoch,
            max_journal_bytes=self._limits.max_journal_bytes,
            timeouts=self._timeouts,
            on_end=self._forget,
        )
        self._runs[principal, request_id] = run
        run.start()
        return run

    async def cancel(self, principal: Principal, request_id: str, reason: str) -> bool:
        """End a live run of a principal with CANCELLED.

        Returns:
            Whether there was one. Then its backend has been told.
        """
        run = self._runs.get((principal, request_id))
        if run is None:
            return False
        _log.info("run %r of %r is cancelled: %r", request_id, principal.name, reason[:200])
        run.abort(Cancelled(f"run {request_id!r} was cancelled by CancelGenerate"))
        await run.wait()
        return True

    async def aclose(self, grace_s: float) -> None:
        """Start no more runs, give those alive ``grace_s`` seconds to end, and end the rest with UNAVAILABLE.

        Returns when the backend has been told of every end.
        """
        self._closing = True
        waits = {asyncio.create_task(run.wait()) for run in self._runs.values()}
        try:
            if waits:
                await asyncio.wait(waits, timeout=grace_s)
        finally:
            for run in list(self._runs.values()):
                at = run.journal.end
                run.abort(Unavailable(f"the server is shutting down; run {run.key.request_id!r} ended at entry {at}"))
            await asyncio.gather(*waits)

    def _refuse_second(self, key: RunKey) -> None:
        alive = self._runs.get((key.principal, key.request_id))
        if alive is not None:
            parameters = "" if alive.key == key else " with other parameters"
            raise AlreadyExists(
                f"run {key.request_id!r} is already running{parameters}; cancel it or use another request_id"
            )

    def _forget(self, run: Run) -> None:
        del self._runs[run.key.principal, run.key.request_id]
