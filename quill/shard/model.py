"""ShardDistributedModel: text of a Shard network, as if the model were here."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

from quill.errors import InvalidType, InvalidUsage
from quill.shard.config import check_count, check_positive
from quill.shard.encoding import Encoder, encoder_for
from quill.shard.router import RouterClientConfig, ShardRouterClient

if TYPE_CHECKING:
    from types import TracebackType

Transport = Literal["http_poll", "websocket", "auto", "quill"]
"""How the tokens come: polled from a sidecar, over its WebSocket, over the WebSocket where it has one, or from a Quill
server."""

DEFAULT_ROUTER_URL = "http://127.0.0.1:9091"

_QUILL_SCHEMES = ("grpc:", "grpcs:", "grpc+dns:", "grpcs+dns:", "grpc+ipv4:", "grpc+unix:", "http+unix:", "unix:")
"""The URLs that only a Quill server has."""


class Router(Protocol):
    """What a model gets its tokens from; replaceable. One for a Quill server has ``stream_tokens_quill`` instead."""

    def stream_tokens_http_poll(self, **request: Any) -> AsyncGenerator[str, None]:
        """Generate by polling. Keywords: prompt, encoded_prompt (token ids), max_new_tokens, model.

        Keywords of timeouts and sampling come only where the caller gave them.
        """
        ...

    def stream_tokens_websocket(self, **request: Any) -> AsyncGenerator[str, None]:
        """The same over a WebSocket. Only a model with ``transport="auto"`` asks for ``stream_tokens_auto``."""
        ...

    def close(self) -> Any:
        """Release connections; what it returns is awaited where it can be."""
        ...


class ShardDistributedModel:
    """A model that runs on a Shard network, reached through the local sidecar, or on a Quill server.

        async with ShardDistributedModel.from_pretrained("shard/network-default") as model:
            async for token in model.stream_generate("Explain speculative decoding.", max_new_tokens=64):
                print(token, end="", flush=True)

    Args:
        model_name: The model's name, as the network knows it.
        router_config: Where the sidecar is; on this machine where None.
        tokenizer_name: A Hugging Face tokenizer (see HuggingFaceEncoder); the bytes of UTF-8 are the ids where None.
        transport: ``"http_poll"``, ``"websocket"``, ``"auto"`` for the WebSocket where the sidecar has one, or
            ``"quill"`` for a Quill server.

    Raises:
        InvalidUsage: An argument cannot be used, or the tokenizer cannot be loaded. It is a ``ValueError``.
        InvalidType: An argument is of a type that it cannot have.
    """

    def __init__(
        self,
        model_name: str,
        *,
        router_config: RouterClientConfig | None = None,
        tokenizer_name: str | None = None,
        transport: Transport = "http_poll",
    ) -> None:
        if not isinstance(model_name, str):
            raise InvalidType(f"model_name must be a string, got {type(model_name).__name__}")
        if transport not in get_args(Transport):
            known = ", ".join(map(repr, get_args(Transport)))
            raise InvalidUsage(f"transport {transport!r} is not supported; supported are {known}")
        self.model_name = model_name
        """The model's name."""
        self.transport = transport
        """How its tokens come."""
        self.encoder: Encoder = encoder_for(tokenizer_name)
        """What turns prompts into token ids."""
        self.router: Router = _router(router_config or RouterClientConfig(), transport)
        """Where the tokens come from; may be replaced before the first call."""

    @classmethod
    def from_pretrained(
        cls,
        model_name: str,
        *,
        router_url: str = DEFAULT_ROUTER_URL,
        websocket_url: str | None = None,
        tokenizer_name: str | None = None,
        transport: Transport = "http_poll",
    ) -> Self:
        """A model by name. Nothing is sent and nothing of the model is loaded.

        Args:
            model_name: The model's name, as the network knows it.
            router_url: The sidecar, ``http://127.0.0.1:9091``; or a Quill server: ``grpc://HOST:PORT`` and its kin
                imply ``transport="quill"``, for ``http://HOST:PORT`` it must be said.
            websocket_url: Of the sidecar; derived from ``router_url`` where None.
            tokenizer_name: As of the constructor.
            transport: As of the constructor.

        Raises:
            InvalidUsage: As the constructor; or a URL and the transport do not go together.
        """
        if not isinstance(router_url, str):
            raise InvalidType(f"router_url must be a string, got {type(router_url).__name__}")
        if router_url.lower().startswith(_QUILL_SCHEMES):
            if transport == "websocket":
                raise InvalidUsage(f"router_url {router_url!r} is a Quill server, which has no transport 'websocket'")
            if transport in {"http_poll", "auto"}:
                transport = "quill"
        if transport == "quill" and websocket_url is not None:
            raise InvalidUsage("websocket_url is a sidecar's, and router_url is a Quill server: leave it out")
        config = RouterClientConfig(http_base_url=router_url, websocket_url=websocket_url)
        return cls(model_name, router_config=config, tokenizer_name=tokenizer_name, transport=transport)

    async def stream_generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        timeout_ms: int | None = None,
        first_token_timeout_ms: int | None = None,
        idle_timeout_ms: int | None = None,
        **sampling: Any,
    ) -> AsyncGenerator[str, None]:
        """Generate, and iterate over the text as it comes.

        Closing the iterator, or cancelling the task that waits for it, cancels the generation.

        Args:
            prompt: The text to continue.
            max_new_tokens: How many tokens there may be.
            timeout_ms: How long all of it may take; 10 minutes where None, and any time with a Quill server.
            first_token_timeout_ms: How long the first token may take; the transport's default where None.
            idle_timeout_ms: How long each token after it may take; likewise.
            sampling: Further options, passed on by name where the sidecar or the server takes them.

        Raises:
            InvalidUsage: An argument cannot be used. Nothing was sent.
            RpcError: The generation failed; StreamInterrupted, with the text so far, where text has come.
        """
        if not isinstance(prompt, str):
            raise InvalidType(f"prompt must be a string, got {type(prompt).__name__}")
        check_count("max_new_tokens", max_new_tokens)
        timeouts = {
            "timeout_ms": timeout_ms,
            "first_token_timeout_ms": first_token_timeout_ms,
            "idle_timeout_ms": idle_timeout_ms,
        }
        given = {name: value for name, value in timeouts.items() if value is not None}
        for name, value in given.items():
            check_positive(name, value)
        tokens = getattr(self.router, f"stream_tokens_{self.transport}")(
            prompt=prompt,
            encoded_prompt=await asyncio.to_thread(self.encoder.encode, prompt),
            max_new_tokens=max_new_tokens,
            model=self.model_name,
            **given,
            **sampling,
        )
        async with aclosing(tokens):
            async for token in tokens:
                yield token

    async def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        timeout_ms: int | None = None,
        first_token_timeout_ms: int | None = None,
        idle_timeout_ms: int | None = None,
        **sampling: Any,
    ) -> str:
        """Generate, and return the text at the end. Arguments and errors as of ``stream_generate``."""
        pieces = self.stream_generate(
            prompt,
            max_new_tokens=max_new_tokens,
            timeout_ms=timeout_ms,
            first_token_timeout_ms=first_token_timeout_ms,
            idle_timeout_ms=idle_timeout_ms,
            **sampling,
        )
        async with aclosing(pieces):
            return "".join([piece async for piece in pieces])

    async def aclose(self) -> None:
        """End what runs and release connections. May be called again."""
        closing = self.router.close()
        if inspect.isawaitable(closing):
            await closing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _router(config: RouterClientConfig, transport: Transport) -> Any:
    """What speaks to the other end. A Quill server is spoken to by the client, which loads only then."""
    if transport == "quill":
        from quill.shard.quill_transport import QuillRouter

        return QuillRouter(config.http_base_url)
    return ShardRouterClient(config)
