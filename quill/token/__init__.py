"""Tokens as users hold them: one, the candidates for its place, and batches.

``encode()`` and ``decode()`` are the serialized messages of inference.v1; generated code loads with their first use.
"""

from __future__ import annotations

from quill.token.batch import TokenBatch
from quill.token.token import Token, TopLogprob

__all__ = ["Token", "TokenBatch", "TopLogprob"]
