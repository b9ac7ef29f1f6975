"""What a GenerateRequest may ask of a model. Checked once, above every backend; nothing is silently ignored."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Collection, Mapping
from typing import Any

from quill.errors import InvalidArgument, ResourceExhausted
from quill.limits import Limits
from quill.llm.backend import ModelInfo
from quill.llm.models import default_max_tokens
from quill.llm.options import honoured_options, input_of, inputs, supplied_options
from quill.llm.prompt import check_room, most_prompt_tokens
from quill.llm.shown import shown
from quill.llm.template import check_messages
from quill.llm.usage import text_bytes
from quill.proto import GenerateRequest, ResponseFormat

MAX_REQUEST_ID_BYTES = 128
MAX_SEQUENCES = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_CANDIDATES = 20
"""Of logprobs and prompt_logprobs."""

_NOT_OPTIONS = frozenset(
    {"prompt", "prompt_token_ids", "messages"}
    | {"model", "request_id", "metadata", "stream_options", "response_format", "extra"}
)
"""The fields that have a check of their own, or need none."""

_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value < math.inf, "must be a finite number, at least 0"),
    "top_p": (lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "must be from 0 to 1"),
    "presence_penalty": (lambda value: -2 <= value <= 2, "must be from -2 to 2"),  # noqa: PLR2004
    "frequency_penalty": (lambda value: -2 <= value <= 2, "must be from -2 to 2"),  # noqa: PLR2004
    "repetition_penalty": (lambda value: 0 < value < math.inf, "must be a finite number above 0"),
    "n": (lambda value: 1 <= value <= MAX_SEQUENCES, f"must be from 1 to {MAX_SEQUENCES}"),
    "max_tokens": (lambda value: value >= 1, "must be at least 1; leave it out for the model's default"),
    "truncate_prompt_tokens": (lambda value: value >= 1, "must be at least 1"),
    "logprobs": (lambda value: value <= MAX_CANDIDATES, f"must be at most {MAX_CANDIDATES}"),
    "prompt_logprobs": (lambda value: value <= MAX_CANDIDATES, f"must be at most {MAX_CANDIDATES}"),
}
"""By option: what its value must be. Written so that NaN is refused."""


def validate(request: GenerateRequest, model: ModelInfo, limits: Limits) -> None:
    """Check a request against the contract, a model and the server's limits.

    Raises:
        InvalidArgument: A value is outside its range, or an option is not one of the model's. The message names
            the option and the value.
        ResourceExhausted: The prompt is larger than the server takes.
    """
    _check_request_id(request.request_id)
    _check_stream_options(request)
    given = input_of(request)
    _check_input(request, given, model, limits)
    for field, value in request.ListFields():
        if field.name not in _NOT_OPTIONS and not (field.name == "skip_special_tokens" and value):
            _check_supported(field.name, value, model, given)
        if field.name in _RANGES:
            accepts, rule = _RANGES[field.name]
            if not accepts(value):
                raise InvalidArgument(f"{field.name}={shown(value)} {rule}")
    _check_stops(request)
    _check_token_ids(request, model)
    _check_lengths(request, model)
    _check_response_format(request, model, given)
    _check_extra(request, model, given)


def _check_request_id(request_id: str) -> None:
    size = len(request_id.encode())
    if size > MAX_REQUEST_ID_BYTES:
        raise InvalidArgument(f"request_id={shown(request_id)} has {size} bytes, at most {MAX_REQUEST_ID_BYTES} go")
    if request_id.isprintable():  # most are; it takes no loop
        return
    for place, character in enumerate(request_id):
        if unicodedata.category(character) == "Cc":
            raise InvalidArgument(f"request_id={request_id!r} has the control character {character!r} at {place}")


def _check_stream_options(request: GenerateRequest) -> None:
    options = request.stream_options
    if options.HasField("resume"):
        at = f"stream_options.resume at position {options.resume.next_position}"
        if not request.request_id:
            raise InvalidArgument(f'{at}: request_id="" names no run')
        if not options.resume.epoch:
            raise InvalidArgument(f'{at}: epoch="" names no server instance; Started told it')
    if options.columns:
        raise InvalidArgument("stream_options.columns=true: this server sends no columns")


def _check_input(request: GenerateRequest, given: str, model: ModelInfo, limits: Limits) -> None:
    if given not in inputs(model):
        taken = ", ".join(inputs(model)) or "nothing"
        raise InvalidArgument(f"{given} is not supported by model {model.name}; it takes: {taken}")
    check_messages(request.messages, model)
    check_text_bytes(given, text_bytes(request.prompt, request.messages), limits)
    check_token_count(given, len(request.prompt_token_ids), limits)


def check_text_bytes(name: str, size: int, limits: Limits) -> None:
    """Make sure that a text is no larger than the server takes.

    Raises:
        ResourceExhausted: It is. The message has both numbers.
    """
    if size > limits.max_prompt_bytes:
        raise ResourceExhausted(f"{name} has {size} bytes of text, max_prompt_bytes is {limits.max_prompt_bytes}")


def check_token_count(name: str, count: int, limits: Limits) -> None:
    """Make sure that there are no more ids than a text may have bytes, before anybody looks at them.

    Raises:
        ResourceExhausted: There are more. The message has both numbers.
    """
    if count > limits.max_prompt_bytes:
        raise ResourceExhausted(
            f"{name} has {count} tokens, max_prompt_bytes is {limits.max_prompt_bytes}, and a token is a byte at least"
        )


def _check_supported(name: str, value: Any, model: ModelInfo, given: str) -> None:
    if name in model.options or name in supplied_options(model, given):
        return
    supported = honoured_options(model)
    if name in supported:
        raise InvalidArgument(f"{name}={shown(value)} does not go with {given} on model {model.name}")
    raise InvalidArgument(
        f"{name}={shown(value)} is not supported by model {model.name}; it supports: {', '.join(supported)}"
    )


def _check_stops(request: GenerateRequest) -> None:
    if len(request.stop) > MAX_STOPS:
        raise InvalidArgument(f"stop has {len(request.stop)} strings, at most {MAX_STOPS} go")
    for place, stop in enumerate(request.stop):
        if not stop:
            raise InvalidArgument(f'stop[{place}]="" is empty: it would end every output at once')
        if len(stop) > MAX_STOP_CHARACTERS:
            raise InvalidArgument(
                f"stop[{place}]={shown(stop)} has {len(stop)} characters, at most {MAX_STOP_CHARACTERS} go"
            )


def _check_token_ids(request: GenerateRequest, model: ModelInfo) -> None:
    for token_id, bias in request.logit_bias.items():
        if not math.isfinite(bias):
            raise InvalidArgument(f"logit_bias[{token_id}]={bias:g} must be a finite number")
    kept = request.prompt_token_ids[-request.truncate_prompt_tokens :]  # 0, which is absent, keeps all
    check_room("prompt_token_ids", len(kept), model, most=most_prompt_tokens(model))
    check_ids("prompt_token_ids", kept, model)
    for name in ("stop_token_ids", "logit_bias"):
        check_ids(name, getattr(request, name), model)


def check_ids(name: str, ids: Collection[int], model: ModelInfo) -> None:
    """Make sure that every id is in the vocabulary of a model, where its size is known.

    Raises:
        InvalidArgument: One is not. The message names it and the size of the vocabulary.
    """
    if model.vocab_size:
        largest = max(ids, default=0)
        if largest >= model.vocab_size:
            raise InvalidArgument(
                f"{name} has token {largest}, model {model.name} knows tokens below {model.vocab_size}"
            )


def _check_lengths(request: GenerateRequest, model: ModelInfo) -> None:
    max_tokens = request.max_tokens if request.HasField("max_tokens") else default_max_tokens(model)
    context = model.context_length
    if context and max_tokens > context:
        raise InvalidArgument(
            f"max_tokens={max_tokens} is more than the context of model {model.name}: {context} tokens"
        )
    if request.min_tokens > max_tokens:
        raise InvalidArgument(f"min_tokens={request.min_tokens} is more than max_tokens={max_tokens}")


def _check_response_format(request: GenerateRequest, model: ModelInfo, given: str) -> None:
    if not request.HasField("response_format"):
        return
    wanted = request.response_format
    constraint = wanted.WhichOneof("constraint")
    if constraint is None:
        raise InvalidArgument("response_format={} has no constraint: leave it out, or set one")
    name = f"response_format.{constraint}"
    _check_supported(name, getattr(wanted, constraint), model, given)
    if constraint == "json_object" and not wanted.json_object:
        raise InvalidArgument("response_format.json_object=false asks for nothing: leave response_format out")
    if constraint == "json_schema":
        _check_json_schema(wanted.json_schema)
    if constraint == "choice":
        _check_choices(wanted)


def _check_json_schema(schema: str) -> None:
    try:
        json.loads(schema)
    except (ValueError, RecursionError):
        raise InvalidArgument(f"response_format.json_schema={shown(schema)} is not JSON") from None


def _check_choices(wanted: ResponseFormat) -> None:
    values = list(wanted.choice.values)
    if not values:
        raise InvalidArgument("response_format.choice=[] has no values: give at least one")
    if "" in values:
        raise InvalidArgument(f'response_format.choice has the empty string "" at {values.index("")}')
    if len(set(values)) < len(values):
        twice = next(value for place, value in enumerate(values) if value in values[:place])
        raise InvalidArgument(f"response_format.choice has {shown(twice)} more than once")


def _check_extra(request: GenerateRequest, model: ModelInfo, given: str) -> None:
    """Engine-specific options: the model names each (``extra.mirostat``), or takes what comes (``extra``)."""
    if "extra" not in model.options:
        for name, value in request.extra.fields.items():
            _check_supported(f"extra.{name}", value, model, given)
