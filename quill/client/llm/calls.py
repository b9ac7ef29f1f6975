"""The calls of one generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from quill.client.options import MAX_TIMEOUT_MS

if TYPE_CHECKING:
    from quill import proto
    from quill.client.calls import AsyncCalls, SyncCalls
    from quill.client.headers import Headers
    from quill.client.streams import AsyncMessageStream, MessageStream
    from quill.client.transport import ResponseMetadata

SERVICE = "inference.v1.LLMService"

_LEFT = "the caller has closed the stream"


class _Resumed(TypedDict, total=False):
    """How the stream of a run differs that is asked for again."""

    first_message_timeout_ms: int
    max_attempts: int


def _resumed(client: SyncCalls | AsyncCalls, request: proto.GenerateRequest) -> _Resumed:
    """The first message is not its beginning: it may take as long as any other. And who resumes asks again himself."""
    if not request.stream_options.HasField("resume"):
        return {}
    timeout_ms = MAX_TIMEOUT_MS if client.idle_timeout_ms is None else client.idle_timeout_ms
    return {"first_message_timeout_ms": timeout_ms, "max_attempts": 1}


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
            headers=self.headers,
            response=self.response,
            **_resumed(self.client, request),
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
            headers=self.headers,
            response=self.response,
            **_resumed(self.client, request),
        )

    async def cancel(self, request_id: str, timeout_ms: int) -> None:
        """As ``SyncRun.cancel``."""
        from quill.proto import CancelGenerateRequest

        request = CancelGenerateRequest(request_id=request_id, reason=_LEFT)
        await self.client.call(SERVICE, "CancelGenerate", request, timeout_ms=timeout_ms, headers=self.headers)
