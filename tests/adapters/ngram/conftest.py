"""An oracle for the embedded model: everything from the shipped text and the list of tokens, naively, on its own."""

import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from quill.adapters.ngram.backend import NgramBackend

DATA = Path(__file__).parents[3] / "quill" / "adapters" / "ngram" / "data"
EOS = 0


def kind(character: str) -> str:
    if character.isspace():
        return "space"
    if character.isdecimal():
        return "digit"
    return "letter" if character.isalnum() else "mark"


def naive_split(text: str) -> list[str]:
    pieces = []
    while text:
        ending = re.match("'(?:s|d|m|t|ll|ve|re)", text)
        size = len(ending[0]) if ending else piece_length(text)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def piece_length(text: str) -> int:
    if kind(text[0]) == "space" and not (text[0] == " " and len(text) > 1 and kind(text[1]) != "space"):
        spaces = 0
        while spaces < min(len(text), 64) and kind(text[spaces]) == "space":
            spaces += 1
        word_follows = spaces < len(text) and kind(text[spaces]) != "space"
        return max(1, spaces - word_follows)
    first = 1 if text[0] == " " else 0
    size = first
    while size < min(len(text), first + 64) and kind(text[size]) == kind(text[first]):
        size += 1
    return size


class Oracle:
    """Tokens by naive byte-pair encoding, probabilities by naive Witten-Bell interpolation over dicts."""

    def __init__(self) -> None:
        with np.load(DATA / "model.npz", allow_pickle=False) as arrays:
            data, self.vocabulary = arrays["token_bytes"].tobytes(), []
            for length in arrays["token_lengths"].tolist():
                self.vocabulary.append(data[:length])
                data = data[length:]
        self.size = len(self.vocabulary)
        self.rank = {token: id_ for id_, token in enumerate(self.vocabulary) if token}
        self.following = defaultdict(Counter)
        for ids in self.passages():
            for at in range(1, len(ids)):
                for length in range(min(at, 3) + 1):
                    self.following[tuple(ids[at - length : at])][ids[at]] += 1

    def passages(self) -> list[list[int]]:
        found, paragraphs = [], []
        book = (DATA / "alice.txt").read_text(encoding="utf-8").split("\n\n")
        for paragraph in [*book[2:], "* * *"]:
            heading = paragraph.startswith("CHAPTER ") or paragraph.strip() in ("* * *", "THE END")
            if paragraphs and (heading or sum(map(len, paragraphs)) >= 400):
                found.append([EOS, *self.encode("\n\n".join(paragraphs)), EOS])
                paragraphs = []
            if not heading:
                paragraphs.append(paragraph)
        return found

    def encode(self, text: str) -> list[int]:
        ids = []
        for piece in naive_split(text):
            parts = [bytes([byte]) for byte in piece.encode()]
            while True:
                pairs = [(self.rank.get(parts[i] + parts[i + 1], self.size), i) for i in range(len(parts) - 1)]
                best, at = min(pairs, default=(self.size, 0))
                if best == self.size:
                    break
                parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
            ids += [self.rank[part] for part in parts]
        return ids

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        lower = self.probability(token, context[1:]) if context else 1 / self.size
        counts = self.following.get(context)
        if not counts:
            return lower
        return (counts[token] + len(counts) * lower) / (sum(counts.values()) + len(counts))

    def distribution(self, ids: list[int]) -> list[float]:
        history = [EOS, *ids]
        begin = max(at for at, id_ in enumerate(history) if id_ == EOS)
        context = tuple(history[begin:][-3:])
        return [self.probability(token, context) for token in range(self.size)]

    def logprobs(self, ids, *, bias=None, allowed=None, forbidden=()) -> dict[int, float]:
        """Steps 1 and 2 of quill.adapters.ngram.sampling: log probabilities of all tokens that may come."""
        logits = {id_: math.log(p) + (bias or {}).get(id_, 0.0) for id_, p in enumerate(self.distribution(ids))}
        logits = {id_: logit for id_, logit in logits.items() if allowed is None or id_ in allowed}
        logits = {id_: logit for id_, logit in logits.items() if id_ not in forbidden} or logits
        largest = max(logits.values())
        total = largest + math.log(math.fsum(math.exp(logit - largest) for logit in logits.values()))
        return {id_: logit - total for id_, logit in logits.items()}


def naive_truncation(logprobs: dict[int, float], *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> dict[int, float]:
    """Steps 3 to 6, in plain Python: the probabilities of the draw, for those above 0, by ascending id."""
    weights = {id_: math.exp(logprob / temperature) for id_, logprob in logprobs.items()}
    ranked = sorted(weights, key=lambda id_: (-weights[id_], id_))
    if top_k:
        ranked = ranked[:top_k]
    if top_p < 1:
        total, mass, kept = math.fsum(weights[id_] for id_ in ranked), 0.0, []
        for id_ in ranked:
            kept.append(id_)
            mass += weights[id_] / total
            if mass >= top_p:
                break
        ranked = kept
    ranked = [id_ for id_ in ranked if weights[id_] >= min_p * weights[ranked[0]]]
    total = math.fsum(weights[id_] for id_ in ranked)
    return {id_: weights[id_] / total for id_ in sorted(ranked)}


def naive_draw(probabilities: dict[int, float], u: float) -> int:
    """Step 7: the first id whose cumulative probability is above u."""
    cumulative = 0.0
    for id_, probability in probabilities.items():
        cumulative += probability
        if cumulative > u:
            return id_
    raise AssertionError("the probabilities do not reach u")


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture(scope="session")
def backend() -> NgramBackend:
    return NgramBackend()


@pytest.fixture(scope="session")
def model(backend):
    return backend.model


@pytest.fixture(scope="session")
def naive():
    """The parts of the oracle that are plain functions."""

    class Naive:
        split = staticmethod(naive_split)
        truncation = staticmethod(naive_truncation)
        draw = staticmethod(naive_draw)

    return Naive
