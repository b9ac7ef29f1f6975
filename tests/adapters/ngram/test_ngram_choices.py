import math
from collections import Counter, defaultdict

import pytest

from quill.adapters.ngram.options import Options
from quill.adapters.ngram.sampling import Sampling
from quill.adapters.ngram.sequence import write
from quill.generation import FinishReason
from quill.llm.backend import Finished, Tokens


def joined(tokenizer, ids):
    """The bytes of tokens."""
    return b"".join(map(tokenizer.token_bytes, ids))


def enumerate_outputs(oracle, prompt, choices, **forbid):
    """Every way to spell a choice and its probability: {tuple of ids: probability}, by exhaustion."""
    found = {}

    def extend(ids, spelt, probability):
        goals = [choice for choice in choices if choice.startswith(spelt)]
        if goals == [spelt]:
            found[ids] = probability
            return
        allowed = {
            id_ for id_, data in enumerate(oracle.vocabulary) if data and any(g.startswith(spelt + data) for g in goals)
        }
        if spelt in goals:
            allowed.add(0)
        for id_, logprob in oracle.logprobs([*prompt, *ids], allowed=allowed, **forbid).items():
            if id_ == 0:
                found[ids] = probability * math.exp(logprob)
            else:
                extend((*ids, id_), spelt + oracle.vocabulary[id_], probability * math.exp(logprob))

    extend((), b"", 1.0)
    return found


def run(model, prompt, **options):
    settings = {"sampling": Sampling(), "seed": 0, "max_tokens": 50, "candidates": 0} | options
    *tokens, end = write(model, prompt, Options(**settings))
    assert isinstance(end, Finished)
    assert all(isinstance(event, Tokens) for event in tokens)
    return tuple(event.ids[0] for event in tokens), tokens, end.finish


@pytest.mark.parametrize(
    ("prompt", "values"),
    [
        ("The best is", [" yes", " no"]),
        ("said the", [" Queen", " Queens", " Quee", " King"]),
        ("", ["ab", "abc"]),
        ("Hello ", ["né", "nè", "日"]),
    ],
)
def test_choices_come_as_often_as_exact_enumeration_says(model, oracle, prompt, values):
    ids = oracle.encode(prompt)
    exact = enumerate_outputs(oracle, ids, [value.encode() for value in values])
    assert abs(sum(exact.values()) - 1) < 1e-9
    runs = 1500
    seen = Counter()
    for seed in range(runs):
        output, tokens, finish = run(model, ids, seed=seed, choices=tuple(values))
        assert finish.reason is FinishReason.STOP
        text = joined(model.tokenizer, output).decode()
        assert text in values
        seen[output] += 1
        if output not in exact:
            pytest.fail(f"{output} spells {text!r} in a way that the enumeration does not know")
        told = math.fsum(event.logprobs[0] for event in tokens)
        assert told >= math.log(exact[output]) - 1e-9  # the end, where it competed, is not told
    for output, probability in exact.items():
        deviation = math.sqrt(runs * probability * (1 - probability)) + 1
        assert abs(seen[output] - runs * probability) < 4.5 * deviation


def test_log_probabilities_within_a_choice_are_renormalised(model, oracle):
    ids = oracle.encode("The best is")
    exact = enumerate_outputs(oracle, ids, [b" yes", b" no"])
    output, tokens, _ = run(model, ids, seed=5, choices=(" yes", " no"))
    assert math.fsum(event.logprobs[0] for event in tokens) == pytest.approx(math.log(exact[output]), abs=1e-9)


def test_no_choice_is_lost_and_each_spelling_is_whole(oracle):
    exact = enumerate_outputs(oracle, [], [b"yes", b"no", b"no idea"])
    by_text = defaultdict(float)
    for ids, probability in exact.items():
        by_text[b"".join(oracle.vocabulary[id_] for id_ in ids)] += probability
    assert set(by_text) == {b"yes", b"no", b"no idea"}


def test_a_complete_choice_ends_at_once_whatever_min_tokens_and_max_tokens_say(model, oracle):
    one_token = oracle.vocabulary[oracle.encode(" Alice")[0]].decode()
    sampling = Sampling(temperature=0, logit_bias={oracle.encode(" Alice")[0]: 50.0})
    limits = {"min_tokens": 9, "ignore_eos": True, "max_tokens": 1}
    output, _, finish = run(model, [], choices=(one_token, " Queen"), sampling=sampling, **limits)
    assert output == tuple(oracle.encode(" Alice"))
    assert finish.reason is FinishReason.STOP


def test_min_tokens_makes_a_choice_go_on_where_it_can(model):
    for seed in range(20):
        output, _, _ = run(model, [], seed=seed, choices=("a", "ab"), min_tokens=2, sampling=Sampling())
        text = joined(model.tokenizer, output)
        assert text == b"ab"


def test_the_end_competes_where_a_choice_begins_another(model):
    texts = {joined(model.tokenizer, run(model, [], seed=s, choices=("a", "an"))[0]) for s in range(400)}
    assert texts == {b"a", b"an"}


def test_a_choice_cut_by_max_tokens_ends_with_length(model):
    output, _, finish = run(model, [], choices=("日本語" * 3,), max_tokens=4)
    assert finish.reason is FinishReason.LENGTH
    assert joined(model.tokenizer, output) == "日本語".encode()[:4]
