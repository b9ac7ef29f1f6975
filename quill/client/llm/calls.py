"""The seam to the clients: what the LLM half needs of one. QuillClient and AsyncQuillClient are such."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from quill.client.options import MAX_TIMEOUT_MS

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from quill import proto
    from quill.client.headers import Headers
    from quill.client.streams import AsyncMessageStream, MessageStream
    from quill.client.transport import ResponseMetadata

SERVICE = "inference.v1.LLMService"

_LEFT = "the caller has closed the stream"

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

    @property
    def timeout_ms(self) -> int | None:
        """How long a unary call may take that says nothing of it; None for no bound."""
        ...

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the gap between two messages of a stream may be; None for no bound."""
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
        first_message_timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> MessageStream[Any]:
        """Call a method that streams its replies."""
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
        first_message_timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> AsyncMessageStream[Any]:
        """Call a method that streams its replies."""
        ...


def _first_message_timeout_ms(client: SyncCalls | AsyncCalls, request: proto.GenerateRequest) -> int | None:
    """The first message of a resumed stream is not its beginning: it may take as long as any other."""
    if not request.stream_options.HasField("resume"):
        return None
    return MAX_TIMEOUT_MS if client.idle_timeout_ms is None else client.idle_timeout_ms


@dataclass(frozen=True, slots=True)
class SyncRun:
    """The calls of one generation: as many streams as it takes, and the end of the run."""

    client: SyncCalls
    headers: Headers | None
    response: ResponseMetadata | None

    def open(self, request: proto.GenerateRequest, timeout_ms: int | None) -> MessageStream[Any]:
        """One stream of it."""
        return self.client.stream(
            SERVICE,
            "StreamGenerate",
            request,
            timeout_ms=timeout_ms,
            first_message_timeout_ms=_first_message_timeout_ms(self.client, request),
            headers=self.headers,
            response=self.response,
        )

    def cancel(self, request_id: str, timeout_ms: int) -> None:
        """Tell the server that nobody comes back."""
        from quill.proto import CancelGenerateRequest

        request = CancelGenerateRequest(request_id=request_id, reason=_LEFT)
        self.client.call(SERVICE, "CancelGenerate", request, timeout_ms=timeout_ms, headers=self.headers)


@dataclass(frozen=True, slots=True)
class AsyncRun:
    """As SyncRun, awaited."""

    client: AsyncCalls
    headers: Headers | None
    response: ResponseMetadata | None

    def open(self, request: proto.GenerateRequest, timeout_ms: int | None) -> AsyncMessageStream[Any]:
        """As ``SyncRun.open``."""
        return self.client.stream(
            SERVICE,
            "StreamGenerate",
            request,
            timeout_ms=timeout_ms,
            first_message_timeout_ms=_first_message_timeout_ms(self.client, request),
            headers=self.headers,
            response=self.response,
        )

    async def cancel(self, request_id: str, timeout_ms: int) -> None:
        """As ``SyncRun.cancel``."""
        from quill.proto import CancelGenerateRequest

        request = CancelGenerateRequest(request_id=request_id, reason=_LEFT)
        await self.client.call(SERVICE, "CancelGenerate", request, timeout_ms=timeout_ms, headers=self.headers)
