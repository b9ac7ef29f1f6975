"""Text generation with the blocking client."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self, Unpack

from quill.client.llm_fold import generation
from quill.client.llm_request import SERVICE, GenerateOptions, generate_request
from quill.client.llm_view import LINGER_MS, GenerationView
from quill.client.model import Model
from quill.errors import RpcError

if TYPE_CHECKING:
    from types import TracebackType

    from quill import proto
    from quill.client.headers import Headers
    from quill.client.streams import MessageStream
    from quill.client.sync_client import QuillClient
    from quill.client.transport import ResponseMetadata
    from quill.generation import Delta, Generation


class LLM:
    """inference.v1.LLMService. ``timeout_ms``, ``headers`` and ``response`` are those of ``QuillClient.call``.

    Args:
        client: Whose connection and headers are used.
    """

    def __init__(self, client: QuillClient) -> None:
        self._client = client

    def generate(
        self,
        prompt: str | None = None,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Generate and return at the end.

        Args:
            prompt: The input as text; or ``messages=`` or ``prompt_token_ids=`` in its place.
            timeout_ms: How long it may take.
            headers: Sent with this call.
            response: Filled with the reply's headers and trailers.
            options: Any field of inference.v1.GenerateRequest by name; see GenerateOptions.

        Raises:
            InvalidUsage: An option is unknown or out of range.
            RpcError: The status that the call ended with.
        """
        request = generate_request(prompt, options)
        reply = self._client.call(
            SERVICE, "Generate", request, timeout_ms=timeout_ms, headers=headers, response=response
        )
        return generation(reply)

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationStream:
        """Generate and iterate over the pieces as they come. Arguments as in ``generate``."""
        request = generate_request(prompt, options)
        messages = self._client.stream(
            SERVICE, "StreamGenerate", request, timeout_ms=timeout_ms, headers=headers, response=response
        )
        return GenerationStream(messages, request.request_id)

    def models(self, *, timeout_ms: int | None = None) -> list[Model]:
        """The models on offer, by name."""
        from quill.proto import ListModelsRequest

        models: list[Model] = []
        request = ListModelsRequest()
        while True:
            reply = self._client.call(SERVICE, "ListModels", request, timeout_ms=timeout_ms)
            models += map(Model.from_proto, reply.models)
            if not (reply.models and reply.next_page_token):
                return models
            request.page_token = reply.next_page_token

    def cancel(self, request_id: str, reason: str = "", *, timeout_ms: int | None = None) -> bool:
        """Stop a generation of the same caller.

        Args:
            request_id: The run's id.
            reason: Why, for the server's log.
            timeout_ms: How long the call may take.

        Returns:
            Whether a live run of this caller had that id. The engine has been told then.
        """
        from quill.proto import CancelGenerateRequest

        request = CancelGenerateRequest(request_id=request_id, reason=reason)
        return bool(self._client.call(SERVICE, "CancelGenerate", request, timeout_ms=timeout_ms).found)


class GenerationStream(GenerationView):
    """The pieces of a generation as they come. Close it, use it as a context manager, or read it to its end.

    Raises, from ``next``: an RpcError where the server refuses the generation; StreamInterrupted where it ends after
    it began and before it was complete, for whatever reason.
    """

    def __init__(self, messages: MessageStream[proto.StreamGenerateResponse], request_id: str) -> None:
        super().__init__(request_id)
        self._messages = messages
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        while not self._ended:
            delta = self._take()
            if delta is not None:
                return delta
        raise StopIteration

    def result(self) -> Generation:
        """Read to the end, and return the whole generation.

        Raises:
            RpcError: As from ``next``, also where that raised it before; CANCELLED where the stream was closed early.
        """
        for _ in self:
            pass
        if not self._fold.completed:
            raise self._why_incomplete()
        return self._fold.result()

    def close(self) -> None:
        """End the generation if it still runs. May be called again, and from any thread."""
        self._ended = True
        self._messages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> Delta | None:
        """Wait for the next message."""
        try:
            delta = self._fold.add(next(self._messages))
        except StopIteration:
            self.close()
            raise self._fail(None) from None
        except RpcError as error:
            self.close()
            failure = self._fail(error)
            raise failure from (None if failure is error else error)
        except BaseException:
            self.close()
            raise
        if self._fold.completed:
            self._finish()
        return delta

    def _finish(self) -> None:
        """Read the status, which cannot change anything any more."""
        self._messages.idle_timeout_ms = LINGER_MS
        with contextlib.suppress(RpcError, StopIteration):
            next(self._messages)
        self.close()
