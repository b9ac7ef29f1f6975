import copy
import pickle

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import proto
from quill.errors import InvalidType, InvalidUsage
from quill.token import Token, TokenBatch

HELLO = Token.with_text(1, "Hello", 0)
SPACE = Token.with_text(2, " ", 1)
WORLD = Token.with_text(3, "World", 2)
BARE = Token(None, 3)

text = st.text(st.characters(codec="utf-8"), max_size=5)
tokens = st.builds(Token, st.none() | st.integers(0, 9), st.integers(0, 9), st.none() | text)
metadata = st.dictionaries(text, text, max_size=4)


def batch_of(tokens, sequence_id=None, is_final=False, metadata=()):
    batch = TokenBatch.from_tokens(tokens, sequence_id)
    batch.is_final = is_final
    for key, value in dict(metadata).items():
        batch.set_metadata(key, value)
    return batch


batches = st.builds(
    batch_of, st.lists(tokens, max_size=4), st.none() | st.integers(0, 2**32 - 1), st.booleans(), metadata
)


def message_of(batch):
    message = proto.TokenBatch(is_final=batch.is_final, metadata=batch.metadata_dict())
    if batch.sequence_id is not None:
        message.sequence_id = batch.sequence_id
    for token in batch:
        message.tokens.add().ParseFromString(token.encode())
    return message


@settings(max_examples=200)
@given(batch=batches)
def test_encode_is_the_message_that_protobuf_writes(batch):
    assert batch.encode() == message_of(batch).SerializeToString(deterministic=True)
    assert batch.to_proto() == message_of(batch)


@settings(max_examples=200)
@given(batch=batches)
def test_a_batch_comes_back_as_it_was(batch):
    assert TokenBatch.decode(batch.encode()) == batch
    assert TokenBatch.from_proto(message_of(batch)) == batch


def test_equal_batches_give_equal_bytes_however_they_were_filled():
    keys = [str(n) for n in range(50)]
    forwards = batch_of([HELLO], metadata=dict.fromkeys(keys, "v"))
    backwards = batch_of([HELLO], metadata=dict.fromkeys(reversed(keys), "v"))
    assert forwards == backwards
    assert forwards.encode() == backwards.encode()


def test_a_new_batch_is_empty():
    batch = TokenBatch()
    assert batch.is_empty()
    assert (len(batch), batch.tokens(), batch.text(), batch.token_ids(), batch.positions()) == (0, [], "", [], [])
    assert (batch.sequence_id, batch.is_final, batch.metadata_dict(), batch.to_dicts()) == (None, False, {}, [])
    assert batch.encode() == b""
    assert TokenBatch.decode(b"") == batch


def test_tokens_are_kept_in_order():
    batch = TokenBatch(sequence_id=1)
    batch.add(HELLO)
    batch.extend(iter([SPACE, WORLD]))
    assert batch.tokens() == list(batch) == [HELLO, SPACE, WORLD]
    assert (len(batch), batch.is_empty()) == (3, False)
    assert batch.text() == "Hello World"
    assert batch.token_ids() == [1, 2, 3]
    assert batch.positions() == [0, 1, 2]
    assert batch.to_dicts() == [HELLO.to_dict(), SPACE.to_dict(), WORLD.to_dict()]
    assert batch == TokenBatch.from_tokens((HELLO, SPACE, WORLD), sequence_id=1)


def test_a_token_without_text_adds_none_and_one_without_id_keeps_its_place():
    batch = TokenBatch.from_tokens([HELLO, BARE, WORLD])
    assert batch.text() == "HelloWorld"
    assert batch.token_ids() == [1, None, 3]


def test_the_lists_given_out_are_not_the_batchs_own():
    batch = batch_of([HELLO], metadata={"a": "b"})
    batch.tokens().append(WORLD)
    batch.metadata_dict()["c"] = "d"
    assert (batch.tokens(), batch.metadata_dict()) == ([HELLO], {"a": "b"})


@pytest.mark.parametrize("index", [-4, -1, 3, 4])
def test_get_outside_is_none_and_a_negative_index_is_outside(index):
    assert TokenBatch.from_tokens([HELLO, SPACE, WORLD]).get(index) is None


def test_get_inside_is_the_token():
    batch = TokenBatch.from_tokens([HELLO, SPACE, WORLD])
    assert [batch.get(index) for index in range(3)] == [HELLO, SPACE, WORLD]


def test_a_batch_is_indexed_like_a_list():
    batch = TokenBatch.from_tokens([HELLO, SPACE, WORLD])
    assert (batch[0], batch[-1], batch[1:], batch[::-1]) == (HELLO, WORLD, [SPACE, WORLD], [WORLD, SPACE, HELLO])
    for outside in (3, -4):
        with pytest.raises(IndexError):
            batch[outside]
    assert SPACE in batch
    assert BARE not in batch


def test_extend_takes_the_batch_itself():
    batch = TokenBatch.from_tokens([HELLO, SPACE])
    batch.extend(batch)
    assert batch.tokens() == [HELLO, SPACE, HELLO, SPACE]


def test_clear_removes_the_tokens_only():
    batch = batch_of([HELLO], 7, True, {"a": "b"})
    batch.clear()
    assert batch == batch_of([], 7, True, {"a": "b"})


@pytest.mark.parametrize("wrong", [None, "text", 5, ("id", 1)])
def test_what_is_no_token_is_refused(wrong):
    batch = TokenBatch()
    with pytest.raises(InvalidType, match="add takes Token, got"):
        batch.add(wrong)
    with pytest.raises(InvalidType, match="tokens takes"):
        batch.extend([HELLO, wrong])
    assert batch.is_empty()


@pytest.mark.parametrize("wrong", [None, 5, HELLO])
def test_what_is_no_list_of_tokens_is_refused(wrong):
    with pytest.raises(InvalidType, match="tokens takes several Token, got"):
        TokenBatch.from_tokens(wrong)


def test_an_error_of_the_iterator_itself_comes_through():
    def broken():
        yield HELLO
        raise TypeError("of the caller's own")

    with pytest.raises(TypeError, match="of the caller's own"):
        TokenBatch.from_tokens(broken())


def test_sequence_id_and_is_final_can_be_set():
    batch = TokenBatch(sequence_id=1)
    batch.sequence_id = 2**32 - 1
    batch.is_final = True
    assert (batch.sequence_id, batch.is_final) == (2**32 - 1, True)
    batch.sequence_id = None
    assert TokenBatch.decode(batch.encode()).sequence_id is None
    assert TokenBatch.decode(TokenBatch(0).encode()).sequence_id == 0


def test_a_wrong_sequence_id_or_is_final_is_refused_and_changes_nothing():
    batch = TokenBatch(sequence_id=1)
    for value, kind in ((-1, InvalidUsage), (2**32, InvalidUsage), ("1", InvalidType), (True, InvalidType)):
        with pytest.raises(kind, match="sequence_id must be"):
            batch.sequence_id = value
        with pytest.raises(kind, match="sequence_id must be"):
            TokenBatch(value)
    with pytest.raises(InvalidType, match="is_final must be a bool, got 1"):
        batch.is_final = 1
    assert batch == TokenBatch(sequence_id=1)


def test_metadata_is_text_by_key():
    batch = TokenBatch()
    batch.set_metadata("model", "llama-7b")
    batch.set_metadata("temperature", "0.6")
    batch.set_metadata("temperature", "0.7")
    assert batch.get_metadata("model") == "llama-7b"
    assert batch.get_metadata("absent") is None
    assert batch.metadata_dict() == {"model": "llama-7b", "temperature": "0.7"}


def test_metadata_that_is_no_text_is_refused():
    batch = TokenBatch()
    with pytest.raises(InvalidType, match="metadata 'temperature' must be str, got float"):
        batch.set_metadata("temperature", 0.7)
    with pytest.raises(InvalidType, match="metadata key must be str, got int"):
        batch.set_metadata(1, "x")
    with pytest.raises(InvalidUsage, match="no UTF-8"):
        batch.set_metadata("x", "\ud800")
    with pytest.raises(InvalidUsage, match="no UTF-8"):
        batch.set_metadata("\ud800", "x")
    assert batch.metadata_dict() == {}


def test_batches_compare_by_value_and_have_no_hash():
    batch = batch_of([HELLO], 1, True, {"a": "b"})
    assert batch == batch_of([HELLO], 1, True, {"a": "b"})
    assert batch != batch_of([WORLD], 1, True, {"a": "b"})
    assert batch != batch_of([HELLO], 2, True, {"a": "b"})
    assert batch != batch_of([HELLO], 1, False, {"a": "b"})
    assert batch != batch_of([HELLO], 1, True, {"a": "c"})
    assert batch != [HELLO]
    with pytest.raises(TypeError, match="unhashable"):
        hash(batch)


def test_a_copy_does_not_share_its_tokens():
    batch = batch_of([HELLO], 1, True, {"a": "b"})
    duplicate = copy.deepcopy(batch)
    assert pickle.loads(pickle.dumps(batch)) == duplicate == batch  # noqa: S301  # its own bytes
    duplicate.add(WORLD)
    assert len(batch) == 1


def test_repr_tells_what_the_batch_holds():
    assert repr(batch_of([HELLO, WORLD], 1)) == "TokenBatch(sequence_id=1, tokens=2, is_final=False)"


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05a", b"\x0a\x03\x12\x01\xff", b"\x2a\x03\x0a\x01\xff"])
def test_bytes_that_are_no_message_are_refused(raw):
    with pytest.raises(DecodeError):
        proto.TokenBatch.FromString(raw)
    with pytest.raises(InvalidUsage, match=rf"^the {len(raw)} bytes are no inference\.v1\.TokenBatch message$"):
        TokenBatch.decode(raw)


def test_from_proto_refuses_another_message():
    with pytest.raises(InvalidType, match=r"inference\.v1\.TokenBatch message, got Token"):
        TokenBatch.from_proto(proto.Token())
