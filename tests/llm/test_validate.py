"""Every value that a request may have, and every one that it may not, by name and value."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import InvalidArgument, ResourceExhausted
from quill.limits import Limits
from quill.llm import ModelInfo
from quill.llm.run import RunKey
from quill.llm.validate import validate
from quill.principal import ANONYMOUS, Principal
from quill.proto import (
    ChatMessage,
    Choices,
    ContentPart,
    GenerateRequest,
    ResponseFormat,
    Resume,
    StreamOptions,
    Tool,
)

BARE = ModelInfo(name="bare", context_length=100, vocab_size=50, default_max_tokens=20)
CAPABLE = ModelInfo(
    name="capable",
    context_length=100,
    vocab_size=50,
    default_max_tokens=20,
    token_prompt=True,
    options=frozenset(
        {
            *(field.name for field in GenerateRequest.DESCRIPTOR.fields if field.name not in ("extra", "messages")),
            "response_format.choice",
            "response_format.json_schema",
            "response_format.json_object",
            "extra.mirostat",
            "messages",
        }
    ),
)


def refusal(request, model=CAPABLE, limits=None):
    with pytest.raises(InvalidArgument) as caught:
        validate(request, model, limits or Limits())
    return caught.value.message


def request(**fields):
    return GenerateRequest(prompt="p", **fields)


NAN, INFINITE = math.nan, math.inf

OUT_OF_RANGE = [
    ({"temperature": -0.1}, "temperature=-0.1"),
    ({"temperature": NAN}, "temperature=nan"),
    ({"temperature": INFINITE}, "temperature=inf"),
    ({"top_p": 0.0}, "top_p=0"),
    ({"top_p": 1.5}, "top_p=1.5"),
    ({"top_p": NAN}, "top_p=nan"),
    ({"min_p": -0.25}, "min_p=-0.25"),
    ({"min_p": 1.25}, "min_p=1.25"),
    ({"min_p": NAN}, "min_p=nan"),
    ({"presence_penalty": 2.5}, "presence_penalty=2.5"),
    ({"presence_penalty": -2.5}, "presence_penalty=-2.5"),
    ({"frequency_penalty": NAN}, "frequency_penalty=nan"),
    ({"frequency_penalty": 2.25}, "frequency_penalty=2.25"),
    ({"repetition_penalty": 0.0}, "repetition_penalty=0"),
    ({"repetition_penalty": -1.0}, "repetition_penalty=-1"),
    ({"repetition_penalty": INFINITE}, "repetition_penalty=inf"),
    ({"logit_bias": {3: NAN}}, "logit_bias[3]=nan"),
    ({"logit_bias": {4: -INFINITE}}, "logit_bias[4]=-inf"),
    ({"logit_bias": {50: 1.0}}, "logit_bias has token 50"),
    ({"n": 0}, "n=0"),
    ({"n": 129}, "n=129"),
    ({"max_tokens": 0}, "max_tokens=0"),
    ({"max_tokens": 101}, "max_tokens=101 is more than the context of model capable: 100"),
    ({"min_tokens": 11, "max_tokens": 10}, "min_tokens=11 is more than max_tokens=10"),
    ({"min_tokens": 21}, "min_tokens=21 is more than max_tokens=20"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens=0"),
    ({"logprobs": 21}, "logprobs=21"),
    ({"prompt_logprobs": 21}, "prompt_logprobs=21"),
    ({"stop": ["a", ""]}, 'stop[1]=""'),
    ({"stop": ["x"] * 17}, "stop has 17 strings, at most 16"),
    ({"stop": ["y" * 257]}, "stop[0]='yyy"),
    ({"stop_token_ids": [1, 50]}, "stop_token_ids has token 50, model capable knows tokens below 50"),
    ({"request_id": "é" * 65}, "has 130 bytes, at most 128"),
    ({"request_id": "a\nb"}, r"request_id='a\nb' has the control character '\n' at 1"),
    ({"request_id": "\x7f"}, r"request_id='\x7f'"),
    ({"request_id": "a\x85"}, r"request_id='a\x85'"),
    ({"response_format": ResponseFormat()}, "response_format={}"),
    ({"response_format": ResponseFormat(json_object=False)}, "response_format.json_object=false"),
    ({"response_format": ResponseFormat(json_schema="{nope")}, "response_format.json_schema='{nope'"),
    ({"response_format": ResponseFormat(json_schema="[" * 99_999)}, "response_format.json_schema='[[["),
    ({"response_format": ResponseFormat(choice=Choices())}, "response_format.choice=[]"),
    ({"response_format": ResponseFormat(choice=Choices(values=["a", ""]))}, '"" at 1'),
    ({"response_format": ResponseFormat(choice=Choices(values=["a", "b", "a"]))}, "response_format.choice has 'a'"),
    ({"response_format": ResponseFormat(regex="a+")}, "response_format.regex='a+' is not supported by model capable"),
    (
        {"stream_options": StreamOptions(resume=Resume(epoch="e", next_position=7))},
        'stream_options.resume at position 7: request_id=""',
    ),
    (
        {"request_id": "r", "stream_options": StreamOptions(resume=Resume(next_position=7))},
        'stream_options.resume at position 7: epoch=""',
    ),
    ({"stream_options": StreamOptions(columns=True)}, "stream_options.columns=true"),
]


@pytest.mark.parametrize(("fields", "said"), OUT_OF_RANGE, ids=[said[:40] for _, said in OUT_OF_RANGE])
def test_a_value_outside_its_range_is_refused_by_name_and_value(fields, said):
    assert said in refusal(request(**fields))


IN_RANGE = [
    {"temperature": 0.0},
    {"temperature": 100.0},
    {"top_p": 1.0},
    {"top_p": 1e-9},
    {"min_p": 0.0},
    {"min_p": 1.0},
    {"top_k": 0},
    {"presence_penalty": -2.0},
    {"frequency_penalty": 2.0},
    {"repetition_penalty": 0.01},
    {"logit_bias": {0: -100.0, 49: 100.0}},
    {"n": 128},
    {"max_tokens": 100},
    {"min_tokens": 20},
    {"min_tokens": 0},
    {"logprobs": 0},
    {"logprobs": 20},
    {"stop": ["x" * 256] * 16},
    {"seed": -(2**63)},
    {"request_id": "r" * 128},
    {"request_id": "rün 1 ✓"},
    {"metadata": {"any": "thing"}},
    {"stream_options": StreamOptions()},
    {"stream_options": StreamOptions(columns=False, resume_ttl_ms=0)},
    {"stream_options": StreamOptions(resume_ttl_ms=2**32 - 1)},
    {"request_id": "r", "stream_options": StreamOptions(resume=Resume(epoch="e"))},
    {"response_format": ResponseFormat(json_object=True)},
    {"response_format": ResponseFormat(json_schema='{"type": "object"}')},
    {"response_format": ResponseFormat(choice=Choices(values=["a", "b"]))},
    {"extra": {"mirostat": 2}},
]


@pytest.mark.parametrize("fields", IN_RANGE, ids=str)
def test_the_borders_of_the_ranges_are_allowed(fields):
    validate(request(**fields), CAPABLE, Limits())


NOT_SUPPORTED = [
    ({"temperature": 0.1}, "temperature=0.1"),
    ({"top_p": 1.0}, "top_p=1"),
    ({"top_k": 0}, "top_k=0"),
    ({"min_p": 0.5}, "min_p=0.5"),
    ({"min_tokens": 1}, "min_tokens=1"),
    ({"presence_penalty": 0.0}, "presence_penalty=0"),
    ({"frequency_penalty": 1.0}, "frequency_penalty=1"),
    ({"repetition_penalty": 1.0}, "repetition_penalty=1"),
    ({"logit_bias": {1: 2.0}}, "logit_bias={1: 2}"),
    ({"seed": -3}, "seed=-3"),
    ({"stop_token_ids": [3, 4]}, "stop_token_ids=[3, 4]"),
    ({"stop_token_ids": [1, 2, 3, 4, 5, 6]}, "stop_token_ids=[1, 2, 3, 4, … 6 in all]"),
    ({"tools": [Tool(name="t" * 10**6)]}, "tools=[<1000004 bytes>]"),
    ({"ignore_eos": True}, "ignore_eos=true"),
    ({"logprobs": 0}, "logprobs=0"),
    ({"prompt_logprobs": 1}, "prompt_logprobs=1"),
    ({"echo": True}, "echo=true"),
    ({"tools": [Tool(name="weather")]}, 'tools=[name: "weather"]'),
    ({"tool_choice": "auto"}, "tool_choice='auto'"),
    ({"adapter": "lora"}, "adapter='lora'"),
    ({"priority": -1}, "priority=-1"),
    ({"add_special_tokens": False}, "add_special_tokens=false"),
    ({"skip_special_tokens": False}, "skip_special_tokens=false"),
    ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens=5"),
    ({"cache_salt": "s" * 500}, "cache_salt='sss"),
    ({"extra": {"mirostat": 2}}, "extra.mirostat=number_value: 2"),
    ({"response_format": ResponseFormat(json_schema="{}")}, "response_format.json_schema='{}'"),
    ({"response_format": ResponseFormat(choice=Choices(values=["a"]))}, 'response_format.choice=values: "a"'),
]


@pytest.mark.parametrize(("fields", "said"), NOT_SUPPORTED, ids=[said[:40] for _, said in NOT_SUPPORTED])
def test_an_option_that_the_model_has_not_is_refused_by_name_and_value(fields, said):
    message = refusal(request(**fields), BARE)
    assert message.startswith(said)
    supported = "include_stop, max_tokens, messages, n, prompt, stop"
    assert message.endswith(f" is not supported by model bare; it supports: {supported}")
    assert len(message) < 300


def test_every_field_of_the_request_is_an_option_or_known_to_have_a_check_of_its_own():
    """A field that the contract gains later is refused until somebody decides what it means."""
    tried = {name for fields, _ in NOT_SUPPORTED for name in fields}
    supplied = {"include_stop", "max_tokens", "n", "stop"}
    otherwise = {"model", "request_id", "prompt", "prompt_token_ids", "messages", "metadata", "stream_options"}
    assert {field.name for field in GenerateRequest.DESCRIPTOR.fields} == tried | supplied | otherwise


def test_what_this_layer_supplies_needs_no_help_of_the_model():
    supplied = request(stop=["x"], include_stop=True, max_tokens=5, n=3, skip_special_tokens=True)
    validate(supplied, BARE, Limits())


CHAT = [ChatMessage(role="user", content="hi")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "there is no input"),
        ({"prompt": "", "messages": CHAT}, "prompt and messages are given"),
        ({"prompt": "p", "prompt_token_ids": [1]}, "prompt and prompt_token_ids are given"),
        ({"prompt": "p", "prompt_token_ids": [1], "messages": CHAT}, "prompt and prompt_token_ids and messages"),
        ({"prompt_token_ids": [1, 50]}, "prompt_token_ids has token 50, model capable knows tokens below 50"),
        (
            {"prompt_token_ids": [1] * 100},
            "prompt_token_ids has 100 tokens; at most 99 fit into the context of model capable, 100 tokens of prompt",
        ),
        ({"prompt_token_ids": [1] * 200, "truncate_prompt_tokens": 150}, "prompt_token_ids has 150 tokens; at most 99"),
        ({"prompt_token_ids": [1, 50], "truncate_prompt_tokens": 1}, "prompt_token_ids has token 50"),
    ],
)
def test_the_input_must_be_exactly_one_and_fit(fields, said):
    assert said in refusal(GenerateRequest(**fields))


IDS_ONLY = ModelInfo(name="ids", text_prompt=False, token_prompt=True)
DEAF = ModelInfo(name="deaf", text_prompt=False)


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        (
            BARE,
            {"prompt_token_ids": [1]},
            "prompt_token_ids is not supported by model bare; it takes: prompt, messages",
        ),
        (IDS_ONLY, {"prompt": "p"}, "prompt is not supported by model ids; it takes: prompt_token_ids"),
        (IDS_ONLY, {"messages": CHAT}, "messages is not supported by model ids; it takes: prompt_token_ids"),
        (DEAF, {"messages": CHAT}, "messages is not supported by model deaf; it takes: nothing"),
    ],
)
def test_an_input_that_the_model_does_not_take_is_refused_with_those_that_it_does(model, fields, said):
    assert refusal(GenerateRequest(**fields), model) == said


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt_token_ids": [0, 49]},
        {"prompt_token_ids": [1] * 99},
        {"prompt_token_ids": [50] + [1] * 99, "truncate_prompt_tokens": 99},
        {"messages": CHAT},
    ],
)
def test_each_kind_of_input_is_allowed_and_a_prompt_may_be_empty(fields):
    validate(GenerateRequest(**fields), CAPABLE, Limits())


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"prompt": "é" * 6}, 12),
        ({"messages": [ChatMessage(content="12345"), ChatMessage(parts=[ContentPart(text="123456")])]}, 11),
    ],
)
def test_a_prompt_over_the_limit_is_refused_with_both_numbers(fields, size):
    with pytest.raises(ResourceExhausted, match=f"has {size} bytes of text, max_prompt_bytes is 10"):
        validate(GenerateRequest(**fields), CAPABLE, Limits(max_prompt_bytes=10))
    validate(GenerateRequest(**fields), CAPABLE, Limits(max_prompt_bytes=size))


def test_more_ids_than_a_prompt_has_bytes_are_refused_before_they_are_looked_at():
    with pytest.raises(ResourceExhausted, match="prompt_token_ids has 11 tokens, max_prompt_bytes is 10"):
        validate(GenerateRequest(prompt_token_ids=[2**32 - 1] * 11), CAPABLE, Limits(max_prompt_bytes=10))


class OneTokenPerByte:
    """A tokenizer that is only there."""

    longest_token_bytes = 0


TOKENIZING = ModelInfo(name="t", text_prompt=False, token_prompt=True, tokenizer=OneTokenPerByte())
TEXT_ONLY = ModelInfo(name="x", tokenizer=OneTokenPerByte())
RENDERING = ModelInfo(name="r", token_prompt=True, tokenizer=OneTokenPerByte(), options=frozenset({"messages"}))
ANY_ID = ModelInfo(name="a", token_prompt=True)
WITH_PROMPT, WITH_IDS, WITH_CHAT = {"prompt": "p"}, {"prompt_token_ids": [1]}, {"messages": CHAT}


@pytest.mark.parametrize(
    ("model", "given", "options"),
    [
        (TOKENIZING, WITH_PROMPT, {"echo": True, "add_special_tokens": True, "truncate_prompt_tokens": 3}),
        (TOKENIZING, WITH_CHAT, {"echo": True, "add_special_tokens": False, "truncate_prompt_tokens": 3}),
        (TOKENIZING, WITH_IDS, {"echo": True, "truncate_prompt_tokens": 3}),
        (RENDERING, WITH_PROMPT, {"echo": True, "add_special_tokens": True, "truncate_prompt_tokens": 3}),
        (TEXT_ONLY, WITH_PROMPT, {"echo": True}),
        (ANY_ID, WITH_IDS, {"truncate_prompt_tokens": 3}),
    ],
)
def test_with_a_tokenizer_the_layer_above_supplies_what_concerns_the_prompt(model, given, options):
    validate(GenerateRequest(**given, **options), model, Limits())


@pytest.mark.parametrize(
    ("model", "given", "options", "said"),
    [
        (
            TOKENIZING,
            WITH_IDS,
            {"add_special_tokens": True},
            "add_special_tokens=true does not go with prompt_token_ids",
        ),
        (RENDERING, WITH_CHAT, {"echo": True}, "echo=true does not go with messages on model r"),
        (RENDERING, WITH_CHAT, {"truncate_prompt_tokens": 3}, "truncate_prompt_tokens=3 does not go with messages"),
        (ANY_ID, WITH_PROMPT, {"truncate_prompt_tokens": 3}, "truncate_prompt_tokens=3 does not go with prompt"),
        (ANY_ID, WITH_IDS, {"echo": True}, "echo=true is not supported by model a"),
        (TEXT_ONLY, WITH_PROMPT, {"truncate_prompt_tokens": 3}, "truncate_prompt_tokens=3 is not supported by model x"),
    ],
)
def test_what_cannot_be_done_with_an_input_is_refused_by_name_and_input(model, given, options, said):
    assert refusal(GenerateRequest(**given, **options), model).startswith(said)


def test_a_model_that_takes_any_extra_option_gets_them():
    validate(request(extra={"a": 1, "b": 2}), ModelInfo(name="m", options=frozenset({"extra"})), Limits())


def test_a_model_without_a_known_context_or_vocabulary_takes_any_length_and_id():
    free = ModelInfo(name="free", token_prompt=True)
    validate(GenerateRequest(prompt_token_ids=[2**32 - 1], max_tokens=2**32 - 1), free, Limits())


@settings(max_examples=200)
@given(st.floats(width=32), st.floats(width=32), st.integers(0, 300))
def test_whatever_is_asked_the_answer_is_yes_or_a_refusal(temperature, top_p, n):
    fields = {"temperature": temperature, "top_p": top_p, "n": n}
    allowed = 0 <= temperature < math.inf and 0 < top_p <= 1 and 1 <= n <= 128
    if allowed:
        validate(request(**fields), CAPABLE, Limits())
    else:
        refusal(request(**fields))


class TestRunKey:
    """Which requests are the same run."""

    def test_the_id_metadata_and_stream_options_are_no_part_of_the_parameters(self):
        noted = request(metadata={"a": "b"}, request_id="x", stream_options=StreamOptions(resume_ttl_ms=1))
        assert RunKey.of(ANONYMOUS, "i", noted) == RunKey.of(ANONYMOUS, "i", request())

    def test_everything_else_is(self):
        plain = RunKey.of(ANONYMOUS, "i", request())
        others = [request(seed=0), request(top_k=0), GenerateRequest(prompt="q"), request(logit_bias={1: 1.0})]
        keys = {RunKey.of(ANONYMOUS, "i", other) for other in others}
        assert len(keys) == len(others)
        assert plain not in keys

    def test_the_order_of_a_map_is_not(self):
        one = request(logit_bias=dict.fromkeys(range(40), 1.0))
        other = request(logit_bias=dict.fromkeys(reversed(range(40)), 1.0))
        assert RunKey.of(ANONYMOUS, "i", one) == RunKey.of(ANONYMOUS, "i", other)

    def test_the_principal_is(self):
        assert RunKey.of(ANONYMOUS, "i", request()) != RunKey.of(Principal("alice"), "i", request())
