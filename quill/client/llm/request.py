"""The request of a generation, from what a caller writes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from quill.client.llm.conversation import ChatMessage, ResponseFormat, Tool, chat_messages, response_format, tools
from quill.client.llm.fields import Converters, check_one, filled, token_ids
from quill.errors import InvalidUsage
from quill.token.fields import uint32

if TYPE_CHECKING:
    from quill import proto

_RESERVED = "stream_options"
"""The field that is no option: how a stream behaves is the client's business."""


class GenerateOptions(TypedDict, total=False):
    """The options of a generation: the fields of inference.v1.GenerateRequest, by name. None stands for absent.

    Which of them a model honours, its ``capabilities`` say; a server refuses the others by name.
    """

    model: str | None
    """The model's name or alias; may be absent where the server has one model."""
    request_id: str | None
    """The caller's name for this run; made by the client where absent."""
    prompt_token_ids: Sequence[int] | None
    """The input as token ids of this model, in place of a prompt."""
    messages: Sequence[ChatMessage | proto.ChatMessage] | None
    """The input as a conversation, in place of a prompt: ``[{"role": "user", "content": "Hello"}]``."""
    max_tokens: int | None
    """How many tokens to generate at most; the model's default where absent."""
    min_tokens: int | None
    """How many tokens to generate before an end or a stop is allowed."""
    temperature: float | None
    """Sharpness of the distribution, at least 0; 0 is greedy."""
    top_p: float | None
    """Keep the most probable tokens up to this mass, in (0, 1]."""
    top_k: int | None
    """Keep this many of the most probable tokens; 0 keeps all."""
    min_p: float | None
    """Keep tokens of at least this share of the highest probability, in [0, 1]."""
    presence_penalty: float | None
    """Subtracted from the logit of every token that the output already has, in [-2, 2]."""
    frequency_penalty: float | None
    """Subtracted from the logit of a token once per occurrence in the output, in [-2, 2]."""
    repetition_penalty: float | None
    """Divides positive and multiplies negative logits of tokens already seen, above 0; 1 changes nothing."""
    logit_bias: Mapping[int, float] | None
    """Added to the logit of a token, by id."""
    seed: int | None
    """Makes sampling repeatable on the same server and model."""
    n: int | None
    """How many sequences to generate, at least 1."""
    stop: str | Sequence[str] | None
    """Texts that end the output where they appear, across token borders; at most 16."""
    stop_token_ids: Sequence[int] | None
    """Tokens that end the output."""
    ignore_eos: bool | None
    """Do not end at the end-of-sequence token."""
    include_stop: bool | None
    """Keep the stop string or token in the output."""
    logprobs: int | None
    """Tell log probabilities of the tokens, and of this many candidates beside each."""
    prompt_logprobs: int | None
    """The same for the tokens of the prompt, told in ``Generation.prompt_tokens``: the first has none."""
    echo: bool | None
    """Put the prompt before the output of every sequence. Its tokens take the first positions."""
    response_format: ResponseFormat | proto.ResponseFormat | None
    """What form the output must have: ``{"choice": ["yes", "no"]}``, ``{"json_schema": {...}}``."""
    tools: Sequence[Tool | proto.Tool] | None
    """Functions that the model may call."""
    tool_choice: str | None
    """``"auto"``, ``"none"``, ``"required"``, or the name of one tool."""
    adapter: str | None
    """The name of an adapter (LoRA) to use with the model."""
    priority: int | None
    """Lower runs first where the engine schedules by priority."""
    add_special_tokens: bool | None
    """Whether to put the begin-of-sequence tokens before the prompt; the model's habit where absent."""
    skip_special_tokens: bool | None
    """Whether control tokens stay out of the text; they do where absent."""
    truncate_prompt_tokens: int | None
    """Keep only this many tokens of the prompt, from its end."""
    cache_salt: str | None
    """Separates prefix caches of callers that must not learn from each other's timing."""
    metadata: Mapping[str, str] | None
    """The caller's own notes: kept with the run, never interpreted."""
    extra: Mapping[str, Any] | None
    """Engine-specific options, passed through by name."""


def generate_request(
    prompt: str | None, options: Mapping[str, Any], *, resume_ttl_ms: int = 0
) -> proto.GenerateRequest:
    """The message for a prompt and options.

    Args:
        prompt: The input, where it is text.
        options: Fields of the request, by name.
        resume_ttl_ms: For how long the run outlives a lost connection.

    Raises:
        InvalidUsage: An option is unknown or out of range, or there is not exactly one input.
        InvalidType: An option is of a type that its field does not have.
    """
    from quill.proto import GenerateRequest

    values = {"prompt": prompt, **options}
    check_one(values, ("prompt", "prompt_token_ids", "messages"))
    if _RESERVED in values:
        raise InvalidUsage(f"option {_RESERVED!r} is the client's own")
    request = filled(GenerateRequest(request_id=uuid.uuid4().hex), values, _CONVERTERS)
    if ttl_ms := uint32("resume_ttl_ms", resume_ttl_ms):
        request.request_id = request.request_id or uuid.uuid4().hex
        request.stream_options.resume_ttl_ms = ttl_ms
    return request


def _stops(_name: str, value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_CONVERTERS: Converters = {
    "messages": chat_messages,
    "prompt_token_ids": token_ids,
    "response_format": response_format,
    "stop": _stops,
    "stop_token_ids": token_ids,
    "tools": tools,
}
