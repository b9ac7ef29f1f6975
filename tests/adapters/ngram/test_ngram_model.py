import time
from itertools import pairwise

import numpy as np
import pytest

from quill.adapters.ngram.model import NgramModel


def contexts(oracle):
    """Contexts of every kind: empty, frequent, rare, unseen, across an end of sequence, random places in the book."""
    chosen = [
        [],
        oracle.encode("Alice"),
        oracle.encode("Hello"),
        oracle.encode(" said the Mock Turtle"),
        oracle.encode("日本語"),
        oracle.encode("qqq zzz"),
        [0],
        [5, 0, *oracle.encode("The Queen")],
        [*oracle.encode("The Queen"), 0],
        [2047, 2046, 2045, 2044],
    ]
    passages = oracle.passages()
    return chosen + [ids[1 : 2 + 7 * at % len(ids)] for at, ids in enumerate(passages[:: len(passages) // 15])]


def test_distributions_are_those_that_the_counts_of_the_text_give(model, oracle):
    for context in contexts(oracle):
        np.testing.assert_allclose(model.distribution(context), oracle.distribution(context), rtol=1e-9, atol=0)


def test_distributions_are_normalised_and_leave_no_token_out(model, oracle):
    for context in contexts(oracle):
        probabilities = model.distribution(context)
        assert probabilities.shape == (2048,)
        assert probabilities.dtype == np.float64
        assert probabilities.min() > 0
        assert abs(probabilities.sum() - 1) < 1e-12


def test_only_three_tokens_and_the_beginning_of_a_passage_matter(model, oracle):
    ids = oracle.encode("Alice was beginning to get very tired")
    same = model.distribution([*oracle.encode("The Queen"), *ids[-3:]])
    np.testing.assert_array_equal(model.distribution(ids), same)
    np.testing.assert_array_equal(model.distribution([]), model.distribution([*ids, 0]))
    at_the_beginning = model.distribution(ids[:1])
    assert not np.array_equal(at_the_beginning, model.distribution([7, *ids[:1]]))


def test_a_distribution_is_the_callers_own(model):
    model.distribution([])[:] = 0
    assert model.distribution([]).min() > 0


def test_the_end_of_sequence_is_likely_after_a_paragraph_and_not_within_a_sentence(model, oracle):
    assert model.distribution(oracle.encode('"I do," said Alice."'))[0] > 0.1
    assert model.distribution(oracle.encode("Alice was"))[0] < 0.01


def test_the_model_predicts_its_book_far_better_than_chance(model, oracle):
    passage = oracle.passages()[100]
    bits = [-np.log2(model.distribution(passage[1:at])[passage[at]]) for at in range(1, len(passage))]
    assert np.mean(bits) < 4  # 11 bits are chance


def test_the_model_loads_quickly_and_answers_within_a_millisecond(model, oracle):
    start = time.perf_counter()
    NgramModel.load()
    assert time.perf_counter() - start < 5 * 0.5
    ids = oracle.passages()[0]
    start = time.perf_counter()
    for _, end in pairwise(range(200)):
        model.distribution(ids[:end])
    assert (time.perf_counter() - start) / 199 < 5 * 0.001


@pytest.mark.parametrize("extra", [[], [3] * 5000])
def test_a_long_context_changes_nothing_but_its_end(model, oracle, extra):
    ids = oracle.encode("to get very")
    np.testing.assert_array_equal(model.distribution([*extra, *ids]), model.distribution([9, *ids]))
