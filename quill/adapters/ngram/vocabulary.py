"""The tokens of the embedded model behind the Tokenizer seam: off the event loop where that takes long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quill.adapters.ngram.tokenizer import EOS_ID
from quill.llm.backend import Tokens
from quill.wire.large import offload

if TYPE_CHECKING:
    from quill.adapters.ngram.tokenizer import Tokenizer

_INLINE_CHARACTERS = 512
_INLINE_IDS = 4096
"""What takes less than 1 ms: more goes to a thread."""


class Vocabulary:
    """Splits text into tokens and tells what tokens are.

    One token is special: the end of sequence, which also begins a prompt where that is asked for. The model takes
    every prompt for the beginning of a passage, so that it changes nothing and is the habit to leave it out.

    Args:
        tokenizer: The tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def longest_token_bytes(self) -> int:
        """How many bytes the longest token has."""
        return self._tokenizer.longest_token_bytes

    async def encode(self, text: str, *, add_special_tokens: bool | None = None) -> Tokens:
        """The tokens of a text; first the end of sequence where ``add_special_tokens`` is true."""
        return await offload(len(text), _INLINE_CHARACTERS, self._encode, text, begins=bool(add_special_tokens))

    async def decode(self, ids: Sequence[int]) -> Tokens:
        """The tokens with these ids."""
        return await offload(len(ids), _INLINE_IDS, self.columns, ids)

    def columns(self, ids: Sequence[int]) -> Tokens:
        """The tokens with these ids, at once."""
        special = [id_ == EOS_ID for id_ in ids] if EOS_ID in ids else None
        return Tokens(data=[self._tokenizer.told_bytes(id_) for id_ in ids], ids=ids, special=special)

    def _encode(self, text: str, *, begins: bool) -> Tokens:
        return self.columns([EOS_ID] * begins + self._tokenizer.encode(text))
