"""The SDK's way to a sidecar: its configuration, and token texts by polling or over the WebSocket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from quill.errors import Code
from quill.generation import StreamInterrupted
from quill.shard.config import Dialect, SidecarConfig
from quill.shard.events import Ended, Piece
from quill.shard.request import ShardRequest, Transport
from quill.shard.sidecar import Sidecar

_log = logging.getLogger("quill.shard")


@dataclass(frozen=True, slots=True)
class RouterClientConfig:
    """Where a sidecar is and how patiently it is asked."""

    http_base_url: str = "http://127.0.0.1:9091"
    websocket_url: str | None = None
    """Derived from ``http_base_url`` where None: ``ws://HOST:PORT/ws/generate``."""
    broadcast_endpoint: str = "/broadcast-work"
    pop_result_endpoint: str = "/pop-result"
    request_timeout_s: float = 5.0
    """For one HTTP request, and for the WebSocket to open."""
    poll_interval_s: float = 0.03
    """Between polls that find nothing, at first; it grows while nothing comes."""
    dialect: Dialect = "auto"
    """What the sidecar speaks; found out where ``"auto"``."""

    def sidecar(self) -> SidecarConfig:
        """The same for the sidecar client.

        Raises:
            InvalidUsage: A value cannot be used.
        """
        return SidecarConfig(
            base_url=self.http_base_url,
            websocket_url=self.websocket_url,
            broadcast_endpoint=self.broadcast_endpoint,
            pop_result_endpoint=self.pop_result_endpoint,
            request_timeout_s=self.request_timeout_s,
            poll_interval_s=self.poll_interval_s,
            dialect=self.dialect,
        )


class ShardRouterClient:
    """Streams the tokens of generations from one sidecar.

    Args:
        config: Where it is.

    Raises:
        InvalidUsage: A value of the configuration cannot be used.
    """

    def __init__(self, config: RouterClientConfig | None = None) -> None:
        self.config = config or RouterClientConfig()
        self.sidecar = Sidecar(self.config.sidecar())
        """The sidecar client: its counters and its health."""

    def stream_tokens_http_poll(self, **request: Any) -> AsyncGenerator[str, None]:
        """The texts of the tokens of one generation, polled.

        Args:
            request: ``prompt``, ``encoded_prompt`` (its token ids), ``max_new_tokens`` and ``model``; where they are
                wanted ``timeout_ms``, ``first_token_timeout_ms`` and ``idle_timeout_ms``, as of
                ``ShardDistributedModel.stream_generate``, and options of sampling.

        Raises, when it is iterated over:
            InvalidUsage: An argument cannot be used. Nothing was sent.
            RpcError: The generation failed; StreamInterrupted, with the text so far, where text has come.
        """
        return self._stream("http_poll", **request)

    def stream_tokens_websocket(self, **request: Any) -> AsyncGenerator[str, None]:
        """The same over the sidecar's WebSocket."""
        return self._stream("websocket", **request)

    def stream_tokens_auto(self, **request: Any) -> AsyncGenerator[str, None]:
        """The same over the WebSocket where the sidecar has one, else polled."""
        return self._stream("auto", **request)

    async def close(self) -> None:
        """End what runs and close the connections. May be called again."""
        await self.sidecar.aclose()

    async def _stream(
        self,
        transport: Transport,
        *,
        prompt: str,
        encoded_prompt: Sequence[int],
        max_new_tokens: int,
        model: str,
        timeout_ms: int | None = None,
        first_token_timeout_ms: int | None = None,
        idle_timeout_ms: int | None = None,
        **sampling: Any,
    ) -> AsyncGenerator[str, None]:
        request = await asyncio.to_thread(  # a long prompt has many ids, and each of them is looked at
            ShardRequest,
            prompt=prompt,
            token_ids=tuple(encoded_prompt),
            max_tokens=max_new_tokens,
            model=model,
            transport=transport,
            timeout_ms=timeout_ms,
            first_token_timeout_ms=first_token_timeout_ms,
            idle_timeout_ms=idle_timeout_ms,
            extra=sampling,
        )
        texts = []
        async with aclosing(self.sidecar.generate(request)) as events:
            async for event in events:
                match event:
                    case Piece(text=text):
                        texts.append(text)
                        yield text
                    case Ended():
                        _check_end(event, "".join(texts))


def _check_end(end: Ended, text: str) -> None:
    """Log what the caller should know; an end that may lack tokens is none, because a text cannot say so."""
    for warning in end.warnings:
        _log.warning("%s", warning)
    if end.incomplete:
        why = "; ".join(end.warnings) or "a reply was lost on its way"
        raise StreamInterrupted(f"tokens may be missing: {why}", code=Code.DATA_LOSS, text=text)
