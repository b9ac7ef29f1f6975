"""What a caller writes becomes the contract's requests: every field can be reached, and errors name what is wrong."""

import asyncio
import contextlib
import json

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import DType, Internal, InvalidType, InvalidUsage, Tensor, ToolCall, proto
from quill.client.llm.async_llm import AsyncLLM
from quill.client.llm.request import generate_request
from quill.client.llm.sync_llm import LLM

INPUTS = {"prompt", "prompt_token_ids", "messages"}

NOT_THE_CALLERS = {
    "GenerateRequest": {"stream_options"},  # how a stream behaves is the client's business
    "ListModelsRequest": {"page_size", "page_token"},  # the client pages by itself
}


class Recorder:
    """The seam below the LLM half: keeps what would be sent, and answers with what a test says."""

    def __init__(self, reply=None):
        self.reply = reply
        self.sent = []

    def call(self, service, method, request, **_):
        descriptor = proto.GenerateRequest.DESCRIPTOR.file.services_by_name["LLMService"].methods_by_name[method]
        is_serialized = isinstance(request, bytes)
        if is_serialized:
            request = getattr(proto, descriptor.input_type.name).FromString(request)
        self.sent.append((method, request))
        reply = getattr(proto, descriptor.output_type.name)() if self.reply is None else self.reply
        return reply.SerializeToString() if is_serialized else reply

    def stream(self, service, method, request, **_):
        self.sent.append((method, request))


class AsyncRecorder(Recorder):
    async def call(self, *arguments, **options):
        return super().call(*arguments, **options)


CALLS = {
    "Generate": lambda llm: llm.generate("x"),
    "StreamGenerate": lambda llm: llm.stream("x"),
    "CancelGenerate": lambda llm: llm.cancel("r", "enough"),
    "Embed": lambda llm: llm.embed(
        "x", model="m", pooling="last", normalize=False, dimensions=0, dtype=DType.float16()
    ),
    "Tokenize": lambda llm: llm.tokenize("x", model="m", add_special_tokens=False),
    "Detokenize": lambda llm: llm.detokenize([1], model="m", skip_special_tokens=False),
    "ListModels": lambda llm: llm.models(),
    "GetModel": lambda llm: llm.model("m"),
}
"""A call of every method that the client has, with every option it takes."""


def sent_by(call, reply=None):
    recorder = Recorder(reply)
    with contextlib.suppress(Internal):  # of an empty reply; what was sent counts
        call(LLM(recorder))
    return recorder.sent[0]


def test_every_method_of_the_contract_can_be_called():
    service = proto.GenerateRequest.DESCRIPTOR.file.services_by_name["LLMService"]
    assert CALLS.keys() == set(service.methods_by_name) - {"Session"}
    for name, call in CALLS.items():
        assert sent_by(call)[0] == name


@pytest.mark.parametrize("method", sorted(CALLS.keys() - {"Generate", "StreamGenerate"}))
def test_every_field_of_the_smaller_requests_can_be_set(method):
    _, request = sent_by(CALLS[method])
    reachable = {field.name for field, _ in request.ListFields()}
    if method == "Tokenize":
        _, other = sent_by(lambda llm: llm.tokenize(messages=[{"role": "user"}]))
        reachable |= {field.name for field, _ in other.ListFields()}
    expected = {field.name for field in request.DESCRIPTOR.fields}
    assert reachable == expected - NOT_THE_CALLERS.get(request.DESCRIPTOR.name, set())


async def test_the_asyncio_client_sends_the_same():
    for name, call in CALLS.items():
        recorder = AsyncRecorder()
        result = call(AsyncLLM(recorder))
        if name != "StreamGenerate":
            with contextlib.suppress(Internal):
                await result
        (method, request), (_, expected) = recorder.sent[0], sent_by(call)
        for message in (request, expected):
            if name.endswith("Generate") and name != "CancelGenerate":
                message.request_id = ""
        assert (method, request) == (name, expected)


# Every field of GenerateRequest, down to the leaves


def leaves(descriptor, path=()):
    """The path of every leaf, maps, Structs and tensors being leaves."""
    for field in descriptor.fields:
        if field.name in NOT_THE_CALLERS.get(descriptor.name, ()):
            continue
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry or inner.full_name.startswith("google.") or is_tensor(field):
            yield (*path, field)
        else:
            yield from leaves(inner, (*path, field))


def is_tensor(field):
    return field.message_type is not None and field.message_type.name == "Tensor"


def value_of(field):
    """A value that is not the default, and 0 where 0 is a value."""
    if is_tensor(field):
        return Tensor.from_numpy(np.arange(2, dtype=np.int8)).to_proto()
    if field.message_type is not None:
        return {5: -1.5} if field.name == "logit_bias" else {"k": "v"}
    if field.has_presence:
        return {"string": "", "bytes": b"", "bool": False, "number": 0}[kind_of(field)]
    return {"string": "ab", "bytes": b"\xff", "bool": True, "number": 3}[kind_of(field)]


def kind_of(field):
    kinds = FieldDescriptor
    names = {kinds.CPPTYPE_STRING: "string", kinds.CPPTYPE_BOOL: "bool"}
    return "bytes" if field.type == kinds.TYPE_BYTES else names.get(field.cpp_type, "number")


def written(path):
    """The option that sets one leaf, as a caller writes it."""
    *outer, leaf = path
    value = [value_of(leaf)] if leaf.is_repeated and leaf.message_type is None else value_of(leaf)
    for field in (leaf, *reversed(outer)):
        value = {field.name: [value] if field.is_repeated and field in outer else value}
    return value


@pytest.mark.parametrize(
    "path", list(leaves(proto.GenerateRequest.DESCRIPTOR)), ids=lambda p: ".".join(f.name for f in p)
)
def test_every_field_of_a_generation_can_be_set(path):
    options = written(path)
    prompt = options.pop("prompt", None if path[0].name in INPUTS else "x")
    request = generate_request(prompt, options)
    message = request
    for field in path[:-1]:
        message = getattr(message, field.name)
        message = message[0] if field.is_repeated else message
    leaf = path[-1]
    assert leaf.name in {field.name for field, _ in message.ListFields()}
    got = getattr(message, leaf.name)
    expected = value_of(leaf)
    if leaf.message_type is not None and not is_tensor(leaf):
        assert dict(got) == expected
    else:
        assert (list(got) if leaf.is_repeated else got) == ([expected] if leaf.is_repeated else expected)


texts = st.text(max_size=5)
uints = st.integers(0, 2**32 - 1)
floats = st.floats(width=32, allow_nan=False)
OPTIONS = {
    "model": texts, "request_id": st.text(min_size=1, max_size=5), "tool_choice": texts,
    "adapter": texts, "cache_salt": texts,
    "max_tokens": uints, "min_tokens": uints, "top_k": uints, "n": uints, "logprobs": uints, "prompt_logprobs": uints,
    "truncate_prompt_tokens": uints, "seed": st.integers(-(2**63), 2**63 - 1),
    "priority": st.integers(-(2**31), 2**31 - 1),
    "temperature": floats, "top_p": floats, "min_p": floats, "presence_penalty": floats, "frequency_penalty": floats,
    "repetition_penalty": floats, "logit_bias": st.dictionaries(uints, floats, max_size=3),
    "stop": st.lists(texts, max_size=3), "stop_token_ids": st.lists(uints, max_size=3),
    "ignore_eos": st.booleans(), "include_stop": st.booleans(), "echo": st.booleans(),
    "add_special_tokens": st.booleans(), "skip_special_tokens": st.booleans(),
    "metadata": st.dictionaries(texts, texts, max_size=3),
    "extra": st.dictionaries(texts, texts | st.booleans() | floats | st.none(), max_size=3),
    "tools": st.lists(st.fixed_dictionaries({"name": texts}, optional={"parameters_json": texts}), max_size=3),
    "response_format": st.fixed_dictionaries({"regex": texts}) | st.fixed_dictionaries({"json_object": st.booleans()}),
}  # fmt: skip


@given(st.text(max_size=20), st.fixed_dictionaries({}, optional=OPTIONS))
@settings(max_examples=100, deadline=None)
def test_options_together_are_what_protobuf_makes_of_them(prompt, options):
    request = generate_request(prompt, options)
    options.setdefault("request_id", request.request_id)
    assert request == proto.GenerateRequest(prompt=prompt, **options)


def test_the_table_above_has_every_option():
    fields = {field.name for field in proto.GenerateRequest.DESCRIPTOR.fields}
    assert OPTIONS.keys() == fields - INPUTS - {"stream_options"}


# What may be written otherwise than in the contract


def test_what_an_assistant_asked_for_can_be_sent_back():
    call = ToolCall(index=1, id="i", name="f", arguments="{}")
    messages = [{"role": "assistant", "tool_calls": (call,)}, {"role": "tool", "tool_call_id": "i", "content": "4"}]
    request = generate_request(None, {"messages": messages})
    assert request.messages[0].tool_calls == [proto.ToolCall(id="i", name="f", arguments="{}", index=1)]
    assert request.messages[1].tool_call_id == "i"


def test_a_tensor_can_be_part_of_a_message():
    tensor = Tensor.from_numpy(np.ones((1, 2), np.float32))
    part = {"mime_type": "image/x", "tensor": tensor}
    request = generate_request(None, {"messages": [{"role": "user", "parts": [part, proto.ContentPart(text="?")]}]})
    first, second = request.messages[0].parts
    assert (Tensor.from_proto(first.tensor), first.mime_type, second.text) == (tensor, "image/x", "?")


def test_schemas_may_be_mappings_and_choices_a_list():
    schema = {"type": "object", "properties": {"é": {"type": "integer"}}}
    request = generate_request(
        "x", {"response_format": {"json_schema": schema}, "tools": [{"name": "f", "parameters_json": schema}]}
    )
    assert json.loads(request.response_format.json_schema) == schema
    assert json.loads(request.tools[0].parameters_json) == schema
    request = generate_request("x", {"response_format": {"choice": ("a", "b")}})
    assert request.response_format.choice.values == ["a", "b"]
    ready = proto.ResponseFormat(choice=proto.Choices(values=["a"]))
    assert generate_request("x", {"response_format": ready}).response_format == ready


def test_token_ids_may_be_numpys():
    request = generate_request(None, {"prompt_token_ids": np.array([1, 2]), "stop_token_ids": {3}})
    assert (list(request.prompt_token_ids), list(request.stop_token_ids)) == ([1, 2], [3])


@pytest.mark.parametrize(
    ("options", "kind", "named"),
    [
        ({"prompt_token_ids": b"abc"}, InvalidType, "'prompt_token_ids'"),
        ({"prompt_token_ids": [1, -1]}, InvalidUsage, r"prompt_token_ids\[1\].*-1"),
        ({"prompt_token_ids": [1.5]}, InvalidType, r"prompt_token_ids\[0\]"),
        ({"prompt_token_ids": 5}, InvalidType, "'prompt_token_ids'.*5"),
        ({"messages": {"role": "user"}}, InvalidType, "'messages'"),
        ({"messages": ["hi"]}, InvalidType, r"'messages\[0\]'.*ChatMessage"),
        ({"messages": [{"role": "user"}, {"role": 5}]}, InvalidType, r"'messages\[1\].role' cannot be 5"),
        ({"messages": [{"role": "user", "parts": [{"txt": "a"}]}]}, InvalidUsage, r"'messages\[0\].parts\[0\].text'"),
        ({"messages": [{"role": "a", "parts": [{"text": "a", "uri": "b"}]}]}, InvalidUsage, "text and .*uri exclude"),
        ({"messages": [{"role": "a", "tool_calls": [5]}]}, InvalidType, r"tool_calls\[0\]"),
        ({"messages": [{"role": "a", "parts": [{"tensor": 5}]}]}, InvalidType, "tensor"),
        ({"prompt": "x", "tools": [{"name": "f", "parameters_json": {"a": {1}}}]}, InvalidUsage, "parameters_json"),
        ({"messages": [{"role": "a", "content": "\ud800"}]}, InvalidUsage, "content' is no text that UTF-8 can carry"),
        ({"prompt": "x", "response_format": "json"}, InvalidType, "'response_format'"),
        ({"prompt": "x", "response_format": {"choice": "ab"}}, InvalidType, "'response_format.choice'"),
        ({"prompt": "x", "response_format": {"regex": "a", "grammar": "b"}}, InvalidUsage, "exclude each other"),
        ({"prompt": "x", "response_format": {"json_schema": {"a": float("nan")}}}, InvalidUsage, "json_schema"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_place(options, kind, named):
    with pytest.raises(kind, match=named):
        generate_request(options.pop("prompt", None), options)


class Pages(Recorder):
    """Answers with one page after the other: the token of the next one each."""

    def __init__(self, *tokens):
        super().__init__()
        self.tokens = list(tokens)

    def call(self, service, method, request, **_):
        self.sent.append(request.page_token)
        name = f"model-{len(self.sent)}"
        return proto.ListModelsResponse(models=[proto.Model(name=name)], next_page_token=self.tokens.pop(0))


class AsyncPages(Pages):
    async def call(self, *arguments, **options):
        return super().call(*arguments, **options)


def listed(pages):
    if isinstance(pages, AsyncPages):
        return asyncio.run(AsyncLLM(pages).models())
    return LLM(pages).models()


@pytest.mark.parametrize("kind", [Pages, AsyncPages])
def test_models_are_listed_page_by_page(kind):
    pages = kind("a", "b", "")
    assert [model.name for model in listed(pages)] == ["model-1", "model-2", "model-3"]
    assert pages.sent == ["", "a", "b"]


@pytest.mark.parametrize("kind", [Pages, AsyncPages])
@pytest.mark.parametrize("tokens", [("a", "a"), ("a", "b", "a"), ("a", "b", "b")])
def test_pages_that_go_in_a_circle_end(kind, tokens):
    with pytest.raises(Internal, match="no end"):
        listed(kind(*tokens))
