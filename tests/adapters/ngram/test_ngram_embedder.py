"""Hashed features against hashes that another program made, and a naive count of words."""

import os
import subprocess
import sys

import numpy as np
import pytest

from quill.adapters.ngram.embedder import HashedFeatures

HASHES = {
    "the": "5edaab6c90973a2e",
    " The": "5edaab6c90973a2e",
    " Queen": "f9683608a34543eb",
    ",": "0624c80352be5c2f",
    " ": "144fc5787a5c7b42",
}
"""What coreutils' ``b2sum -l 64`` prints for the feature of each token: "the", "queen", "," and a space."""


@pytest.fixture(scope="module")
def embedder(model):
    return HashedFeatures(model.tokenizer)


async def rows(embedder, *inputs):
    return [embedding.values async for embedding in embedder.embed(inputs)]


@pytest.mark.parametrize(("token", "digest"), HASHES.items(), ids=map(repr, HASHES))
async def test_a_token_is_one_signed_feature(embedder, oracle, token, digest):
    [id_] = oracle.encode(token)
    [[row]] = await rows(embedder, [id_])
    number = int.from_bytes(bytes.fromhex(digest), "little")
    expected = np.zeros(256)
    expected[number % 256] = -1 if number >= 2**63 else 1
    assert row.tolist() == expected.tolist()


async def test_the_end_of_sequence_has_no_feature(embedder):
    [[row, other]] = await rows(embedder, [0, 45])
    assert not row.any()
    assert other.any()


async def test_every_token_has_a_row_and_every_input_its_own(embedder):
    first, second, long = await rows(embedder, [45], [45, 362], [362] * 2048)
    assert (first.shape, second.shape, long.shape) == ((1, 256), (2, 256), (2048, 256))
    assert first.dtype == np.float32
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(long, np.repeat(second[1:], 2048, axis=0))


async def test_every_token_but_the_control_token_has_one_element_of_one(embedder):
    [all_rows] = await rows(embedder, range(2048))
    assert np.abs(all_rows).sum(axis=1).tolist() == [0] + [1] * 2047
    assert 0.45 < (all_rows.sum(axis=1) > 0).mean() < 0.55, "signs are fair"
    assert (np.abs(all_rows).sum(axis=0) > 0).all(), "every dimension is used"


async def test_two_texts_are_as_similar_as_they_share_words(embedder, oracle):
    one, same_words, other = await rows(
        embedder, *map(oracle.encode, ["the Queen said", " said The Queen", "a very small door"])
    )
    sums = [matrix.sum(axis=0) for matrix in (one, same_words, other)]
    assert sums[0] @ sums[1] == sums[0] @ sums[0] == 3
    assert sums[0] @ sums[2] == 0


def test_the_rows_are_the_same_in_every_process():
    program = (
        "import hashlib, numpy as np; from quill.adapters.ngram.model import NgramModel;"
        "from quill.adapters.ngram.embedder import HashedFeatures;"
        "rows = HashedFeatures(NgramModel.load().tokenizer)._rows(range(2048));"
        "print(hashlib.sha256(rows.astype('<i1').tobytes()).hexdigest())"
    )
    digests = set()
    for seed in ("0", "1"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        ended = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, timeout=60, check=True)
        digests.add(ended.stdout.strip())
    assert len(digests) == 1
