"""A generation put together from its messages, without a connection."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import proto
from quill.client.llm.fold import Fold, generation
from quill.client.llm.request import GenerateOptions, generate_request
from quill.errors import Code, DataLoss, InvalidType, InvalidUsage, RpcError, Unavailable
from quill.generation import Delta, Finish, FinishReason, StreamInterrupted, Timings, ToolCall, Usage
from quill.token import Token


def started(position=0, **fields):
    return proto.StreamGenerateResponse(position=position, started=proto.Started(request_id="r", model="m", **fields))


def delta(position, texts, sequence_id=0, **fields):
    message = proto.Delta(sequence_id=sequence_id, text="".join(texts), **fields)
    for text in texts:
        message.tokens.tokens.add(text=text, position=position)
    return proto.StreamGenerateResponse(position=position, delta=message)


def done(position, sequence_id=0, **finish):
    finish = proto.Finish(**(finish or {"reason": proto.FinishReason.FINISH_REASON_STOP}))
    event = proto.SequenceDone(sequence_id=sequence_id, finish=finish)
    return proto.StreamGenerateResponse(position=position, sequence_done=event)


def completed(position, entries=None):
    event = proto.Completed(
        usage=proto.Usage(prompt_tokens=1, completion_tokens=2),
        timings=proto.Timings(total_ms=3.5),
        entries=position + 1 if entries is None else entries,
    )
    return proto.StreamGenerateResponse(position=position, completed=event)


def fold(*messages):
    result = Fold("mine")
    deltas = [piece for piece in map(result.add, messages) if piece is not None]
    return result, deltas


def test_a_generation_is_put_together():
    result, deltas = fold(started(seed=7), delta(1, ["a", "b"]), delta(3, ["c"]), done(4), completed(5))
    assert result.completed
    assert [piece.text for piece in deltas] == ["ab", "c"]
    assert [token.text for token in deltas[0].tokens] == ["a", "b"]
    whole = result.result()
    assert (whole.text, whole.model, whole.request_id, whole.seed) == ("abc", "m", "r", 7)
    assert (whole.usage, whole.timings) == (Usage(1, 2), Timings(total_ms=3.5))
    assert whole.finish_reason is FinishReason.STOP
    assert len(whole.tokens) == 3


def test_what_is_there_can_be_read_on_the_way():
    result, _ = fold(started(), delta(1, ["a", "b"]))
    assert (result.text, len(result.tokens), result.finish, result.usage) == ("ab", 2, None, None)
    result.add(done(3, reason=2))
    assert result.finish == Finish(FinishReason.LENGTH)


def test_several_sequences_are_kept_apart():
    result, deltas = fold(
        started(), delta(1, ["a"]), delta(2, ["x"], 1), delta(3, ["b"]), done(4), done(5, 1), completed(6)
    )
    assert [piece.sequence_id for piece in deltas] == [0, 1, 0]
    assert [choice.text for choice in result.result().choices] == ["ab", "x"]
    assert result.text == "ab"


def test_progress_is_no_entry():
    progress = proto.StreamGenerateResponse(position=0, progress=proto.PromptProgress(processed=1, total=2))
    result, deltas = fold(progress, started(), delta(1, ["a"]), done(2), completed(3))
    assert (len(deltas), result.completed) == (1, True)


def test_reasoning_and_tool_calls_are_one_entry_each():
    first = proto.ToolCall(id="i", name="f", arguments='{"a"', index=1)
    second = proto.ToolCall(arguments=": 1}", index=1)
    result, deltas = fold(
        started(),
        delta(1, [], reasoning="hm"),
        delta(2, [], tool_calls=[first]),
        delta(3, [], tool_calls=[second]),
        done(4),
        completed(5),
    )
    assert deltas[0] == Delta("", reasoning="hm")
    assert deltas[1].tool_calls == (ToolCall(1, "i", "f", '{"a"'),)
    (choice,) = result.result().choices
    assert (choice.reasoning, choice.tool_calls) == ("hm", (ToolCall(1, "i", "f", '{"a": 1}'),))


TEXTS = [["a", "b", "c"], ["d"], ["e", "f"]]
WHOLE = [started(), delta(1, TEXTS[0]), delta(4, TEXTS[1]), delta(5, TEXTS[2]), done(7), completed(8)]


@given(st.lists(st.integers(0, 5), max_size=20))
@settings(max_examples=200, deadline=None)
def test_messages_that_come_again_change_nothing(repeats):
    """At least once on the wire, exactly once for the reader: any message may follow any later one again."""
    messages = list(WHOLE)
    for number in sorted(repeats, reverse=True):
        later = number + 1 + (number % 2)
        messages.insert(min(later, len(messages)), WHOLE[number])
    result, deltas = fold(*messages)
    assert "".join(piece.text for piece in deltas) == "abcdef"
    assert result.result() == fold(*WHOLE)[0].result()


def test_a_message_that_was_seen_in_part_gives_the_rest():
    result, deltas = fold(started(), delta(1, ["a", "b"]), delta(1, ["a", "b", "c", "d"]))
    assert [piece.text for piece in deltas] == ["ab", "cd"]
    assert [token.text for token in deltas[1].tokens] == ["c", "d"]
    assert result.position == 5


@pytest.mark.parametrize("missing", range(len(WHOLE) - 1))
def test_a_message_that_is_missing_is_an_error_with_both_numbers(missing):
    messages = [message for number, message in enumerate(WHOLE) if number != missing]
    with pytest.raises(DataLoss, match=rf"expected entry {WHOLE[missing].position}, got entry"):
        fold(*messages)


def test_an_end_that_counts_otherwise_is_an_error():
    with pytest.raises(DataLoss, match="9 entries, 3 have arrived"):
        fold(started(), delta(1, ["a"]), completed(2, entries=9))


def test_a_refusal_before_anything_came_is_itself():
    error = Unavailable("no")
    assert Fold("r").interruption(error) is error


def test_an_interruption_carries_what_came():
    error = RpcError.of(Code.UNAVAILABLE, "gone", trailers=(("x-a", "1"),))
    result, _ = fold(started(), delta(1, ["a", "b"]))
    interrupted = result.interruption(error)
    assert isinstance(interrupted, StreamInterrupted)
    assert (interrupted.code, interrupted.text, interrupted.position) == (Code.UNAVAILABLE, "ab", 3)
    assert [token.text for token in interrupted.tokens] == ["a", "b"]
    assert interrupted.usage is None
    assert interrupted.trailers == (("x-a", "1"),)
    assert "gone" in interrupted.message
    assert "2 tokens" in interrupted.message


@pytest.mark.parametrize("messages", [[], [started()]])
def test_an_ok_without_completed_is_an_interruption(messages):
    interrupted = fold(*messages)[0].interruption(None)
    assert isinstance(interrupted, StreamInterrupted)
    assert interrupted.code is Code.OK


def test_a_finish_tells_what_matched():
    assert fold(started(), done(1, reason=1, stop_text="END"))[0].finish == Finish(FinishReason.STOP, "END")
    assert fold(started(), done(1, reason=1, stop_token_id=0))[0].finish == Finish(FinishReason.STOP, None, 0)
    assert fold(started(), done(1, reason=99))[0].finish == Finish(FinishReason.OTHER)


def test_a_unary_reply_is_the_same_value():
    reply = proto.GenerateResponse(
        request_id="r", model="m", text="ab", usage={"prompt_tokens": 1}, timings={"queue_ms": 0.5}, seed=0
    )
    choice = reply.choices.add(sequence_id=0, text="ab", finish={"reason": 2}, reasoning="hm")
    choice.tokens.tokens.add(id=5, text="ab", logprob=-0.5)
    value = generation(reply)
    assert (value.text, value.seed, value.usage, value.finish_reason) == ("ab", 0, Usage(1), FinishReason.LENGTH)
    assert value.tokens == (Token(5, 0, "ab", -0.5),)
    assert generation(proto.GenerateResponse(text="x")).text == "x"


# The request


def test_options_are_the_fields_of_the_contract():
    fields = {field.name for field in proto.GenerateRequest.DESCRIPTOR.fields}
    assert GenerateOptions.__annotations__.keys() == fields - {"prompt", "stream_options"}


def test_options_become_fields():
    request = generate_request(
        "Hi",
        {
            "max_tokens": 5,
            "temperature": 0,
            "seed": 0,
            "stop": "END",
            "logit_bias": {5: -1.5},
            "response_format": {"choice": {"values": ["a", "b"]}},
            "extra": {"k": [1, "x", None]},
            "metadata": {"a": "b"},
            "top_p": None,
        },
    )
    assert (request.prompt, request.max_tokens, list(request.stop)) == ("Hi", 5, ["END"])
    assert request.HasField("temperature")
    assert request.HasField("seed")
    assert not request.HasField("top_p")
    assert dict(request.logit_bias) == {5: -1.5}
    assert list(request.response_format.choice.values) == ["a", "b"]
    assert request.extra["k"][1] == "x"
    assert len(request.request_id) == 32


def test_ids_are_made_where_none_is_given():
    assert generate_request("a", {}).request_id != generate_request("a", {}).request_id
    assert generate_request("a", {"request_id": "mine"}).request_id == "mine"


@pytest.mark.parametrize(
    "messages", [[{"role": "user", "content": "hi"}], [proto.ChatMessage(role="user", content="hi")]]
)
def test_a_conversation_stands_in_for_a_prompt(messages):
    request = generate_request(None, {"messages": messages})
    assert request.messages[0].content == "hi"
    assert not request.HasField("prompt")


@pytest.mark.parametrize(
    ("prompt", "options", "kind", "named"),
    [
        ("a", {"max_token": 1}, InvalidUsage, "'max_token', did you mean 'max_tokens'"),
        ("a", {"nonsense": 1}, InvalidUsage, "'nonsense'"),
        ("a", {"stream_options": {}}, InvalidUsage, "'stream_options'"),
        ("a", {"max_tokens": -1}, InvalidUsage, "'max_tokens'.*-1"),
        ("a", {"max_tokens": 2**32}, InvalidUsage, "'max_tokens'"),
        ("a", {"max_tokens": "5"}, InvalidType, "'max_tokens' cannot be a str"),
        ("a", {"temperature": "hot"}, InvalidType, "'temperature'"),
        ("a", {"stop": [1]}, InvalidType, "'stop'"),
        ("a", {"messages": [{"rol": "user"}]}, InvalidUsage, "exactly one"),
        (
            None,
            {"messages": [{"rol": "user"}]},
            InvalidUsage,
            r"'messages\[0\].rol', did you mean 'messages\[0\].role'",
        ),
        (None, {"messages": "hi"}, InvalidType, "'messages'"),
        (None, {}, InvalidUsage, "exactly one of prompt, prompt_token_ids, messages"),
        ("a", {"prompt_token_ids": [1]}, InvalidUsage, "exactly one"),
        (7, {}, InvalidType, "'prompt'"),
        (b"\xff", {}, InvalidUsage, "'prompt'"),
        ("\ud800", {}, InvalidUsage, "'prompt'"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_name(prompt, options, kind, named):
    with pytest.raises(kind, match=named):
        generate_request(prompt, options)
