"""Tokens of columns, against Python's own incremental decoder."""

import codecs
from array import array
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quill.token import Token
from quill.token.token import tokens_of_columns

PIECES = st.lists(st.one_of(st.binary(max_size=4), st.text(max_size=2).map(str.encode)), max_size=12)


@given(PIECES, st.sampled_from([b"", b"\xe2", b"\xe2\x82", b"\xf0\x9f\x98"]), st.integers(0, 2**31))
def test_texts_are_what_an_incremental_decoder_says(data, incomplete, position):
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(incomplete)
    texts = [decoder.decode(piece) for piece in data]
    tokens = tokens_of_columns(position, incomplete, None, None, data)
    assert [token.text for token in tokens] == texts
    assert [token.data for token in tokens] == data
    assert [token.position for token in tokens] == [position + row for row in range(len(data))]


def test_a_token_of_columns_is_a_token_like_any_other():
    (token,) = tokens_of_columns(3, b"", array("I", [7]), array("f", [-0.5]), [b"a"])
    same = Token(7, 3, "a", -0.5, data=b"a")
    assert token == same
    assert (hash(token), repr(token), type(token)) == (hash(same), repr(same), Token)
    assert Token.decode(token.encode()) == same
    with pytest.raises(FrozenInstanceError):
        token.text = "b"
    assert tokens_of_columns(0, b"", None, None, [b"a"]) == (Token(None, 0, "a", data=b"a"),)
