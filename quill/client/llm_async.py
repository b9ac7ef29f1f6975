"""Text generation with the asyncio client."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self, Unpack

from quill.client.llm_fold import generation
from quill.client.llm_request import SERVICE, GenerateOptions, generate_request
from quill.client.llm_view import LINGER_MS, GenerationView
from quill.client.model import Model
from quill.errors import RpcError

if TYPE_CHECKING:
    from types import TracebackType

    from quill import proto
    from quill.client.async_client import AsyncQuillClient
    from quill.client.headers import Headers
    from quill.client.streams import AsyncMessageStream
    from quill.client.transport import ResponseMetadata
    from quill.generation import Delta, Generation


class AsyncLLM:
    """inference.v1.LLMService. ``timeout_ms``, ``headers`` and ``response`` are those of ``AsyncQuillClient.call``.

    Args:
        client: Whose connection and headers are used.
    """

    def __init__(self, client: AsyncQuillClient) -> None:
        self._client = client

    async def generate(
        self,
        prompt: str | None = None,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Generate and return at the end.

        Args:
            prompt: The input as text; or ``messages=`` or ``prompt_token_ids=`` in its place.
            timeout_ms: How long it may take.
            headers: Sent with this call.
            response: Filled with the reply's headers and trailers.
            options: Any field of inference.v1.GenerateRequest by name; see GenerateOptions.

        Raises:
            InvalidUsage: An option is unknown or out of range.
            RpcError: The status that the call ended with.
        """
        request = generate_request(prompt, options)
        reply = await self._client.call(
            SERVICE, "Generate", request, timeout_ms=timeout_ms, headers=headers, response=response
        )
        return generation(reply)

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerationStream:
        """Generate and iterate over the pieces as they come. Arguments as in ``generate``."""
        request = generate_request(prompt, options)
        messages = self._client.stream(
            SERVICE, "StreamGenerate", request, timeout_ms=timeout_ms, headers=headers, response=response
        )
        return AsyncGenerationStream(messages, request.request_id)

    async def models(self, *, timeout_ms: int | None = None) -> list[Model]:
        """The models on offer, by name."""
        from quill.proto import ListModelsRequest

        models: list[Model] = []
        request = ListModelsRequest()
        while True:
            reply = await self._client.call(SERVICE, "ListModels", request, timeout_ms=timeout_ms)
            models += map(Model.from_proto, reply.models)
            if not (reply.models and reply.next_page_token):
                return models
            request.page_token = reply.next_page_token

    async def cancel(self, request_id: str, reason: str = "", *, timeout_ms: int | None = None) -> bool:
        """Stop a generation of the same caller.

        Args:
            request_id: The run's id.
            reason: Why, for the server's log.
            timeout_ms: How long the call may take.

        Returns:
            Whether a live run of this caller had that id. The engine has been told then.
        """
        from quill.proto import CancelGenerateRequest

        request = CancelGenerateRequest(request_id=request_id, reason=reason)
        reply = await self._client.call(SERVICE, "CancelGenerate", request, timeout_ms=timeout_ms)
        return bool(reply.found)


class AsyncGenerationStream(GenerationView):
    """The pieces of a generation as they come. Close it, use it as a context manager, or read it to its end.

    Raises, from ``anext``: an RpcError where the server refuses the generation; StreamInterrupted where it ends after
    it began and before it was complete, for whatever reason.
    """

    def __init__(self, messages: AsyncMessageStream[proto.StreamGenerateResponse], request_id: str) -> None:
        super().__init__(request_id)
        self._messages = messages
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while not self._ended:
            delta = await self._take()
            if delta is not None:
                return delta
        raise StopAsyncIteration

    async def result(self) -> Generation:
        """Read to the end, and return the whole generation.

        Raises:
            RpcError: As from ``anext``, also where that raised it before; CANCELLED where the stream was closed early.
        """
        async for _ in self:
            pass
        if not self._fold.completed:
            raise self._why_incomplete()
        return self._fold.result()

    async def aclose(self) -> None:
        """End the generation if it still runs. May be called again."""
        self._ended = True
        await self._messages.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _take(self) -> Delta | None:
        """Wait for the next message."""
        try:
            delta = self._fold.add(await anext(self._messages))
        except StopAsyncIteration:
            await self.aclose()
            raise self._fail(None) from None
        except RpcError as error:
            await self.aclose()
            failure = self._fail(error)
            raise failure from (None if failure is error else error)
        except BaseException:
            await self.aclose()
            raise
        if self._fold.completed:
            await self._finish()
        return delta

    async def _finish(self) -> None:
        """Read the status, which cannot change anything any more."""
        self._messages.idle_timeout_ms = LINGER_MS
        with contextlib.suppress(RpcError, StopAsyncIteration):
            await anext(self._messages)
        await self.aclose()
