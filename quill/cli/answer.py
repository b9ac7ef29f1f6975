"""One answer of a chat: asked for, shown as it comes, and stopped by Ctrl-C on the server too."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quill.cli.terminal import complain, write, write_json
from quill.errors import Cancelled, QuillError, RpcError

if TYPE_CHECKING:
    from quill.client.async_client import AsyncQuillClient
    from quill.client.llm.conversation import ChatMessage
    from quill.client.llm.request import GenerateOptions

CANCEL_TIMEOUT_MS = 2_000
"""How long an interrupted chat waits for the server to say that it has stopped."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The text that was shown, and why there is no more of it, where the answer is not whole."""

    text: str
    error: QuillError | None = None


class Answerer:
    """Asks a server for the answers of one chat, and shows them as text.

    Args:
        client: Who asks.
        options: What every request has beside its messages.
    """

    def __init__(self, client: AsyncQuillClient, options: GenerateOptions) -> None:
        self._client = client
        self._options = options

    async def answer(self, messages: Sequence[ChatMessage]) -> Answer:
        """Ask for the answer to a conversation, and show it as it comes.

        Ctrl-C ends the answer alone: the server is told, and what was shown is returned.
        """
        request_id = uuid.uuid4().hex
        shown: list[str] = []
        error: QuillError | None = None
        with _interruptible():
            try:
                await self._show(messages, request_id, shown)
            except asyncio.CancelledError:
                error = Cancelled("interrupted")
                with contextlib.suppress(QuillError, asyncio.CancelledError):
                    await self._client.llm.cancel(request_id, "interrupted", timeout_ms=CANCEL_TIMEOUT_MS)
            except QuillError as failure:
                error = failure
        self._end(shown, error)
        return Answer("".join(shown).rstrip(), error)

    async def _show(self, messages: Sequence[ChatMessage], request_id: str, shown: list[str]) -> None:
        """Ask, and show. What has been shown is in ``shown``, also where this does not come to its end."""
        options: GenerateOptions = {**self._options, "messages": messages, "request_id": request_id}
        async with self._client.llm.stream(**options) as stream:
            async for delta in stream:
                # A model that continues "assistant:" begins with a space, which is none of what it says.
                text = delta.text if shown else delta.text.lstrip()
                if text:
                    shown.append(text)
                    write(text, end="")

    def _end(self, shown: Sequence[str], error: QuillError | None) -> None:
        """End the line of the answer, and say what cut it off."""
        if shown or error is None or isinstance(error, Cancelled):
            write()
        if error is not None and not isinstance(error, Cancelled):
            complain(str(error))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C cancels the task that runs inside, each time it is pressed, and interrupts nothing else."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  (a coroutine on a loop runs in a task)
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        while task.cancelling():
            task.uncancel()


class JsonAnswerer(Answerer):
    """The same for programs: one line of JSON for each answer, the reply of Generate, or ``{"error": ...}``."""

    async def _show(self, messages: Sequence[ChatMessage], request_id: str, shown: list[str]) -> None:
        given = {name: value for name, value in self._options.items() if value is not None}
        request = {"messages": list(messages), "request_id": request_id, **given}
        reply: dict[str, Any] = await self._client.call_json("inference.v1.LLMService", "Generate", request)
        shown.append(str(reply.get("text", "")).lstrip())
        write_json(reply)

    def _end(self, shown: Sequence[str], error: QuillError | None) -> None:
        if error is not None:
            code = error.code.name if isinstance(error, RpcError) else "INVALID_ARGUMENT"
            message = error.message if isinstance(error, RpcError) else str(error)
            write_json({"error": {"code": code, "message": message}})
