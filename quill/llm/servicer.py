"""LLMService over a Backend: a plain grpc.aio servicer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from quill.boundary import Context, streaming, unary
from quill.errors import InvalidArgument, Unavailable
from quill.limits import Limits
from quill.llm import models
from quill.llm.backend import ModelInfo
from quill.llm.embedding import embed
from quill.llm.patience import Patience
from quill.llm.replies import ReplyAssembler, stream_messages
from quill.llm.run import Run, Timeouts
from quill.llm.runs import RunTable
from quill.llm.session import Session
from quill.llm.stepping import AnyBackend
from quill.llm.tokenization import detokenize, tokenize
from quill.llm.validate import validate
from quill.principal import current_principal
from quill.proto import (
    CancelGenerateRequest,
    CancelGenerateResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbedRequest,
    EmbedResponse,
    GenerateRequest,
    GenerateResponse,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    LLMServiceServicer,
    SessionRequest,
    SessionResponse,
    StreamGenerateResponse,
    TokenizeRequest,
    TokenizeResponse,
)


class LLMServicer(LLMServiceServicer):
    """Serves inference.v1.LLMService, on ``grpc.aio.server()`` and ``quill.Server`` alike.

        servicer = LLMServicer(backend)
        add_LLMServiceServicer_to_server(servicer, server)
        ...
        await servicer.aclose(grace_s=5)

    A generation that is cancelled with CancelGenerate ends with the status CANCELLED, streamed or not: what was
    produced before is delivered, and an OK always means that the output is whole. A client that goes away ends
    its generation, unless it asked for a time to come back in (``stream_options.resume_ttl_ms``).

    The same request under the same id, while the run is kept, is the same run: the backend starts once.

    Args:
        backend: The engine. Stays the caller's: ``aclose`` does not close it.
        limits: How large a prompt, a reply and a journal may be, how many runs there may be, and how much is kept.
        timeouts: How long a call waits for the backend, and a run for its reader.
    """

    full_duplex = frozenset({"Session"})
    """Methods in which both sides take turns, for servers that must know."""

    def __init__(self, backend: AnyBackend, *, limits: Limits | None = None, timeouts: Timeouts | None = None) -> None:
        self._backend = backend
        self._limits = limits or Limits()
        timeouts = timeouts or Timeouts()
        self._runs = RunTable(backend, self._limits, timeouts)
        self._sessions: set[Session] = set()
        self._patience = Patience(
            backend=backend.name,
            limit_s=timeouts.backend_idle_timeout_s,
            close_limit_s=timeouts.backend_close_timeout_s,
        )

    async def aclose(self, grace_s: float = 0.0) -> None:
        """Start no more runs, give those alive ``grace_s`` seconds to end, and end the rest with UNAVAILABLE.

        Returns when the backend has been told of every end. May be called again.
        """
        await self._runs.aclose(grace_s)
        for session in self._sessions:
            session.end(Unavailable("the server is shutting down"))

    @unary
    async def Generate(self, request: GenerateRequest, context: Context) -> GenerateResponse:
        """Generate and answer once, at the end. A run of the same id and parameters that is there is waited for."""
        position = request.stream_options.resume.next_position
        if position:
            raise InvalidArgument(f"stream_options.resume at position {position}: Generate answers with the whole")
        reply = ReplyAssembler(self._limits.max_reply_bytes)
        run = await self._run(request)
        with run.follow() as reader:
            async for position, entries in reader:
                for message in stream_messages(position, entries):
                    reply.add(message)
        _tell_notes(run, context)
        return reply.reply()

    @streaming
    async def StreamGenerate(
        self, request: GenerateRequest, context: Context
    ) -> AsyncGenerator[StreamGenerateResponse, None]:
        """Generate and stream what comes, or what comes of a run that is there: from its beginning, or resumed."""
        run = await self._run(request)
        with run.follow(request.stream_options.resume.next_position) as reader:
            async for position, entries in reader:
                for message in stream_messages(position, entries):
                    yield message
        _tell_notes(run, context)

    @unary
    async def CancelGenerate(self, request: CancelGenerateRequest, context: Context) -> CancelGenerateResponse:
        """End a live run of the caller. When the answer says found, the backend has been told."""
        if not request.request_id:
            raise InvalidArgument('request_id="" names no run')
        found = await self._runs.cancel(current_principal.get(), request.request_id, request.reason)
        return CancelGenerateResponse(found=found)

    @unary
    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        """List the models, by name, 100 to a page and at most 1000."""
        return models.page(self._backend.models(), request, self._backend.name)

    @unary
    async def GetModel(self, request: GetModelRequest, context: Context) -> GetModelResponse:
        """Describe one model, by name or alias."""
        model = models.resolve(self._backend.models(), request.name)
        return GetModelResponse(model=models.describe(model, self._backend.name))

    @streaming
    async def Session(
        self, request_iterator: AsyncIterator[SessionRequest], context: Context
    ) -> AsyncGenerator[SessionResponse, None]:
        """Carry many generations on one stream."""
        session = Session(self._run, self._limits)
        self._sessions.add(session)
        try:
            async with aclosing(session.frames(request_iterator)) as frames:
                async for frame in frames:
                    yield frame
        finally:
            self._sessions.discard(session)

    @unary
    async def Embed(self, request: EmbedRequest, context: Context) -> EmbedResponse:
        """Compute one embedding per input."""
        return await embed(request, self._ready(request.model), self._limits, self._patience)

    @unary
    async def Tokenize(self, request: TokenizeRequest, context: Context) -> TokenizeResponse:
        """Split text, or a conversation by the template, into tokens."""
        return await self._patience.wait(tokenize(request, self._ready(request.model), self._limits))

    @unary
    async def Detokenize(self, request: DetokenizeRequest, context: Context) -> DetokenizeResponse:
        """Join tokens to text."""
        return await self._patience.wait(detokenize(request, self._ready(request.model), self._limits))

    async def _run(self, request: GenerateRequest) -> Run:
        """The run that a request asks for: started, joined or resumed."""
        model = models.resolve(self._backend.models(), request.model)
        validate(request, model, self._limits)
        principal, options = current_principal.get(), request.stream_options
        if options.HasField("resume"):
            return self._runs.resume(principal, request, options.resume)
        await self._runs.settle(principal, request.request_id)
        return self._runs.start(principal, request, model)

    def _ready(self, name: str) -> ModelInfo:
        """The model of a name, which can answer now."""
        model = models.resolve(self._backend.models(), name)
        models.check_ready(model)
        return model


def _tell_notes(run: Run, context: Context) -> None:
    """Add what the backend noted to the trailing metadata, behind what an interceptor may have put there."""
    if run.notes:
        context.set_trailing_metadata((*(context.trailing_metadata() or ()), *run.notes))
