"""Write the embedded model: train its tokens on the shipped text, count the n-grams, save both.

usage: python tools/build_ngram.py [--out FILE] [--check]

The same text gives the same bytes. With --check nothing is written and the exit status says whether the committed
model is what comes out.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections import Counter, defaultdict
from itertools import groupby, pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  the repository's own package comes first on the path

from quill.adapters.ngram.model import ORDER  # noqa: E402
from quill.adapters.ngram.tokenizer import EOS_ID, Tokenizer, split  # noqa: E402

DATA = ROOT / "quill" / "adapters" / "ngram" / "data"
VOCAB_SIZE = 2048
PASSAGE_CHARACTERS = 400
"""A passage is as many whole paragraphs as it takes to reach this length. The end of sequence stands after it, so
that the model learns to end where a paragraph does, but not with the first."""

Ngram = tuple[int, ...]


def passages(text: str) -> list[str]:
    """The passages of the book. Titles and rows of asterisks part them and are left out."""
    found: list[list[str]] = [[]]
    for paragraph in text[text.index("CHAPTER I\n") :].strip().split("\n\n"):
        if re.fullmatch(r"CHAPTER [IVX]+\n.*|\* \* \*|THE END", paragraph):
            found.append([])
            continue
        if sum(map(len, found[-1])) >= PASSAGE_CHARACTERS:
            found.append([])
        found[-1].append(paragraph)
    return ["\n\n".join(paragraphs) for paragraphs in found if paragraphs]


def train_vocabulary(pieces: Counter[bytes], vocab_size: int) -> list[bytes]:
    """The tokens by id: the end of sequence, all bytes, then again and again the most frequent pair of neighbours.

    Of pairs that are equally frequent, the one with the greatest bytes is taken.
    """
    vocabulary = [b"", *(bytes([byte]) for byte in range(256))]
    words = [[bytes([byte]) for byte in piece] for piece in pieces]
    weights = list(pieces.values())
    frequency: Counter[bytes] = Counter()
    where: defaultdict[bytes, set[int]] = defaultdict(set)

    def count(word: int, sign: int) -> None:
        for left, right in pairwise(words[word]):
            frequency[left + right] += sign * weights[word]
            where[left + right].add(word)

    for word in range(len(words)):
        count(word, 1)
    while len(vocabulary) < vocab_size:
        token = max(frequency, key=lambda data: (frequency[data], data))
        vocabulary.append(token)
        for word in where.pop(token):
            count(word, -1)
            words[word] = join(words[word], token)
            count(word, 1)
        del frequency[token]
        where.pop(token, None)
    return vocabulary


def join(parts: list[bytes], token: bytes) -> list[bytes]:
    """The parts with every pair of neighbours that is the token made one, from the left."""
    joined: list[bytes] = []
    for part in parts:
        if joined and joined[-1] + part == token:
            joined[-1] = token
        else:
            joined.append(part)
    return joined


def count_ngrams(documents: list[list[int]], n: int) -> Counter[Ngram]:
    """How often each n-gram occurs. A document's first token is only ever a context."""
    return Counter(tuple(ids[end - n : end]) for ids in documents for end in range(max(n, 2), len(ids) + 1))


def table(counts: Counter[Ngram], vocab_size: int) -> dict[str, np.ndarray]:
    """One order's columns, as quill.adapters.ngram.model.CountTable describes them."""
    contexts, starts, tokens, values = [], [0], [], []
    for context, ngrams in groupby(sorted(counts), key=lambda ngram: ngram[:-1]):
        contexts.append(sum(id_ * vocab_size**place for place, id_ in enumerate(reversed(context))))
        for ngram in ngrams:
            tokens.append(ngram[-1])
            values.append(counts[ngram])
        starts.append(len(tokens))
    return {
        "contexts": np.array(contexts, "<u8"),
        "starts": np.array(starts, "<u4"),
        "tokens": np.array(tokens, "<u2"),
        "counts": np.array(values, "<u2"),
    }


def build(text: str) -> bytes:
    """The model file of a text: little-endian numpy arrays in an uncompressed archive."""
    parts = passages(text)
    vocabulary = train_vocabulary(Counter(piece for part in parts for piece in split(part)), VOCAB_SIZE)
    tokenizer = Tokenizer(vocabulary)
    documents = [[EOS_ID, *tokenizer.encode(part), EOS_ID] for part in parts]
    arrays = {
        "token_bytes": np.frombuffer(b"".join(vocabulary), np.uint8),
        "token_lengths": np.array([len(token) for token in vocabulary], np.uint8),
    }
    for n in range(1, ORDER + 1):
        columns = table(count_ngrams(documents, n), VOCAB_SIZE)
        arrays |= {f"{name}_{n}": column for name, column in columns.items()}
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def main() -> int:
    """Build, then compare or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=DATA / "model.npz", help="the file to write")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file differs")
    arguments = parser.parse_args()
    model = build((DATA / "alice.txt").read_text(encoding="utf-8"))
    if not arguments.check:
        arguments.out.write_bytes(model)
        return 0
    if arguments.out.read_bytes() == model:
        return 0
    print(f"{arguments.out.name} is not what tools/build_ngram.py writes; run it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
