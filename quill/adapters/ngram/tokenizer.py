"""Subword tokens: a byte-level byte-pair encoding, and back to bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

from quill.errors import InvalidUsage

EOS_ID = 0
"""The control token that stands between passages. It has no bytes."""

EOS_TEXT = b"<|endoftext|>"
"""What people are told in place of its bytes. A text with these characters has other tokens."""

_PIECE = re.compile(
    r"'(?:[sdmt]|ll|ve|re)"  # endings of contractions
    r"| ?[^\W\d_]{1,64}"  # letters
    r"| ?\d{1,64}"
    r"| ?(?:[^\s\w]|_){1,64}"  # marks
    r"|\s{1,64}(?!\S)"  # white space, all but its last character where a word follows
    r"|\s"
)
"""What a token never reaches across: words, numbers and marks with the space before them. Every character belongs
to exactly one piece. The idea is GPT-2's (Radford et al. 2019, section 2.2); the bound of 64 is ours and keeps the
time of ``encode`` proportional to the text."""

_CACHED_PIECES = 8192


def split(text: str) -> Iterator[bytes]:
    """The pieces of a text as UTF-8, in order; joined they are the text.

    Raises:
        InvalidUsage: The text holds a surrogate, which UTF-8 cannot carry.
    """
    try:
        for piece in _PIECE.findall(text):
            yield piece.encode()
    except UnicodeEncodeError:
        at = next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")
        raise InvalidUsage(f"the text cannot be UTF-8: character {at} is the lone surrogate {text[at]!a}") from None


class Tokenizer:
    """Byte-pair encoding over bytes (Sennrich, Haddow and Birch 2016), so that any text and any bytes have tokens.

    A token's id is its rank. In each piece, the neighbours whose joined bytes are the token of the lowest rank are
    joined, the leftmost first, until no neighbours are a token together.

    Args:
        vocabulary: The bytes of each token by id. Id 0 is the end of sequence and empty; all 256 single bytes are
            there, and no two tokens have the same bytes.
    """

    def __init__(self, vocabulary: Sequence[bytes]) -> None:
        self._vocabulary = tuple(vocabulary)
        self._ids = {data: id_ for id_, data in enumerate(self._vocabulary) if data}
        self.longest_token_bytes = max(len(data) for data in self._vocabulary)
        """The length of the longest token: a text of n bytes has at least n / longest_token_bytes tokens."""
        self._cached_merge = lru_cache(_CACHED_PIECES)(self._merge)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, control tokens included."""
        return len(self._vocabulary)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Control tokens are never among them.

        Raises:
            InvalidUsage: The text holds a surrogate, which UTF-8 cannot carry.
        """
        return [id_ for piece in split(text) for id_ in self._cached_merge(piece)]

    def token_bytes(self, id_: int) -> bytes:
        """The bytes of one token, none for a control token.

        Raises:
            InvalidUsage: The id is outside the vocabulary.
        """
        if not 0 <= id_ < len(self._vocabulary):
            raise InvalidUsage(f"token id {id_} is outside the vocabulary of {len(self._vocabulary)} tokens")
        return self._vocabulary[id_]

    def told_bytes(self, id_: int) -> bytes:
        """What people are told of a token: its bytes, or the text that a control token is known by.

        Raises:
            InvalidUsage: The id is outside the vocabulary.
        """
        return self.token_bytes(id_) or EOS_TEXT

    def token_id(self, data: bytes) -> int | None:
        """The id of the token with exactly these bytes; None where there is none."""
        return self._ids.get(data)

    def _merge(self, piece: bytes) -> tuple[int, ...]:
        parts = [piece[at : at + 1] for at in range(len(piece))]
        while True:
            joined = [self._ids.get(left + right) for left, right in pairwise(parts)]
            rank = min((id_ for id_ in joined if id_ is not None), default=None)
            if rank is None:
                return tuple(self._ids[part] for part in parts)
            at = joined.index(rank)
            parts[at : at + 2] = [self._vocabulary[rank]]
