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
    from quill.llm.output import Output
    from quill.llm.run import Timeouts
    from quill.llm.servicer import LLMServicer
    from quill.llm.stepping import SteppingBackend, Submission, put_tokens

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
_MODULES = {
    "LLMServicer": "servicer",
    "Output": "output",
    "Timeouts": "run",
    **dict.fromkeys(("SteppingBackend", "Submission", "put_tokens"), "stepping"),
    **dict.fromkeys(_BACKEND_TYPES, "backend"),
}

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
    "Output",
    "Progress",
    "PromptTokens",
    "Reasoning",
    "Seeded",
    "SteppingBackend",
    "Submission",
    "Timeouts",
    "Tokenizer",
    "Tokens",
    "ToolCallDelta",
    "UsageReport",
    "put_tokens",
]


def __getattr__(name: str) -> Any:
    """Load a name when it is first asked for: the servicer loads grpc."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"quill.llm.{module}"), name)
