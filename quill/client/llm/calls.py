"""The seam to the clients: what the LLM half needs of one. QuillClient and AsyncQuillClient are such."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from quill.client.headers import Headers
    from quill.client.streams import AsyncMessageStream, MessageStream
    from quill.client.transport import ResponseMetadata

SERVICE = "inference.v1.LLMService"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A unary call: the method, what to send, and what the reply means."""

    method: str
    request: Message
    read: Callable[[Any], T]


class SyncCalls(Protocol):
    """Calls that block."""

    @property
    def protocol(self) -> str:
        """``"connect"``, ``"grpc"`` or ``"grpc-web"``."""
        ...

    def call(
        self,
        service: str,
        method: str,
        request: Message,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> Any:
        """Call a unary method."""
        ...

    def stream(
        self,
        service: str,
        method: str,
        request: Message | Iterable[Message],
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> MessageStream[Any]:
        """Call a method that streams its replies."""
        ...


class AsyncCalls(Protocol):
    """Calls that are awaited."""

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> Any:
        """Call a unary method."""
        ...

    def stream(
        self,
        service: str,
        method: str,
        request: Message | AsyncIterable[Message],
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> AsyncMessageStream[Any]:
        """Call a method that streams its replies."""
        ...
