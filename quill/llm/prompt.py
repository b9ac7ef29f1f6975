"""From the input of a request to one that its model takes: messages rendered, text split, the beginning cut off."""

from __future__ import annotations

import math
from dataclasses import replace

from quill.errors import InvalidArgument
from quill.llm import template
from quill.llm.backend import ModelInfo, Tokens
from quill.llm.columns import wants_special_text, whole_tokens
from quill.llm.options import input_of, renders_messages
from quill.proto import GenerateRequest, Token, TokenizeRequest
from quill.wire.large import offload

_INLINE_BYTES = 4 * 1024


async def prepare(request: GenerateRequest, model: ModelInfo) -> list[Token]:
    """Turn the input of a request, in place, into one that the model takes, without the options that are done then.

    Text stays text where the model takes it and nothing is asked that needs its tokens.

    Args:
        request: A valid request.
        model: The model that it names.

    Returns:
        The tokens of the prompt where an echo is wanted that the backend does not give itself.

    Raises:
        InvalidArgument: The prompt leaves no room for output in the model's context.
    """
    given = input_of(request)
    if given == "messages" and renders_messages(model):
        return []
    echo = request.echo and "echo" not in model.options
    if echo:
        request.ClearField("echo")
    if given == "prompt_token_ids":
        columns = await _cut_ids(request, model, echo=echo)
    else:
        if given == "messages":
            request.prompt = await conversation_text(request)
            request.ClearField("messages")
        columns = await _split_prompt(request, model, echo=echo)
    if not echo or columns is None:
        return []
    return await whole_tokens(columns, special_text=wants_special_text(request))


async def conversation_text(request: GenerateRequest | TokenizeRequest) -> str:
    """The messages of a request by the template."""
    return await offload(request.ByteSize(), _INLINE_BYTES, template.render, request.messages)


async def split(name: str, text: str, model: ModelInfo, *, most: int, add_special_tokens: bool | None = None) -> Tokens:
    """The tokens of a text, for a model that has a tokenizer.

    Args:
        name: What the text is called in messages.
        text: The text.
        model: The model.
        most: How many tokens may come out; 0 for any number.
        add_special_tokens: Whether the tokens that begin a prompt come first; None for the model's habit.

    Raises:
        InvalidArgument: There are more. A text that is far too long is not split at all.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"model {model.name} has no tokenizer")
    if tokenizer.longest_token_bytes:
        least = math.ceil(len(text.encode()) / tokenizer.longest_token_bytes)
        check_room(name, least, model, most=most, qualifier="at least ")
    columns = await tokenizer.encode(text, add_special_tokens=add_special_tokens)
    check_room(name, len(columns.data), model, most=most)
    return columns


def check_room(name: str, tokens: int, model: ModelInfo, *, most: int, qualifier: str = "") -> None:
    """Make sure that there are at most so many tokens; 0 for any number.

    Raises:
        InvalidArgument: There are more. The message has both numbers.
    """
    if most and tokens > most:
        shared = " of prompt and output" if most < model.context_length else ""
        raise InvalidArgument(
            f"{name} has {qualifier}{tokens} tokens; at most {most} fit into the context of model {model.name}, "
            f"{model.context_length} tokens{shared}"
        )


async def _split_prompt(request: GenerateRequest, model: ModelInfo, *, echo: bool) -> Tokens | None:
    """Replace the text by its tokens where that is needed, and tell them."""
    adds = request.HasField("add_special_tokens") and "add_special_tokens" not in model.options
    cuts = request.HasField("truncate_prompt_tokens") and "truncate_prompt_tokens" not in model.options
    if model.text_prompt and not (adds or cuts or echo):
        return None
    most = 0 if request.HasField("truncate_prompt_tokens") else most_prompt_tokens(model)
    special = request.add_special_tokens if request.HasField("add_special_tokens") else None
    columns = await split("the prompt", request.prompt, model, most=most, add_special_tokens=special)
    if request.HasField("truncate_prompt_tokens"):
        columns = _last(columns, request.truncate_prompt_tokens)
        check_room("the prompt", len(columns.data), model, most=most_prompt_tokens(model))
    if columns.ids is None:
        raise ValueError(f"the tokenizer of model {model.name} tells no ids")
    if model.token_prompt and columns.ids:
        request.prompt_token_ids.extend(columns.ids)
        request.ClearField("prompt")
        request.ClearField("add_special_tokens")  # these two have had their effect
        request.ClearField("truncate_prompt_tokens")
    return columns


async def _cut_ids(request: GenerateRequest, model: ModelInfo, *, echo: bool) -> Tokens | None:
    """Keep the ids that are wanted, and tell their tokens for an echo."""
    if request.HasField("truncate_prompt_tokens"):
        del request.prompt_token_ids[: -request.truncate_prompt_tokens]
        request.ClearField("truncate_prompt_tokens")
    if not echo or model.tokenizer is None:
        return None
    return await model.tokenizer.decode(list(request.prompt_token_ids))


def most_prompt_tokens(model: ModelInfo) -> int:
    """How many tokens leave room for one of output; 0 where the context is unknown."""
    return max(0, model.context_length - 1)


def _last(columns: Tokens, count: int) -> Tokens:
    return replace(
        columns,
        data=columns.data[-count:],
        ids=None if columns.ids is None else columns.ids[-count:],
        special=None if columns.special is None else columns.special[-count:],
    )
