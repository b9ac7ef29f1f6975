"""What a run consumed: the engine's own counts, or estimates where it tells none."""

from __future__ import annotations

from collections.abc import Sequence

from quill import generation
from quill.proto import ChatMessage, GenerateRequest, Usage

_BYTES_PER_TOKEN = 4
"""The usual figure for English text."""


def estimated_tokens(size_bytes: int) -> int:
    """How many tokens a text may have whose tokens nobody counted."""
    return -(-size_bytes // _BYTES_PER_TOKEN)


def text_bytes(text: str, messages: Sequence[ChatMessage]) -> int:
    """How many bytes a text and the messages have together."""
    contents = [message.content for message in messages]
    parts = [part.text for message in messages for part in message.parts]
    return sum(len(piece.encode()) for piece in (text, *contents, *parts))


class UsageMeter:
    """Adds up the starts of a run.

    The prompt counts once, however many sequences are generated from it. Where the engine told no counts, the
    completion is what was delivered and the prompt is its tokens, or its bytes / 4, and the sum is ``estimated``.

    Args:
        request: What was asked.
    """

    def __init__(self, request: GenerateRequest) -> None:
        size = text_bytes(request.prompt, request.messages)
        self._prompt_estimate = len(request.prompt_token_ids) or estimated_tokens(size)
        self._told: generation.Usage | None = None
        self._total = Usage()

    def tell(self, usage: generation.Usage) -> None:
        """The engine's counts of the start that runs now; the last one told is the one that counts."""
        self._told = usage

    def end_start(self, delivered: int, *, cut: bool) -> None:
        """Add the start that ran now.

        Args:
            delivered: How many tokens it gave.
            cut: Whether it was ended before the engine came to its own end, so that its counts may be old.
        """
        told, self._told, total = self._told, None, self._total
        if told is None:
            told = generation.Usage(self._prompt_estimate, delivered, estimated=True)
        total.prompt_tokens = max(total.prompt_tokens, told.prompt_tokens)
        total.cached_tokens = max(total.cached_tokens, told.cached_tokens)
        total.completion_tokens += max(told.completion_tokens, delivered) if cut else told.completion_tokens
        total.reasoning_tokens += told.reasoning_tokens
        total.estimated |= told.estimated

    def used(self, delivered: int) -> int:
        """Tokens of prompt and completion together, at any time: as they were told, or else estimated and delivered."""
        prompt_tokens = self._total.prompt_tokens or self._prompt_estimate
        return prompt_tokens + max(self._total.completion_tokens, delivered)

    def total(self) -> Usage:
        """The counts of all starts that have ended."""
        return self._total
