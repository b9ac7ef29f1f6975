"""What a GenerateRequest may ask of a model. Checked once, above every backend; nothing is silently ignored."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Mapping, Sized
from itertools import islice
from typing import Any

from google.protobuf.message import Message

from quill.errors import InvalidArgument, ResourceExhausted
from quill.limits import Limits
from quill.llm.backend import ModelInfo
from quill.llm.models import SUPPLIED_OPTIONS, default_max_tokens, honoured_options
from quill.llm.usage import text_bytes
from quill.proto import GenerateRequest, ResponseFormat

MAX_REQUEST_ID_BYTES = 128
MAX_SEQUENCES = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_CANDIDATES = 20
"""Of logprobs and prompt_logprobs."""

_INPUTS = ("prompt", "prompt_token_ids", "messages")
_NOT_OPTIONS = frozenset({*_INPUTS, "model", "request_id", "metadata", "stream_options", "response_format", "extra"})
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
    _check_input(request, model, limits)
    for field, value in request.ListFields():
        if field.name not in _NOT_OPTIONS and not (field.name == "skip_special_tokens" and value):
            _check_supported(field.name, value, model)
        if field.name in _RANGES:
            accepts, rule = _RANGES[field.name]
            if not accepts(value):
                raise InvalidArgument(f"{field.name}={_show(value)} {rule}")
    _check_stops(request)
    _check_token_ids(request, model)
    _check_lengths(request, model)
    _check_response_format(request, model)
    _check_extra(request, model)


def _check_request_id(request_id: str) -> None:
    size = len(request_id.encode())
    if size > MAX_REQUEST_ID_BYTES:
        raise InvalidArgument(f"request_id={_show(request_id)} has {size} bytes, at most {MAX_REQUEST_ID_BYTES} go")
    for place, character in enumerate(request_id):
        if unicodedata.category(character) == "Cc":
            raise InvalidArgument(f"request_id={request_id!r} has the control character {character!r} at {place}")


def _check_stream_options(request: GenerateRequest) -> None:
    options = request.stream_options
    if options.HasField("resume"):
        raise InvalidArgument(
            f"stream_options.resume at position {options.resume.next_position}: this server resumes no runs"
        )
    if options.resume_ttl_ms:
        raise InvalidArgument(f"stream_options.resume_ttl_ms={options.resume_ttl_ms}: this server resumes no runs")
    if options.columns:
        raise InvalidArgument("stream_options.columns=true: this server sends no columns")


def _check_input(request: GenerateRequest, model: ModelInfo, limits: Limits) -> None:
    given = [field.name for field, _ in request.ListFields() if field.name in _INPUTS]
    if not given:
        raise InvalidArgument("there is no input: give one of prompt, prompt_token_ids and messages")
    if len(given) > 1:
        raise InvalidArgument(
            f"{' and '.join(given)} are given: give exactly one of prompt, prompt_token_ids, messages"
        )
    if given[0] not in honoured_options(model):
        inputs = [name for name in _INPUTS if name in honoured_options(model)]
        raise InvalidArgument(f"{given[0]} is not supported by model {model.name}; it takes: {', '.join(inputs)}")
    size = text_bytes(request)
    if size > limits.max_prompt_bytes:
        raise ResourceExhausted(f"{given[0]} has {size} bytes of text, max_prompt_bytes is {limits.max_prompt_bytes}")


def _check_supported(name: str, value: Any, model: ModelInfo) -> None:
    if name not in model.options and name not in SUPPLIED_OPTIONS:
        supported = ", ".join(honoured_options(model))
        raise InvalidArgument(f"{name}={_show(value)} is not supported by model {model.name}; it supports: {supported}")


def _check_stops(request: GenerateRequest) -> None:
    if len(request.stop) > MAX_STOPS:
        raise InvalidArgument(f"stop has {len(request.stop)} strings, at most {MAX_STOPS} go")
    for place, stop in enumerate(request.stop):
        if not stop:
            raise InvalidArgument(f'stop[{place}]="" is empty: it would end every output at once')
        if len(stop) > MAX_STOP_CHARACTERS:
            raise InvalidArgument(
                f"stop[{place}]={_show(stop)} has {len(stop)} characters, at most {MAX_STOP_CHARACTERS} go"
            )


def _check_token_ids(request: GenerateRequest, model: ModelInfo) -> None:
    for token_id, bias in request.logit_bias.items():
        if not math.isfinite(bias):
            raise InvalidArgument(f"logit_bias[{token_id}]={bias:g} must be a finite number")
    if not model.vocab_size:
        return
    for name in ("prompt_token_ids", "stop_token_ids", "logit_bias"):
        unknown = max(getattr(request, name), default=0)
        if unknown >= model.vocab_size:
            raise InvalidArgument(
                f"{name} has token {unknown}, model {model.name} knows tokens below {model.vocab_size}"
            )


def _check_lengths(request: GenerateRequest, model: ModelInfo) -> None:
    max_tokens = request.max_tokens if request.HasField("max_tokens") else default_max_tokens(model)
    context = model.context_length
    if context and max_tokens > context:
        raise InvalidArgument(
            f"max_tokens={max_tokens} is more than the context of model {model.name}: {context} tokens"
        )
    if context and len(request.prompt_token_ids) > context:
        raise InvalidArgument(
            f"prompt_token_ids has {len(request.prompt_token_ids)} tokens, "
            f"more than the context of model {model.name}: {context} tokens"
        )
    if request.min_tokens > max_tokens:
        raise InvalidArgument(f"min_tokens={request.min_tokens} is more than max_tokens={max_tokens}")


def _check_response_format(request: GenerateRequest, model: ModelInfo) -> None:
    if not request.HasField("response_format"):
        return
    wanted = request.response_format
    constraint = wanted.WhichOneof("constraint")
    if constraint is None:
        raise InvalidArgument("response_format={} has no constraint: leave it out, or set one")
    name = f"response_format.{constraint}"
    _check_supported(name, getattr(wanted, constraint), model)
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
        raise InvalidArgument(f"response_format.json_schema={_show(schema)} is not JSON") from None


def _check_choices(wanted: ResponseFormat) -> None:
    values = list(wanted.choice.values)
    if not values:
        raise InvalidArgument("response_format.choice=[] has no values: give at least one")
    if "" in values:
        raise InvalidArgument(f'response_format.choice has the empty string "" at {values.index("")}')
    if len(set(values)) < len(values):
        twice = next(value for place, value in enumerate(values) if value in values[:place])
        raise InvalidArgument(f"response_format.choice has {_show(twice)} more than once")


def _check_extra(request: GenerateRequest, model: ModelInfo) -> None:
    """Engine-specific options: the model names each (``extra.mirostat``), or takes what comes (``extra``)."""
    if "extra" not in model.options:
        for name, value in request.extra.fields.items():
            _check_supported(f"extra.{name}", value, model)


_SHOWN = 80
"""Characters of a value in a message."""


def _show(value: Any) -> str:
    """A value as people write it, shortened before it is formatted: it may have megabytes."""
    match value:
        case float():
            return f"{value:g}"  # 0.1 as float32 is 0.10000000149011612
        case bool() | int():
            return str(value).lower()
        case str():
            return repr(value) if len(value) <= _SHOWN else repr(value[:_SHOWN]) + "…"
        case Message():
            size = value.ByteSize()
            return " ".join(str(value).split()) if size <= _SHOWN else f"<{size} bytes>"
        case Mapping():
            first = ", ".join(f"{key}: {_show(value[key])}" for key in islice(value, _ITEMS_SHOWN))
            return "{" + first + _rest(value) + "}"
        case _:
            return "[" + ", ".join(map(_show, value[:_ITEMS_SHOWN])) + _rest(value) + "]"


_ITEMS_SHOWN = 4


def _rest(items: Sized) -> str:
    return f", … {len(items)} in all" if len(items) > _ITEMS_SHOWN else ""
