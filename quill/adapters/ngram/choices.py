"""Constrained output: exactly one of several texts, spelt in whatever tokens fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quill.adapters.ngram.tokenizer import EOS_ID

if TYPE_CHECKING:
    from quill.adapters.ngram.tokenizer import Tokenizer


class Choices:
    """Which tokens may come next, so that the bytes of the output spell one of the choices.

    A token may come where the output with its bytes is the beginning of a choice, or all of it. The end of sequence
    may come where the output is a whole choice: it competes with the tokens that go on where the output is also the
    beginning of a longer choice, and nothing else may come where it is not.

    Args:
        values: The texts to choose from: at least one, none empty.
        tokenizer: The tokens.
    """

    def __init__(self, values: Sequence[str], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._remaining = {value.encode() for value in values}
        """What is still to come of each choice that the output so far begins."""

    @property
    def complete(self) -> bool:
        """Whether the output is a whole choice and the beginning of no other."""
        return self._remaining == {b""}

    def advance(self, id_: int) -> None:
        """Note that a token came. It must be one of ``allowed()``."""
        data = self._tokenizer.token_bytes(id_)
        self._remaining = {rest.removeprefix(data) for rest in self._remaining if rest.startswith(data)}

    def allowed(self) -> set[int]:
        """The ids that may come next."""
        longest = self._tokenizer.longest_token_bytes
        beginnings = {rest[:length] for rest in self._remaining for length in range(1, min(len(rest), longest) + 1)}
        ids = {self._tokenizer.token_id(beginning) for beginning in beginnings}
        if b"" in self._remaining:
            ids.add(EOS_ID)
        return {id_ for id_ in ids if id_ is not None}
