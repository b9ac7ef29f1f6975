"""The n-gram model, with a note at the end of each generation: what a client finds in the trailing metadata.

The folder is a distribution as pip would have installed it: on the path, ``quill serve --backend interop`` finds it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from quill.adapters.ngram.backend import NgramBackend
from quill.llm.backend import Note, Tokens

if TYPE_CHECKING:
    from quill.llm.backend import BackendEvent, ModelInfo
    from quill.proto import GenerateRequest


class InteropBackend(NgramBackend):
    """Tells how many tokens it gave as ``interop-note``."""

    name = "interop"

    async def generate(self, request: GenerateRequest, *, model: ModelInfo) -> AsyncIterator[BackendEvent]:
        """As the n-gram does, and then the note."""
        tokens = 0
        async with aclosing(super().generate(request, model=model)) as events:  # type: ignore[type-var]
            async for event in events:
                tokens += isinstance(event, Tokens)
                yield event
        yield Note("interop-note", f"{tokens} tokens")
