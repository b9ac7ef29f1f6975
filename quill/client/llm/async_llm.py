"""LLMService with the asyncio client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, SupportsIndex, TypeVar, Unpack

from quill.client.llm.async_session import AsyncSession
from quill.client.llm.async_stream import AsyncGenerationStream
from quill.client.llm.calls import SERVICE, AsyncRun
from quill.client.llm.embeddings import embedding
from quill.client.llm.questions import Listing, cancelling, describing, generating
from quill.client.llm.request import GenerateOptions, generate_request
from quill.client.llm.tokenization import detokenizing, tokenizing

if TYPE_CHECKING:
    from quill import proto
    from quill.client.calls import AsyncCalls, Question
    from quill.client.headers import Headers
    from quill.client.llm.conversation import ChatMessage
    from quill.client.llm.embeddings import Embeddings, EmbedInputs, Pooling
    from quill.client.llm.model import Model
    from quill.client.llm.tokenization import Tokenization
    from quill.client.transport import ResponseMetadata
    from quill.dtype import DType
    from quill.generation import Generation

T = TypeVar("T")


class AsyncLLM:
    """inference.v1.LLMService, awaited. Arguments, results and errors are those of ``LLM``, where they are described.

    Args:
        client: Whose connection and headers are used.
    """

    def __init__(self, client: AsyncCalls) -> None:
        self._client = client

    async def generate(
        self,
        prompt: str | None = None,
        *,
        resume_ttl_ms: int = 0,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """As ``LLM.generate``."""
        if resume_ttl_ms:
            async with self.stream(
                prompt,
                resume_ttl_ms=resume_ttl_ms,
                timeout_ms=self._client.timeout_ms if timeout_ms is None else timeout_ms,
                headers=headers,
                response=response,
                **options,
            ) as stream:
                return await stream.result()
        return await self._ask(generating(prompt, options), timeout_ms, headers, response)

    def stream(
        self,
        prompt: str | None = None,
        *,
        resume_ttl_ms: int = 0,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerationStream:
        """As ``LLM.stream``."""
        request = generate_request(prompt, options, resume_ttl_ms=resume_ttl_ms)
        return AsyncGenerationStream(AsyncRun(self._client, headers, response), request, timeout_ms)

    def session(
        self,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> AsyncSession:
        """As ``LLM.session``."""
        return AsyncSession(self._client, timeout_ms=timeout_ms, headers=headers, response=response)

    async def embed(
        self,
        inputs: EmbedInputs,
        *,
        model: str | None = None,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        dtype: DType | None = None,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> Embeddings:
        """As ``LLM.embed``."""
        question = embedding(
            inputs, model=model, pooling=pooling, normalize=normalize, dimensions=dimensions, dtype=dtype
        )
        return await self._ask(question, timeout_ms, headers, response)

    async def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage | proto.ChatMessage] | None = None,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> Tokenization:
        """As ``LLM.tokenize``."""
        question = tokenizing(text, messages=messages, model=model, add_special_tokens=add_special_tokens)
        return await self._ask(question, timeout_ms, headers, response)

    async def detokenize(
        self,
        token_ids: Iterable[SupportsIndex],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> str:
        """As ``LLM.detokenize``."""
        question = detokenizing(token_ids, model=model, skip_special_tokens=skip_special_tokens)
        return await self._ask(question, timeout_ms, headers, response)

    async def models(
        self,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> list[Model]:
        """As ``LLM.models``."""
        listing = Listing()
        while (question := listing.question()) is not None:
            await self._ask(question, timeout_ms, headers, response)
        return listing.models

    async def model(
        self,
        name: str,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> Model:
        """As ``LLM.model``."""
        return await self._ask(describing(name), timeout_ms, headers, response)

    async def cancel(
        self,
        request_id: str,
        reason: str = "",
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> bool:
        """As ``LLM.cancel``."""
        return await self._ask(cancelling(request_id, reason), timeout_ms, headers, response)

    async def _ask(
        self,
        question: Question[T],
        timeout_ms: int | None,
        headers: Headers | None,
        response: ResponseMetadata | None,
    ) -> T:
        reply = await self._client.call(
            SERVICE,
            question.method,
            question.request,
            codec=question.codec,
            timeout_ms=timeout_ms,
            headers=headers,
            response=response,
        )
        return question.read(reply)
