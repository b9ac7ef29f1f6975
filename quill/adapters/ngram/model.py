"""The language model: n-grams interpolated by Witten and Bell's method, and the file that holds their counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Self

import numpy as np

from quill.adapters.ngram.tokenizer import EOS_ID, Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORDER = 4
"""The longest n-gram: a token depends on at most the three before it."""


@dataclass(frozen=True, slots=True)
class CountTable:
    """The counts of all n-grams of one order, grouped by their context of n - 1 tokens."""

    contexts: NDArray[np.uint64]
    """The contexts, ascending, each as one number whose digits to the base of the vocabulary's size are its ids."""
    starts: NDArray[np.uint32]
    """Where the rows of each context begin, and the number of rows at the end."""
    tokens: NDArray[np.uint16]
    """Per row: the token that follows."""
    counts: NDArray[np.uint16]
    """Per row: how often the token follows the context in the text, at least once."""


class _Order:
    """One order's share of the interpolation: what it adds to each token, and what it leaves to the shorter context."""

    def __init__(self, table: CountTable) -> None:
        self.contexts, self.starts, self.tokens = table.contexts, table.starts, table.tokens
        followers = np.diff(table.starts).astype(np.int64)
        denominators = np.add.reduceat(table.counts, table.starts[:-1], dtype=np.int64) + followers
        self.shares = table.counts / np.repeat(denominators, followers)
        self.remainders = followers / denominators

    def row(self, context: int) -> int | None:
        """Where a packed context stands; None where the text never has it."""
        row = int(np.searchsorted(self.contexts, np.uint64(context)))
        return row if row < len(self.contexts) and int(self.contexts[row]) == context else None

    def interpolate(self, row: int, lower: NDArray[np.float64]) -> None:
        """Turn the lower order's distribution into this one's, in place."""
        rows = slice(self.starts[row], self.starts[row + 1])
        lower *= self.remainders[row]
        lower[self.tokens[rows]] += self.shares[rows]


class NgramModel:
    """Probabilities of the next token, exact and normalised over the whole vocabulary.

    With h a context, h' the same without its first token, c(h) how often h occurs with a token after it, and t(h)
    how many different tokens come after it,

        p(w | h) = (c(hw) + t(h) p(w | h')) / (c(h) + t(h))

    down to the empty context, below which every token has the probability 1 / vocabulary size, so that none is ever
    0. A context that the text never has leaves everything to the shorter one. This is method C of I. H. Witten and
    T. C. Bell, "The zero-frequency problem", IEEE Transactions on Information Theory 37 (1991), pages 1085-1094, in
    the interpolated form of S. F. Chen and J. Goodman, "An empirical study of smoothing techniques for language
    modeling", Computer Speech and Language 13 (1999), section 2. Kneser-Ney smoothing predicts unseen passages of
    this book better, but from so short a text it gives the shorter contexts so much weight that its sentences fall
    apart.

    Not changed after construction, so that threads may share it.

    Args:
        tokenizer: The tokens.
        tables: The counts of each order, from 1 (whose one context is empty) upwards.
    """

    def __init__(self, tokenizer: Tokenizer, tables: Sequence[CountTable]) -> None:
        self.tokenizer = tokenizer
        unigrams, *higher = map(_Order, tables)
        self._higher = higher
        self._unigrams = np.full(tokenizer.vocab_size, 1 / tokenizer.vocab_size)
        unigrams.interpolate(0, self._unigrams)

    @classmethod
    def load(cls) -> Self:
        """Read the model that the package brings, written by tools/build_ngram.py. Takes about 10 ms."""
        file = resources.files(__package__).joinpath("data", "model.npz")
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            ends = np.cumsum(arrays["token_lengths"], dtype=np.int64).tolist()
            data = arrays["token_bytes"].tobytes()
            vocabulary = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            fields = CountTable.__dataclass_fields__
            tables = [CountTable(*(arrays[f"{name}_{n}"] for name in fields)) for n in range(1, ORDER + 1)]
        return cls(Tokenizer(vocabulary), tables)

    def distribution(self, context: Sequence[int]) -> NDArray[np.float64]:
        """The probability of each token, by id, after a context.

        Args:
            context: The ids so far, the oldest first. They begin a passage, as if an end of sequence stood before
                them, and what stands before an end of sequence among them has no influence.

        Returns:
            float64 [vocab_size], all above 0, with the sum 1; the caller's own.
        """
        probabilities = self._unigrams.copy()
        history = [EOS_ID, *context][-len(self._higher) :]  # no n-gram reaches across an end of sequence
        number, digit = 0, 1
        for order, id_ in zip(self._higher, reversed(history), strict=False):
            number += id_ * digit
            digit *= self.tokenizer.vocab_size
            row = order.row(number)
            if row is None:
                break
            order.interpolate(row, probabilities)
        return probabilities
