"""The seam between the clients and their typed halves: what a half needs of one. Both clients are such."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from quill.client.headers import Headers
    from quill.client.streams import AsyncMessageStream, MessageStream
    from quill.client.transport import Codec, ResponseMetadata

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A unary call: the method, what to send, and what the reply means."""

    method: str
    request: Message | bytes
    """A message, or a serialized one, and then so is the reply: for those that upb is not to read."""
    read: Callable[[Any], T]

    @property
    def codec(self) -> Codec | None:
        """What bytes are."""
        return "proto" if isinstance(self.request, bytes) else None


class SyncCalls(Protocol):
    """Calls that block."""

    @property
    def protocol(self) -> str:
        """``"connect"``, ``"grpc"``, ``"grpc-web"`` or ``"quill"``."""
        ...

    @property
    def timeout_ms(self) -> int | None:
        """How long a unary call may take that says nothing of it; None for no bound."""
        ...

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the gap between two messages of a stream may be; None for no bound."""
        ...

    @property
    def max_message_bytes(self) -> int:
        """How large a request or a reply may be, after decompression."""
        ...

    def call(
        self,
        service: str,
        method: str,
        request: Any,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        codec: Codec | None = None,
        response: ResponseMetadata | None = None,
    ) -> Any:
        """Call a unary method with a message, or with bytes."""
        ...

    def stream(
        self,
        service: str,
        method: str,
        request: Any,
        *,
        timeout_ms: int | None = None,
        first_message_timeout_ms: int | None = None,
        max_attempts: int | None = None,
        headers: Headers | None = None,
        codec: Codec | None = None,
        response: ResponseMetadata | None = None,
    ) -> MessageStream[Any]:
        """Call a method that streams its replies, with one message or bytes, or an iterator of them."""
        ...


class AsyncCalls(Protocol):
    """Calls that are awaited."""

    @property
    def timeout_ms(self) -> int | None:
        """How long a unary call may take that says nothing of it; None for no bound."""
        ...

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the gap between two messages of a stream may be; None for no bound."""
        ...

    @property
    def max_message_bytes(self) -> int:
        """How large a request or a reply may be, after decompression."""
        ...

    async def call(
        self,
        service: str,
        method: str,
        request: Any,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        codec: Codec | None = None,
        response: ResponseMetadata | None = None,
    ) -> Any:
        """Call a unary method with a message, or with bytes."""
        ...

    def stream(
        self,
        service: str,
        method: str,
        request: Any,
        *,
        timeout_ms: int | None = None,
        first_message_timeout_ms: int | None = None,
        max_attempts: int | None = None,
        headers: Headers | None = None,
        codec: Codec | None = None,
        response: ResponseMetadata | None = None,
    ) -> AsyncMessageStream[Any]:
        """Call a method that streams its replies, with one message or bytes, or an iterator of them."""
        ...
