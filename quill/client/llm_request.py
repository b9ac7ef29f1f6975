"""The request of a generation, from what a caller writes."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from quill.errors import InvalidType, InvalidUsage

if TYPE_CHECKING:
    from quill.proto import GenerateRequest

SERVICE = "inference.v1.LLMService"

_INPUTS = ("prompt", "prompt_token_ids", "messages")
_RESERVED = frozenset({"stream_options"})
"""How a stream behaves is the client's business."""


class GenerateOptions(TypedDict, total=False):
    """The options of a generation: the fields of inference.v1.GenerateRequest, by name. None stands for absent."""

    model: str | None
    """The model's name or alias; may be absent where the server has one model."""
    request_id: str | None
    """The caller's name for this run; made by the client where absent."""
    prompt_token_ids: Sequence[int] | None
    """The input as token ids of this model, in place of a prompt."""
    messages: Sequence[Any] | None
    """The input as a conversation, in place of a prompt: ``{"role": ..., "content": ...}``, or ChatMessage."""
    max_tokens: int | None
    """How many tokens to generate at most."""
    min_tokens: int | None
    """How many tokens to generate before an end or a stop is allowed."""
    temperature: float | None
    """Sharpness of the distribution, at least 0; 0 is greedy."""
    top_p: float | None
    """Keep the most probable tokens up to this mass, in (0, 1]."""
    top_k: int | None
    """Keep this many of the most probable tokens; 0 keeps all."""
    min_p: float | None
    """Keep tokens of at least this share of the highest probability."""
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    """Added to the logit of a token, by id."""
    seed: int | None
    """Makes sampling repeatable on the same server and model."""
    n: int | None
    """How many sequences to generate."""
    stop: str | Sequence[str] | None
    """Texts that end the output where they appear."""
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    include_stop: bool | None
    logprobs: int | None
    """Tell log probabilities of the tokens, and of this many candidates beside each."""
    prompt_logprobs: int | None
    echo: bool | None
    response_format: Any
    """``{"json_schema": ...}`` or another constraint, or ResponseFormat."""
    tools: Sequence[Any] | None
    tool_choice: str | None
    adapter: str | None
    priority: int | None
    add_special_tokens: bool | None
    skip_special_tokens: bool | None
    truncate_prompt_tokens: int | None
    cache_salt: str | None
    metadata: Mapping[str, str] | None
    """The caller's own notes."""
    extra: Mapping[str, Any] | None
    """Engine-specific options, passed through by name."""


def generate_request(prompt: str | None, options: Mapping[str, Any]) -> GenerateRequest:
    """The message for a prompt and options.

    Raises:
        InvalidUsage: An option is unknown or out of range, or there is not exactly one input.
        InvalidType: An option is of a type that its field does not have.
    """
    from quill.proto import GenerateRequest

    given = {name: value for name, value in {"prompt": prompt, **options}.items() if value is not None}
    inputs = [name for name in _INPUTS if name in given]
    if len(inputs) != 1:
        raise InvalidUsage(f"exactly one of {', '.join(_INPUTS)} must be given, got {' and '.join(inputs) or 'none'}")
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    request = GenerateRequest(request_id=uuid.uuid4().hex)
    for name, value in given.items():
        _merge(request, name, value)
    return request


def _merge(request: GenerateRequest, name: str, value: Any) -> None:
    """Set one field."""
    names = [field.name for field in request.DESCRIPTOR.fields if field.name not in _RESERVED]
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        raise InvalidUsage(f"unknown option {name!r}" + (f", did you mean {close[0]!r}?" if close else ""))
    try:
        request.MergeFrom(type(request)(**{name: value}))
    except TypeError:
        raise InvalidType(f"option {name!r} cannot be {_shown(value)}") from None
    except (ValueError, OverflowError):
        raise InvalidUsage(f"option {name!r} is out of range or does not fit: {_shown(value)}") from None


def _shown(value: Any) -> str:
    """A number as it is; of anything else, which may be long or private, the type."""
    return repr(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
