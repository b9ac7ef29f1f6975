"""ListModels and GetModel: pages, names, what a model can do."""

import grpc
import pytest

from llm.scripted import ScriptedBackend, failure, served
from quill.llm import ModelInfo
from quill.proto import GenerateRequest, GetModelRequest, ListModelsRequest

NAMES = ["beta", "alpha", "delta", "gamma", "epsilon"]
MANY = tuple(ModelInfo(name=name, aliases=(f"{name}-latest",)) for name in NAMES)


async def pages(stub, size):
    """The names on every page, by following the tokens."""
    found, token = [], ""
    while True:
        reply = await stub.ListModels(ListModelsRequest(page_size=size, page_token=token))
        found.append([model.name for model in reply.models])
        token = reply.next_page_token
        if not token:
            return found


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, [sorted(NAMES)]),
        (2, [["alpha", "beta"], ["delta", "epsilon"], ["gamma"]]),
        (5, [sorted(NAMES)]),
        (2**32 - 1, [sorted(NAMES)]),
    ],
)
async def test_pages_have_all_models_once_by_name(size, expected):
    async with served(ScriptedBackend(models=MANY)) as (_, stub):
        assert await pages(stub, size) == expected


async def test_no_models_are_an_empty_page():
    async with served(ScriptedBackend(models=())) as (_, stub):
        assert await pages(stub, 0) == [[]]


async def test_a_page_goes_on_after_a_model_that_has_gone():
    backend = ScriptedBackend(models=MANY)
    async with served(backend) as (_, stub):
        first = await stub.ListModels(ListModelsRequest(page_size=2))
        backend._models = tuple(model for model in MANY if model.name != "beta")
        second = await stub.ListModels(ListModelsRequest(page_size=2, page_token=first.next_page_token))
    assert [model.name for model in second.models] == ["delta", "epsilon"]


@pytest.mark.parametrize("token", ["nonsense", "%%%", "YmV0YQ==", "YWZ0ZXI6/w==", "é", "YWZ0ZXI6_w=="])
async def test_a_page_token_from_elsewhere_is_refused(token):
    async with served(ScriptedBackend(models=MANY)) as (_, stub):
        error, _ = await failure(stub.ListModels(ListModelsRequest(page_token=token)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"page_token={token!r}" in error.details()


async def test_a_model_is_found_by_name_and_by_alias_and_described():
    model = ModelInfo(
        name="m",
        aliases=("a", "b"),
        context_length=4096,
        vocab_size=32000,
        eos_token_ids=(2,),
        options=frozenset({"temperature", "response_format.choice"}),
        token_prompt=True,
        default_sampling={"temperature": 0.5},
        weights_origin="made up",
        ready=False,
    )
    async with served(ScriptedBackend(models=(model, *MANY))) as (_, stub):
        by_name = (await stub.GetModel(GetModelRequest(name="m"))).model
        by_alias = (await stub.GetModel(GetModelRequest(name="b"))).model
    assert by_name == by_alias
    assert (by_name.name, list(by_name.aliases), by_name.backend, by_name.ready) == ("m", ["a", "b"], "scripted", False)
    assert (by_name.context_length, by_name.vocab_size, list(by_name.eos_token_ids)) == (4096, 32000, [2])
    assert list(by_name.capabilities) == [
        "include_stop",
        "max_tokens",
        "messages",
        "n",
        "prompt",
        "prompt_token_ids",
        "response_format.choice",
        "stop",
        "temperature",
        "truncate_prompt_tokens",
    ]
    assert dict(by_name.default_sampling) == {"temperature": 0.5, "max_tokens": 256}
    assert by_name.weights_origin == "made up"


async def test_an_unknown_model_is_not_found_and_the_known_ones_are_named():
    async with served(ScriptedBackend(models=MANY)) as (_, stub):
        for call in (
            stub.GetModel(GetModelRequest(name="zeta")),
            stub.Generate(GenerateRequest(model="zeta", prompt="p")),
            stub.StreamGenerate(GenerateRequest(model="zeta", prompt="p")),
        ):
            error, _ = await failure(call)
            assert error.code() == grpc.StatusCode.NOT_FOUND
            assert error.details() == "model 'zeta' is not known; known are: alpha, beta, delta, epsilon, gamma"


async def test_an_empty_name_means_the_only_model():
    backend = ScriptedBackend(models=MANY[:1])
    async with served(backend) as (_, stub):
        assert (await stub.GetModel(GetModelRequest())).model.name == "beta"
        assert (await stub.Generate(GenerateRequest(prompt="p"))).model == "beta"


async def test_an_empty_name_is_refused_where_there_are_several_models():
    async with served(ScriptedBackend(models=MANY)) as (_, stub):
        error, _ = await failure(stub.Generate(GenerateRequest(prompt="p")))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "there are 5: alpha, beta, delta, epsilon, gamma" in error.details()


async def test_no_model_at_all_is_not_found():
    async with served(ScriptedBackend(models=())) as (_, stub):
        error, _ = await failure(stub.Generate(GenerateRequest(prompt="p")))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "model '' is not known; known are: none")


async def test_of_many_models_only_some_are_named():
    many = tuple(ModelInfo(name=f"model-{number:02}") for number in range(30))
    async with served(ScriptedBackend(models=many)) as (_, stub):
        error, _ = await failure(stub.GetModel(GetModelRequest(name="x" * 1000)))
    assert error.details().endswith("model-19 and 10 more")
    assert "x" * 129 not in error.details()
