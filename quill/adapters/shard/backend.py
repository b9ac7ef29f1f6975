"""A Shard sidecar behind the Backend seam: text in, tokens without ids out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from quill.adapters.shard.readiness import Readiness
from quill.errors import InvalidArgument, InvalidType, InvalidUsage, LocalError
from quill.generation import Finish
from quill.llm.backend import BackendEvent, Finished, ModelInfo, Note, Tokens
from quill.shard.config import Dialect, SidecarConfig
from quill.shard.encoding import encoder_for
from quill.shard.events import Ended, Piece
from quill.shard.request import MAX_BODY_BYTES, ShardRequest, Transport
from quill.shard.sidecar import Sidecar

if TYPE_CHECKING:
    from quill.proto import GenerateRequest

POLL_INTERVAL_S = 0.02
WARNING_KEY = "quill-warning"
"""The trailing metadata of what the caller should know of a generation, once for each warning."""
LABEL_PREFIX = "quill-shard-"
"""Before the names of what the sidecar client tells of a generation besides, as ``quill-shard-draft: unverified``."""
_MAX_NOTE_CHARACTERS = 256


class ShardBackend:
    """Serves the models of a Shard network. Construction sends nothing.

    A sidecar tells no token ids, takes no sampling options and counts nothing: options of sampling are refused by
    name, and usage is estimated.

    Args:
        router_url: The sidecar.
        websocket_url: Its WebSocket, where it is not ``ws://HOST:PORT/ws/generate``.
        transport: How tokens come: ``"http_poll"``, ``"websocket"``, or ``"auto"``: the WebSocket where there is one.
        dialect: What the sidecar speaks: ``"A"``, ``"B"``, ``"C"``, or ``"auto"``: as it is found out.
        models: The names on offer; a text has commas between them. Sidecars list none.
        tokenizer_name: A Hugging Face tokenizer for the ids that go with the prompt; the bytes of UTF-8 where None.

    Raises:
        InvalidUsage: A value cannot be used.
        InvalidType: A value is of the wrong type.
    """

    name = "shard"

    def __init__(
        self,
        *,
        router_url: str = "http://127.0.0.1:9091",
        websocket_url: str | None = None,
        transport: Transport = "auto",
        dialect: Dialect = "auto",
        models: str | Sequence[str] = ("shard/network-default",),
        tokenizer_name: str | None = None,
    ) -> None:
        if transport not in get_args(Transport):
            known = ", ".join(map(repr, get_args(Transport)))
            raise InvalidUsage(f"transport {transport!r} is not supported; supported are {known}")
        self._transport = transport
        self._encoder = encoder_for(tokenizer_name)
        self._models = tuple(_model(name) for name in _names(models))
        config = SidecarConfig(
            base_url=router_url, websocket_url=websocket_url, dialect=dialect, poll_interval_s=POLL_INTERVAL_S
        )
        self.sidecar = Sidecar(config)
        """The client of the sidecar: its counters."""
        self._readiness = Readiness(self.sidecar)

    def models(self) -> Sequence[ModelInfo]:
        """The models on offer, ready while the sidecar is. The first call starts to watch that."""
        self._readiness.watch()
        reason = self._readiness.unready_reason
        if not reason:
            return self._models
        return tuple(replace(model, ready=False, unready_reason=reason) for model in self._models)

    async def generate(self, request: GenerateRequest, *, model: ModelInfo) -> AsyncIterator[BackendEvent]:
        """One Tokens per piece of text, Notes with what the sidecar client warns of, and Finished.

        Raises:
            InvalidArgument: The sidecar does not take such a request.
            RpcError: The generation failed.
        """
        # In a thread: a long prompt has many tokens.
        wanted = await asyncio.to_thread(self._wanted, request, model.name)
        async with aclosing(self.sidecar.generate(wanted)) as events:
            async for event in events:
                match event:
                    case Piece(text=text):
                        yield Tokens(data=[text.encode()])
                    case Ended():
                        for note in _notes(event):
                            yield note
                        yield Finished(Finish(event.reason))

    async def aclose(self) -> None:
        """End what runs and close the connections."""
        await self._readiness.aclose()
        await self.sidecar.aclose()

    def _wanted(self, request: GenerateRequest, model_name: str) -> ShardRequest:
        """What the sidecar is asked.

        Raises:
            InvalidArgument: It cannot be: the prompt is too long, or has no tokens.
        """
        size = len(request.prompt.encode())
        if size > MAX_BODY_BYTES:
            raise InvalidArgument(f"the prompt has {size} bytes, and a sidecar takes at most {MAX_BODY_BYTES} in all")
        try:
            return ShardRequest(
                prompt=request.prompt,
                token_ids=tuple(self._encoder.encode(request.prompt)),
                max_tokens=request.max_tokens,
                model=model_name,
                transport=self._transport,
            )
        except LocalError as error:
            raise InvalidArgument(str(error)) from error


def _model(name: str) -> ModelInfo:
    return ModelInfo(
        name=name,
        options=frozenset({"max_tokens"}),
        weights_origin="a Shard network, reached through the sidecar; which weights its peers have it does not tell",
    )


def _names(models: str | Sequence[str]) -> list[str]:
    """The names, at least one and all different."""
    if isinstance(models, str):
        models = [name.strip() for name in models.split(",")]
    if not isinstance(models, Sequence) or not all(isinstance(name, str) for name in models):
        raise InvalidType("models must be texts")
    if not models or not all(models) or len(set(models)) < len(models):
        raise InvalidUsage(f"models must be at least one name, none empty and all different, got {list(models)}")
    return list(models)


def _notes(end: Ended) -> list[Note]:
    labels = [Note(LABEL_PREFIX + key.replace("_", "-"), _ascii(value)) for key, value in end.metadata.items()]
    return [*labels, *(Note(WARNING_KEY, _ascii(warning)) for warning in end.warnings)]


def _ascii(text: str) -> str:
    """As metadata can carry it: a sidecar's words may be long, and the headers of a reply may not."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:_MAX_NOTE_CHARACTERS])
