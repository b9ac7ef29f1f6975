"""Embeddings without a trained model: hashed features of tokens.

Every token is one feature, and its row is zero but for one element, 1 or -1 (K. Weinberger, A. Dasgupta, J. Langford,
A. Smola and J. Attenberg, "Feature hashing for large scale multitask learning", ICML 2009, section 2). The feature is
the token's bytes in lower case without white space around them, or as they are where nothing else is left, so that
`` The`` and ``the`` have the same row. With h the BLAKE2b hash (RFC 7693) of the feature of 8 bytes, unkeyed, read as
a little-endian number,

    index = h mod 256        sign = -1 if h >= 2**63 else 1

The end of sequence has no feature: its row is zero. So two texts are similar as far as they have the same words, in
whatever order; what words mean is nowhere in it. Rows are made of integers, so that they are the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from quill.llm.backend import Embedding
from quill.proto import Pooling
from quill.wire.large import offload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quill.adapters.ngram.tokenizer import Tokenizer

DIMENSIONS = 256
_SIGN_BIT = 2**63
_INLINE_TOKENS = 512


class HashedFeatures:
    """The embedder of the embedded model: a row of float32 for each token.

    Args:
        tokenizer: The tokens. Control tokens are those without bytes.
    """

    dimensions = DIMENSIONS
    per_token = True
    pooling = Pooling.POOLING_MEAN
    normalized = False
    shortens = True
    """Any of the dimensions hold the features that hash there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        features = [tokenizer.token_bytes(id_) for id_ in range(tokenizer.vocab_size)]
        hashes = [_hash(data) for data in features]
        self._indices = np.array([number % DIMENSIONS for number in hashes], np.int64)
        signs = [(-1 if number >= _SIGN_BIT else 1) * bool(data) for number, data in zip(hashes, features, strict=True)]
        self._signs = np.array(signs, np.float32)

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> AsyncIterator[Embedding]:
        """The rows of each input, which is token ids."""
        for ids in inputs:
            yield Embedding(await offload(len(ids), _INLINE_TOKENS, self._rows, ids))

    def _rows(self, ids: str | Sequence[int]) -> NDArray[np.float32]:
        tokens = np.array(ids, np.int64)
        rows = np.zeros((len(tokens), DIMENSIONS), np.float32)
        rows[np.arange(len(tokens)), self._indices[tokens]] = self._signs[tokens]
        return rows


def _hash(data: bytes) -> int:
    feature = data.strip().lower() or data
    return int.from_bytes(hashlib.blake2b(feature, digest_size=8).digest(), "little")
