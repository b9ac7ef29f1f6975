import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.adapters.ngram.model import NgramModel
from quill.adapters.ngram.vocabulary import Vocabulary

VOCABULARY = Vocabulary(NgramModel.load().tokenizer)
EOS_TEXT = b"<|endoftext|>"


@pytest.mark.parametrize("begins", [None, False, True])
@pytest.mark.parametrize("text", ["", "The Queen", "naïve 日本", "Off with her head! " * 200])
async def test_a_text_has_the_tokens_of_the_oracle(oracle, text, begins):
    told = await VOCABULARY.encode(text, add_special_tokens=begins)
    expected = oracle.encode(text)
    assert list(told.ids) == [0] * bool(begins) + expected
    assert list(told.data) == [EOS_TEXT] * bool(begins) + [oracle.vocabulary[id_] for id_ in expected]
    assert list(told.special or [False] * len(told.ids)) == [id_ == 0 for id_ in told.ids]


@pytest.mark.parametrize("times", [1, 3000])
async def test_ids_have_their_tokens(oracle, times):
    ids = [741, 0, 45] * times
    told = await VOCABULARY.decode(ids)
    assert list(told.ids) == ids
    assert list(told.data) == [oracle.vocabulary[741], EOS_TEXT, b","] * times
    assert list(told.special) == [False, True, False] * times


@settings(max_examples=100)
@given(st.text())
def test_no_text_gives_the_control_token(text):
    assert 0 not in VOCABULARY._encode(text + "<|endoftext|>" + text, begins=False).ids


async def test_no_token_is_longer_than_the_longest(oracle):
    assert VOCABULARY.longest_token_bytes == max(map(len, oracle.vocabulary))
