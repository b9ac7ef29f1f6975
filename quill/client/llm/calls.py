"""The calls of one generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quill.client.options import MAX_TIMEOUT_MS

if TYPE_CHECKING:
    from quill import proto
    from quill.client.calls import AsyncCalls, SyncCalls
    from quill.client.headers import Headers
    from quill.client.streams import AsyncMessageStream, MessageStream
    from quill.client.transport import ResponseMetadata

SERVICE = "inference.v1.LLMService"

_LEFT = "the caller has closed the stream"


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
