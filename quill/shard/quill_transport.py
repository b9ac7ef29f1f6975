"""The Quill transport of the SDK: the tokens come from LLMService of a Quill server, over gRPC or Connect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from quill.client.async_client import AsyncQuillClient
from quill.errors import DeadlineExceeded, RpcError
from quill.generation import StreamInterrupted


class QuillRouter:
    """Streams from one Quill server.

    Args:
        base_url: ``grpc://HOST:PORT``, ``http://HOST:PORT``, or whatever else AsyncQuillClient takes.

    Raises:
        InvalidUsage: The URL cannot be used.
    """

    def __init__(self, base_url: str) -> None:
        self.client = AsyncQuillClient(base_url)
        """For credentials: ``model.router.client.set_bearer_token(token)``."""

    async def stream_tokens_quill(
        self,
        *,
        prompt: str,
        encoded_prompt: Sequence[int],  # the keyword of every router; the server has a tokenizer
        max_new_tokens: int,
        model: str,
        timeout_ms: int | None = None,
        first_token_timeout_ms: int | None = None,
        idle_timeout_ms: int | None = None,
        **sampling: Any,
    ) -> AsyncGenerator[str, None]:
        """The texts of the tokens of one generation. ``sampling`` has the options of ``client.llm``.

        Raises:
            InvalidUsage: An option is unknown or out of range.
            RpcError: The generation failed; StreamInterrupted where it had begun.
        """
        stream = self.client.llm.stream(
            prompt, model=model, max_tokens=max_new_tokens, timeout_ms=timeout_ms, **sampling
        )
        limit_ms, awaited = first_token_timeout_ms, "the first token"
        async with stream:
            due_s = _due_s(limit_ms)
            while True:
                try:
                    async with asyncio.timeout_at(due_s):
                        delta = await anext(stream)
                except StopAsyncIteration:
                    return
                except RpcError:  # also one that is a TimeoutError
                    raise
                except TimeoutError:
                    raise _late(f"{awaited} did not come within {limit_ms} ms", stream.text) from None
                for token in delta.tokens:
                    if token.text:
                        yield token.text
                if delta.tokens:
                    limit_ms, awaited = idle_timeout_ms, "the next token"
                    due_s = _due_s(limit_ms)

    async def close(self) -> None:
        """End what runs and close the connections."""
        await self.client.close()


def _due_s(limit_ms: int | None) -> float | None:
    return None if limit_ms is None else asyncio.get_running_loop().time() + limit_ms / 1000


def _late(message: str, text: str) -> RpcError:
    if not text:
        return DeadlineExceeded(message)
    return StreamInterrupted(message, code=DeadlineExceeded.code, text=text)
