"""Language models behind inference.v1.LLMService: the servicer, and the seam to an engine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quill.llm.backend import (
        Backend,
        BackendEvent,
        Candidate,
        Embedder,
        Embedding,
        Finished,
        ModelInfo,
        Note,
        Progress,
        PromptTokens,
        Reasoning,
        Seeded,
        Tokenizer,
        Tokens,
        ToolCallDelta,
        UsageReport,
    )
    from quill.llm.run import Timeouts
    from quill.llm.servicer import LLMServicer

_BACKEND_TYPES = (
    "Backend",
    "BackendEvent",
    "Candidate",
    "Embedder",
    "Embedding",
    "Finished",
    "ModelInfo",
    "Note",
    "Progress",
    "PromptTokens",
    "Reasoning",
    "Seeded",
    "Tokenizer",
    "Tokens",
    "ToolCallDelta",
    "UsageReport",
)
_MODULES = {"LLMServicer": "servicer", "Timeouts": "run", **dict.fromkeys(_BACKEND_TYPES, "backend")}

__all__ = [
    "Backend",
    "BackendEvent",
    "Candidate",
    "Embedder",
    "Embedding",
    "Finished",
    "LLMServicer",
    "ModelInfo",
    "Note",
    "Progress",
    "PromptTokens",
    "Reasoning",
    "Seeded",
    "Timeouts",
    "Tokenizer",
    "Tokens",
    "ToolCallDelta",
    "UsageReport",
]


def __getattr__(name: str) -> Any:
    """Load a name when it is first asked for: the servicer loads grpc."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"quill.llm.{module}"), name)
