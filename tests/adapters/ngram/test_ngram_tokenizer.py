import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quill.adapters.ngram.model import NgramModel
from quill.adapters.ngram.tokenizer import EOS_ID, split
from quill.errors import InvalidUsage

TOKENIZER = NgramModel.load().tokenizer
TEXTS = st.one_of(st.text(), st.text(alphabet="Alice Queen'stle \n\t.é-7_", max_size=200))


def joined(tokenizer, ids):
    """The bytes of tokens."""
    return b"".join(map(tokenizer.token_bytes, ids))


@settings(max_examples=200)
@given(TEXTS)
@example("naïve café, 日本語, 👩‍👩‍👧 and a\u0301")
@example("\x00\x1f\u2028 \u00a0 ²Ⅷ٣")
@example("a" * 65 + " " * 65 + "7" * 65 + "_-" * 40)
def test_any_text_survives_the_round_trip(text):
    assert joined(TOKENIZER, TOKENIZER.encode(text)) == text.encode()


@settings(max_examples=100)
@given(TEXTS)
@example("she'll isn't 'tis  two spaces \n\n and\ttabs ")
@example(" " * 130 + "x" * 130)
@example("ooo eee lllll ttttt ----- !!!")
def test_tokens_are_those_of_a_naive_byte_pair_encoding(oracle, naive, text):
    assert [piece.decode() for piece in split(text)] == naive.split(text)
    assert TOKENIZER.encode(text) == oracle.encode(text)


@given(st.binary())
def test_any_bytes_have_tokens(data):
    ids = [TOKENIZER.token_id(bytes([byte])) for byte in data]
    assert joined(TOKENIZER, ids) == data


def test_a_character_outside_ascii_is_split_over_tokens():
    ids = TOKENIZER.encode("日")
    assert [TOKENIZER.token_bytes(id_) for id_ in ids] == [b"\xe6", b"\x97", b"\xa5"]


def test_frequent_words_are_one_token_with_their_space():
    tokens = [TOKENIZER.token_bytes(id_) for id_ in TOKENIZER.encode("Alice was beginning to get very tired")]
    assert tokens == [b"Alice", b" was", b" beginning", b" to", b" get", b" very", b" tired"]


def test_only_the_end_of_sequence_has_no_bytes_and_text_never_gives_it():
    assert [id_ for id_ in range(TOKENIZER.vocab_size) if not TOKENIZER.token_bytes(id_)] == [EOS_ID]
    assert TOKENIZER.encode("") == []
    assert TOKENIZER.token_id(b"") is None


def test_no_two_tokens_have_the_same_bytes():
    tokens = [TOKENIZER.token_bytes(id_) for id_ in range(TOKENIZER.vocab_size)]
    assert len(set(tokens)) == TOKENIZER.vocab_size == 2048
    assert TOKENIZER.longest_token_bytes == max(map(len, tokens))


@pytest.mark.parametrize("id_", [-1, 2048])
def test_an_id_outside_the_vocabulary_is_refused_with_both_numbers(id_):
    with pytest.raises(InvalidUsage, match=rf"token id {id_} .* 2048 tokens"):
        joined(TOKENIZER, [5, id_])


def test_a_lone_surrogate_is_refused_with_its_place():
    with pytest.raises(InvalidUsage, match=r"character 3 is the lone surrogate '\\ud800'"):
        TOKENIZER.encode("ab \ud800")
