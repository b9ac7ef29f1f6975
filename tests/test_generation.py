import copy
import dataclasses
import pickle

import pytest

from quill import proto
from quill.errors import Code, ErrorDetail, RpcError, Unavailable
from quill.generation import Choice, Delta, Finish, FinishReason, Generation, StreamInterrupted, Timings, Usage
from quill.token import Token

TOKENS = (Token(1, 0, "a"), Token(2, 1, "b"))


def test_finish_reasons_are_those_of_the_contract():
    theirs = {value.name.removeprefix("FINISH_REASON_"): value.number for value in proto.FinishReason.DESCRIPTOR.values}
    assert {reason.name: reason.value for reason in FinishReason} == theirs


def test_a_generation_answers_for_its_first_sequence():
    first = Choice(0, "ab", TOKENS, Finish(FinishReason.LENGTH))
    second = Choice(1, "c", (), Finish(FinishReason.STOP))
    generation = Generation("r", "m", (first, second), Usage(), Timings())
    assert (generation.text, generation.tokens, generation.finish_reason) == ("ab", TOKENS, FinishReason.LENGTH)


@pytest.fixture
def interrupted():
    return StreamInterrupted(
        "the server went away",
        code=Code.UNAVAILABLE,
        text="ab",
        tokens=list(TOKENS),
        usage=Usage(prompt_tokens=3),
        position=3,
        details=[ErrorDetail("t", b"v")],
        trailers=[("a", "b")],
    )


def test_an_interruption_is_an_error_of_its_status_that_keeps_what_arrived(interrupted):
    assert isinstance(interrupted, RpcError)
    assert not isinstance(interrupted, Unavailable)
    assert str(interrupted) == "UNAVAILABLE: the server went away"
    assert (interrupted.text, interrupted.tokens, interrupted.position) == ("ab", TOKENS, 3)
    assert interrupted.usage == Usage(prompt_tokens=3)


def test_an_interruption_survives_pickle(interrupted):
    back = pickle.loads(pickle.dumps(interrupted))  # noqa: S301  # its own bytes
    assert type(back) is StreamInterrupted
    assert str(back) == str(interrupted)
    assert vars(back) == vars(interrupted)


LAZY = [
    lambda: Delta.of_columns("ab", 0, (0, b"", [1, 2], None, [b"a", b"b"])),
    lambda: Choice.of_columns(
        (0, b"", [1, 2], None, [b"a", b"b"]), sequence_id=0, text="ab", finish=Finish(FinishReason.STOP)
    ),
]
EAGER = [
    Delta("ab", (Token(1, 0, "a", data=b"a"), Token(2, 1, "b", data=b"b"))),
    Choice(0, "ab", (Token(1, 0, "a", data=b"a"), Token(2, 1, "b", data=b"b")), Finish(FinishReason.STOP)),
]


@pytest.mark.parametrize(("make", "eager"), [*zip(LAZY, EAGER, strict=True)], ids=["delta", "choice"])
@pytest.mark.parametrize("first", ["tokens", "==", "hash", "repr", "pickle", "copy", "replace"])
def test_a_value_of_columns_is_the_value_of_its_tokens_whatever_is_asked_first(make, eager, first):
    lazy = make()
    match first:
        case "tokens":
            assert lazy.tokens == eager.tokens
            assert lazy.tokens is lazy.tokens, "they are made once"
        case "hash":
            assert hash(lazy) == hash(eager)
        case "repr":
            assert repr(lazy) == repr(eager)
        case "pickle":
            assert pickle.loads(pickle.dumps(lazy)) == eager  # noqa: S301  # its own bytes
        case "copy":
            assert copy.copy(lazy) == eager
        case "replace":
            assert dataclasses.replace(lazy, text="x") == dataclasses.replace(eager, text="x")
    assert lazy == eager
    assert type(lazy) is type(eager)


@pytest.mark.parametrize("make", LAZY)
def test_a_value_of_columns_is_frozen_and_has_no_other_attributes(make):
    value = make()
    for name in ("text", "tokens", "sequence_id"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)
    with pytest.raises(AttributeError, match="no attribute 'txt'"):
        _ = value.txt
    with pytest.raises(TypeError):
        vars(value)
