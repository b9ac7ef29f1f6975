import math

import numpy as np
import pytest

from quill.adapters.ngram.sampling import Sampling, draw, drawn_from, generator, log_probabilities

PROMPTS = ["", "The Queen", "said the", "Hello"]
SETTINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 5000},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
    {"temperature": 1.3, "top_k": 7, "top_p": 0.5},
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_drawn_from_is_what_the_oracle_says(model, oracle, naive, prompt, settings):
    ids = oracle.encode(prompt)
    expected = naive.truncation(oracle.logprobs(ids), **settings)
    got = drawn_from(log_probabilities(model.distribution(ids), {}), Sampling(**settings))
    assert np.flatnonzero(got).tolist() == list(expected)
    np.testing.assert_allclose(got[list(expected)], list(expected.values()), rtol=1e-9)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_with_a_seed_are_the_inverse_of_the_cumulative_distribution(model, oracle, naive, settings):
    ids = oracle.encode("The Queen")
    expected = naive.truncation(oracle.logprobs(ids), **settings)
    logprobs, numbers = log_probabilities(model.distribution(ids), {}), generator(42)
    uniform = np.random.Generator(np.random.PCG64(42))
    for _ in range(100):
        assert draw(logprobs, Sampling(**settings), numbers) == naive.draw(expected, uniform.random())


def test_frequencies_of_draws_fit_the_distribution(model, oracle):
    probabilities = np.array(oracle.distribution(oracle.encode("The Queen")))
    logprobs, numbers = log_probabilities(model.distribution(oracle.encode("The Queen")), {}), generator(1)
    draws = 10_000
    seen = np.bincount([draw(logprobs, Sampling(), numbers) for _ in range(draws)], minlength=len(probabilities))
    frequent = probabilities * draws >= 10
    observed = np.append(seen[frequent], seen[~frequent].sum())
    expected = np.append(probabilities[frequent], probabilities[~frequent].sum()) * draws
    degrees = len(observed) - 1
    assert degrees > 20
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert abs(chi_square - degrees) < 4 * math.sqrt(2 * degrees)  # mean and four standard deviations


def test_greedy_takes_the_most_probable_token_and_no_number(model, oracle):
    ids = oracle.encode("The Queen")
    distribution = oracle.distribution(ids)
    numbers = generator(3)
    id_ = draw(log_probabilities(model.distribution(ids), {}), Sampling(temperature=0, top_k=3), numbers)
    assert id_ == distribution.index(max(distribution))
    assert numbers.random() == generator(3).random()


def test_equal_tokens_are_ranked_by_id():
    logprobs = np.log(np.array([0.1, 0.3, 0.3, 0.3]))
    assert draw(logprobs, Sampling(temperature=0), generator(0)) == 1
    assert np.flatnonzero(drawn_from(logprobs, Sampling(top_k=2))).tolist() == [1, 2]
    assert np.flatnonzero(drawn_from(logprobs, Sampling(top_p=0.5))).tolist() == [1, 2]


def test_the_token_that_reaches_top_p_is_kept_and_the_next_is_not():
    logprobs = np.log(np.array([0.5, 0.25, 0.125, 0.125]))
    assert np.flatnonzero(drawn_from(logprobs, Sampling(top_p=0.5))).tolist() == [0]
    assert np.flatnonzero(drawn_from(logprobs, Sampling(top_p=0.51))).tolist() == [0, 1]
    assert np.flatnonzero(drawn_from(logprobs, Sampling(top_p=0.75))).tolist() == [0, 1]


def test_top_p_counts_the_mass_that_top_k_left():
    logprobs = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    # 0.4 of 0.7 is 0.571, so the first token alone reaches 0.57 after top_k and 0.4 before it
    assert np.flatnonzero(drawn_from(logprobs, Sampling(top_k=2, top_p=0.57))).tolist() == [0]


@pytest.mark.parametrize("temperature", [1e-45, 1e-3, 3.4e38])
def test_extreme_temperatures_stay_finite(model, temperature):
    probabilities = drawn_from(log_probabilities(model.distribution([]), {}), Sampling(temperature=temperature))
    assert np.isfinite(probabilities).all()
    assert abs(probabilities.sum() - 1) < 1e-9


@pytest.mark.parametrize("bias", [{17: 4.0}, {17: -100.0, 45: 100.0}, {0: 3.4e38}, {5: 1.0, 5 + 1: -1.0}])
def test_logit_bias_shifts_the_logits(model, oracle, bias):
    ids = oracle.encode("The Queen")
    expected = oracle.logprobs(ids, bias=bias)
    got = log_probabilities(model.distribution(ids), bias)
    np.testing.assert_allclose(got, [expected[id_] for id_ in range(2048)], rtol=1e-9, atol=1e-12)


def test_what_may_not_come_has_no_probability_and_the_rest_is_normalised(model, oracle):
    ids = oracle.encode("The Queen")
    got = log_probabilities(model.distribution(ids), {}, allowed={0, 45, 50}, forbidden={0})
    expected = oracle.logprobs(ids, allowed={0, 45, 50}, forbidden={0})
    assert np.flatnonzero(got > -np.inf).tolist() == [45, 50] == sorted(expected)
    np.testing.assert_allclose(got[[45, 50]], [expected[45], expected[50]], rtol=1e-9)


def test_what_is_forbidden_gives_way_where_nothing_else_is_allowed(model):
    got = log_probabilities(model.distribution([]), {}, allowed={0}, forbidden={0, 5})
    assert np.flatnonzero(got > -np.inf).tolist() == [0]
    assert got[0] == 0


def test_a_number_beyond_the_rounded_sum_draws_the_last_token_kept():
    class Largest:
        def random(self):
            return 1 - 2**-53

    for size in (3, 7, 10, 49, 1000):
        logprobs = np.append(np.log(np.full(size, 1 / size)), -np.inf)
        assert draw(logprobs, Sampling(), Largest()) == size - 1


@pytest.mark.parametrize(("u", "drawn"), [(0.0, 1), (0.25, 1), (0.5, 3), (0.75, 3)])
def test_a_number_on_the_border_draws_the_token_above_it_and_never_one_of_no_probability(u, drawn):
    class Fixed:
        def random(self):
            return u

    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array([0.0, 0.5, 0.0, 0.5]))
    assert draw(logprobs, Sampling(), Fixed()) == drawn


def test_negative_seeds_count_modulo_two_to_the_64():
    expected = np.random.Generator(np.random.PCG64(2**64 - 5)).random()
    assert generator(-5).random() == expected
