import copy
import json
import math
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import proto
from quill.errors import InvalidType, InvalidUsage
from quill.token import Token, TopLogprob

UINT32_MAX = 2**32 - 1

uint32 = st.integers(0, UINT32_MAX)
text = st.text(st.characters(codec="utf-8"), max_size=6)
logprob = st.floats(width=32, allow_nan=False)  # what arrives unrounded; a NaN would not equal itself
data = st.binary(max_size=6)
candidates = st.builds(TopLogprob, st.none() | uint32, text, logprob, data)
tokens = st.builds(
    Token,
    st.none() | uint32,
    uint32,
    st.none() | text,
    st.none() | logprob,
    st.booleans(),
    data=data,
    top_logprobs=st.lists(candidates, max_size=3),
)


def message_of(token):
    """The message built field by field, with absent where the token has None."""
    message = proto.Token(position=token.position, is_special=token.is_special, data=token.data)
    for name in ("id", "text", "logprob"):
        if getattr(token, name) is not None:
            setattr(message, name, getattr(token, name))
    for candidate in token.top_logprobs:
        added = message.top_logprobs.add(text=candidate.text, logprob=candidate.logprob, data=candidate.data)
        if candidate.id is not None:
            added.id = candidate.id
    return message


@settings(max_examples=200)
@given(token=tokens)
def test_encode_is_the_message_that_protobuf_writes(token):
    assert token.encode() == message_of(token).SerializeToString()
    assert token.to_proto() == message_of(token)


@settings(max_examples=200)
@given(token=tokens)
def test_a_token_comes_back_as_it_was(token):
    assert Token.decode(token.encode()) == token
    assert Token.from_proto(message_of(token)) == token


def test_absent_and_empty_stay_apart():
    absent = Token.decode(b"")
    assert absent == Token(None, 0)
    assert (absent.id, absent.text, absent.logprob) == (None, None, None)
    zero = Token.decode(Token(0, 0, "", 0.0).encode())
    assert (zero.id, zero.text, zero.logprob) == (0, "", 0.0)
    assert absent != zero


def test_a_log_probability_arrives_rounded_to_binary32():
    sent = Token(1, 0, logprob=-0.1)
    assert sent.logprob == -0.1
    assert Token.decode(sent.encode()).logprob == float(np.float32(-0.1))


def test_arguments_have_the_documented_order_and_names():
    token = Token(42, 7, "hello", -0.5, True)
    assert token == Token(id=42, position=7, text="hello", logprob=-0.5, is_special=True)
    assert (token.id, token.position, token.text, token.logprob, token.is_special) == (42, 7, "hello", -0.5, True)
    assert Token(42, 7) == Token(42, 7, None, None, False, data=b"", top_logprobs=())
    with pytest.raises(TypeError):
        Token(42, 7, "hello", -0.5, True, b"hello")


def test_with_text_takes_the_text_second():
    assert Token.with_text(1, "Hello", 3) == Token(1, 3, "Hello")
    assert Token.with_text(id=1, text="Hello", position=3, logprob=-1.0) == Token(1, 3, "Hello", -1.0)


@pytest.mark.parametrize(("logprob", "probability"), [(0.0, 1.0), (-0.5, 0.6065306597126334), (-math.inf, 0.0)])
def test_prob_is_the_exponential(logprob, probability):
    assert Token(1, 0, logprob=logprob).prob() == probability


def test_prob_is_none_without_logprob_and_infinite_past_the_floats():
    assert Token(1, 0).prob() is None
    assert Token(1, 0, logprob=1e6).prob() == math.inf


@pytest.mark.parametrize("token_id", [None, 0, 1, 2, 3, UINT32_MAX])
@pytest.mark.parametrize("is_special", [False, True])
def test_end_of_sequence_is_a_special_token_with_id_0_1_or_2(token_id, is_special):
    assert Token(token_id, 0, is_special=is_special).is_eos() is (is_special and token_id in (0, 1, 2))


def test_the_dict_has_the_documented_keys_and_goes_to_json():
    token = Token(42, 7, "hello", -0.5, data=b"hello", top_logprobs=[TopLogprob(1, "a", -1.0)])
    assert list(token.to_dict().items()) == [
        ("id", 42),
        ("text", "hello"),
        ("logprob", -0.5),
        ("position", 7),
        ("is_special", False),
    ]
    assert json.loads(json.dumps(Token(None, 0).to_dict())) == {
        "id": None,
        "text": None,
        "logprob": None,
        "position": 0,
        "is_special": False,
    }


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (Token(id=42, position=0, text="hello", logprob=-0.5), "Token(id=42, text='hello', pos=0)"),
        (Token(42, 0), "Token(id=42, pos=0)"),
        (Token(42, 1, ""), "Token(id=42, text='', pos=1)"),
        (Token(None, 2, "it's\n"), 'Token(id=None, text="it\'s\\n", pos=2)'),
    ],
)
def test_repr_and_str_are_as_documented(token, shown):
    assert repr(token) == str(token) == f"{token}" == shown


def test_tokens_compare_by_value_and_are_dictionary_keys():
    token = Token(42, 7, "hello", -0.5, data=b"x", top_logprobs=[TopLogprob(1, "a", -1.0)])
    same = Token(42, 7, "hello", -0.5, data=bytearray(b"x"), top_logprobs=(TopLogprob(1, "a", -1),))
    assert {token: 1}[same] == 1
    for other in (
        replace(token, id=None),
        replace(token, position=8),
        replace(token, text=None),
        replace(token, logprob=None),
        replace(token, is_special=True),
        replace(token, data=b""),
        replace(token, top_logprobs=()),
    ):
        assert other != token


def test_a_token_cannot_be_changed():
    source = bytearray(b"abc")
    token = Token(1, 0, data=source)
    source[0] = 0
    assert token.data == b"abc"
    with pytest.raises(FrozenInstanceError):
        token.id = 2
    with pytest.raises((AttributeError, TypeError)):
        token.colour = "red"


def test_a_token_survives_pickle_and_copy():
    token = Token(42, 7, "hello", -0.5, data=b"x", top_logprobs=[TopLogprob(None, "a", -1.0, b"a")])
    assert pickle.loads(pickle.dumps(token)) == copy.deepcopy(token) == token  # noqa: S301  # its own bytes


def test_numbers_of_numpy_become_pythons_own():
    token = Token(np.int64(5), np.uint8(6), logprob=np.float32(-0.5))
    assert [type(value) for value in (token.id, token.position, token.logprob)] == [int, int, float]
    assert token == Token(5, 6, logprob=-0.5)
    assert type(Token(1, 0, logprob=0).logprob) is float


@pytest.mark.parametrize("value", [-1, UINT32_MAX + 1, 2**70])
@pytest.mark.parametrize("field", ["id", "position"])
def test_a_number_out_of_range_is_refused_with_the_range_and_the_value(field, value):
    with pytest.raises(InvalidUsage, match=f"^{field} must be from 0 to 4294967295, got {value}$"):
        Token(**{"id": 1, "position": 0, field: value})


def test_the_ends_of_the_range_are_inside():
    token = Token(UINT32_MAX, UINT32_MAX)
    assert Token.decode(token.encode()) == token
    assert Token(0, 0).id == 0


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"id": "1"}, "id must be an int, got '1'"),
        ({"id": 1.0}, r"id must be an int, got 1\.0"),
        ({"id": True}, "id must be an int, got True"),
        ({"position": None}, "position must be an int, got None"),
        ({"position": 1.5}, r"position must be an int, got 1\.5"),
        ({"position": False}, "position must be an int, got False"),
        ({"text": b"x"}, "text must be str, got bytes"),
        ({"text": 5}, "text must be str, got int"),
        ({"logprob": "-1"}, "logprob must be a float, got '-1'"),
        ({"logprob": True}, "logprob must be a float, got True"),
        ({"logprob": 1j}, "logprob must be a float, got 1j"),
        ({"is_special": 1}, "is_special must be a bool, got 1"),
        ({"is_special": None}, "is_special must be a bool, got None"),
        ({"data": "x"}, "data must be bytes, got str"),
        ({"data": None}, "data must be bytes, got NoneType"),
        ({"data": 5}, "data must be bytes, got int"),
        ({"top_logprobs": None}, "top_logprobs takes several TopLogprob, got NoneType"),
        ({"top_logprobs": TopLogprob(1, "a", 0)}, "top_logprobs takes several TopLogprob, got TopLogprob"),
        ({"top_logprobs": [Token(1, 0)]}, "top_logprobs takes TopLogprob, got Token"),
        ({"top_logprobs": [(1, "a", 0.0)]}, "top_logprobs takes TopLogprob, got tuple"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(fields, told):
    with pytest.raises(InvalidType, match=f"^{told}$") as caught:
        Token(**{"id": 1, "position": 0, **fields})
    assert isinstance(caught.value, TypeError)


def test_text_that_has_no_utf8_is_refused():
    with pytest.raises(InvalidUsage, match="has no UTF-8: a lone surrogate at index 1"):
        Token(1, 0, "a\udc80")
    assert Token(1, 0, "größe 🙂").text == "größe 🙂"


def test_a_logprob_beyond_the_floats_is_refused():
    with pytest.raises(InvalidUsage, match="logprob is larger than a float can be"):
        Token(1, 0, logprob=-(10**400))


def test_bytes_of_half_a_character_arrive():
    token = Token(7, 0, "", data="é".encode()[:1])
    assert Token.decode(token.encode()) == token


@pytest.mark.parametrize("raw", [b"\xff", b"\x12\x01\xff", b"\x12\x05a", b"\0\0"])
def test_bytes_that_are_no_message_are_refused(raw):
    with pytest.raises(DecodeError):
        proto.Token.FromString(raw)
    with pytest.raises(InvalidUsage, match=rf"^the {len(raw)} bytes are no inference\.v1\.Token message$"):
        Token.decode(raw)


@settings(max_examples=300)
@given(raw=st.binary(max_size=30))
def test_any_bytes_give_a_token_or_an_invalid_usage(raw):
    try:
        token = Token.decode(raw)
    except InvalidUsage:
        return
    assert Token.decode(token.encode()).encode() == token.encode()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_decode_reads_every_kind_of_bytes(kind):
    assert Token.decode(kind(Token(1, 2, "x").encode())) == Token(1, 2, "x")


@pytest.mark.parametrize("given", ["text", None, 5])
def test_decode_refuses_what_is_no_bytes(given):
    with pytest.raises(InvalidType, match="data must be bytes"):
        Token.decode(given)


def test_from_proto_refuses_another_message():
    with pytest.raises(InvalidType, match=r"inference\.v1\.Token message, got TokenBatch"):
        Token.from_proto(proto.TokenBatch())
    with pytest.raises(InvalidType, match=r"inference\.v1\.TopLogprob message, got Token"):
        TopLogprob.from_proto(proto.Token())


@settings(max_examples=100)
@given(candidate=candidates)
def test_a_candidate_comes_back_as_it_was(candidate):
    assert TopLogprob.from_proto(candidate.to_proto()) == candidate


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (("1", "a", 0.0), InvalidType),
        ((-1, "a", 0.0), InvalidUsage),
        ((1, None, 0.0), InvalidType),
        ((1, "\ud800", 0.0), InvalidUsage),
        ((1, "a", None), InvalidType),
        ((1, "a", 0.0, "a"), InvalidType),
    ],
)
def test_a_candidate_with_a_wrong_value_is_refused(values, kind):
    with pytest.raises(kind):
        TopLogprob(*values)
