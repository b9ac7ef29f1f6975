import pickle

import pytest

from quill import proto
from quill.errors import Code, ErrorDetail, RpcError, Unavailable
from quill.generation import Choice, Finish, FinishReason, Generation, StreamInterrupted, Timings, Usage
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
