"""Drawing a token: from the model's probabilities to one id.

The steps, in this order, each on the outcome of the one before:

1. logit_bias is added to the natural logarithm of the model's probability of a token.
2. Tokens that may not come now (the end of sequence before min_tokens, what fits no choice) get probability 0, and
   the rest is normalised to the sum 1. The logarithms of this are the ``logprobs`` that a request can ask for.
3. temperature divides them; 0 takes the most probable token, and of equal ones the one with the lowest id.
4. top_k keeps the k most probable tokens, and of equal ones those with the lowest ids; 0 keeps all.
5. top_p keeps the smallest set of the most probable tokens whose normalised mass reaches p: the token that reaches
   it is kept.
6. min_p keeps the tokens of at least this share of the highest probability.
7. What is kept is normalised, and one number u, uniform in [0, 1), chooses the first id whose cumulative
   probability, summed by ascending id, is above u.

The numbers come from numpy's PCG64 (O'Neill 2014), ``Generator.random``, one per token; a greedy token takes none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SEED_MODULUS = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn. The defaults change nothing."""

    temperature: float = 1.0
    """At least 0."""
    top_k: int = 0
    top_p: float = 1.0
    """In (0, 1]."""
    min_p: float = 0.0
    """In [0, 1]."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)


def generator(seed: int) -> np.random.Generator:
    """The source of numbers for a seed. PCG64 takes no negative seed: one counts as its value modulo 2**64."""
    return np.random.Generator(np.random.PCG64(seed % _SEED_MODULUS))


def log_probabilities(
    probabilities: NDArray[np.float64],
    logit_bias: Mapping[int, float],
    *,
    allowed: Collection[int] | None = None,
    forbidden: Collection[int] = (),
) -> NDArray[np.float64]:
    """Steps 1 and 2.

    Args:
        probabilities: float64 [vocab_size], all above 0. Not changed.
        logit_bias: By id.
        allowed: The only ids that may come; None for all.
        forbidden: Ids that may not come. Gives way where nothing else is allowed.

    Returns:
        float64 [vocab_size]: natural logarithms, minus infinity for what may not come.
    """
    logits = np.log(probabilities)
    for id_, bias in logit_bias.items():
        logits[id_] += bias
    if allowed is not None:
        logits = _only(logits, allowed)
    rest = logits.copy()
    rest[list(forbidden)] = -np.inf
    if rest.max() > -np.inf:
        logits = rest
    logits -= logits.max()
    logits -= np.log(np.exp(logits).sum())
    return logits


def draw(logprobs: NDArray[np.float64], sampling: Sampling, numbers: np.random.Generator) -> int:
    """Steps 3 to 7: the id of one token. Takes one number, or none where temperature is 0."""
    if sampling.temperature == 0:
        return int(logprobs.argmax())
    cumulative = np.cumsum(drawn_from(logprobs, sampling))
    # Rounding may leave the last sum a little below 1: the largest possible number then means the last token kept.
    u = min(numbers.random(), np.nextafter(cumulative[-1], 0))
    return int(np.searchsorted(cumulative, u, side="right"))


def drawn_from(logprobs: NDArray[np.float64], sampling: Sampling) -> NDArray[np.float64]:
    """Steps 3 to 6, normalised: the probabilities of the draw where temperature is above 0, float64 [vocab_size]."""
    probabilities = _normalised(np.exp((logprobs - logprobs.max()) / sampling.temperature))
    if sampling.top_k or sampling.top_p < 1:
        ranked = np.argsort(-probabilities, kind="stable")[: sampling.top_k or None]
        mass = np.cumsum(_normalised(probabilities[ranked]))
        kept = ranked[: np.searchsorted(mass, sampling.top_p) + 1] if sampling.top_p < 1 else ranked
        probabilities = _only(probabilities, kept, other=0)
    if sampling.min_p:
        probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
    return _normalised(probabilities)


def _only(
    values: NDArray[np.float64], ids: Collection[int] | NDArray[np.int64], other: float = -np.inf
) -> NDArray[np.float64]:
    kept = np.full_like(values, other)
    index = np.fromiter(ids, np.int64)
    kept[index] = values[index]
    return kept


def _normalised(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return weights / float(weights.sum())
