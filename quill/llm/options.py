"""What a GenerateRequest may ask of a model, and who sees to it: the backend, or the layer above it."""

from __future__ import annotations

from quill.errors import InvalidArgument
from quill.llm.backend import ModelInfo
from quill.proto import GenerateRequest

_INPUTS = ("prompt", "prompt_token_ids", "messages")
_SUPPLIED_ALWAYS = frozenset({"include_stop", "max_tokens", "n", "stop"})


def input_of(request: GenerateRequest) -> str:
    """The name of the input of a request.

    Raises:
        InvalidArgument: There is none, or more than one.
    """
    given = [field.name for field, _ in request.ListFields() if field.name in _INPUTS]
    if not given:
        raise InvalidArgument("there is no input: give one of prompt, prompt_token_ids and messages")
    if len(given) > 1:
        raise InvalidArgument(
            f"{' and '.join(given)} are given: give exactly one of prompt, prompt_token_ids, messages"
        )
    return given[0]


def renders_messages(model: ModelInfo) -> bool:
    """Whether the engine takes messages itself; else the layer above renders them."""
    return "messages" in model.options


def takes_text(model: ModelInfo) -> bool:
    """Whether text goes: the engine takes it, or takes its tokens."""
    return model.text_prompt or (model.token_prompt and model.tokenizer is not None)


def inputs(model: ModelInfo) -> list[str]:
    """The inputs of GenerateRequest that a model can have."""
    taken = (takes_text(model), model.token_prompt, takes_text(model) or renders_messages(model))
    return [name for name, can_be in zip(_INPUTS, taken, strict=True) if can_be]


def supplied_options(model: ModelInfo, given: str) -> frozenset[str]:
    """The options of GenerateRequest that the layer above the backend sees to.

    Args:
        model: The model.
        given: The name of the input: what can be done with a prompt depends on who sees its tokens.
    """
    supplied = set(_SUPPLIED_ALWAYS)
    if given == "prompt_token_ids":
        supplied.add("truncate_prompt_tokens")
    if model.tokenizer is not None and not (given == "messages" and renders_messages(model)):
        supplied.add("echo")
        if given != "prompt_token_ids" and model.token_prompt:
            supplied |= {"add_special_tokens", "truncate_prompt_tokens"}
    return frozenset(supplied)


def honoured_options(model: ModelInfo) -> list[str]:
    """The names of the GenerateRequest fields that may be set for a model, sorted, its inputs included."""
    given = inputs(model)
    return sorted(model.options.union(_SUPPLIED_ALWAYS, given, *(supplied_options(model, name) for name in given)))


def capabilities(model: ModelInfo) -> list[str]:
    """What a model can do, sorted: its options, and the methods beside Generate that it has."""
    methods = {"embed": model.embedder, "tokenize": model.tokenizer}
    return sorted([*honoured_options(model), *(name for name, offer in methods.items() if offer is not None)])
