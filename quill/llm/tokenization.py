"""Tokenize and Detokenize: the tokenizer of a model, for callers."""

from __future__ import annotations

from quill.errors import InvalidArgument, ResourceExhausted, Unimplemented
from quill.limits import Limits
from quill.llm.backend import ModelInfo, Tokenizer
from quill.llm.columns import fill_batch, wants_special_text, whole_text
from quill.llm.options import renders_messages
from quill.llm.prompt import conversation_text, split
from quill.llm.template import check_messages
from quill.llm.usage import text_bytes
from quill.llm.validate import check_ids, check_text_bytes, check_token_count
from quill.proto import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from quill.wire.large import offload

_INLINE_IDS = 16 * 1024
_LEAST_TOKEN_BYTES = 8
"""Of a token in a reply, at the least: its tags and lengths, id and position."""


async def tokenize(request: TokenizeRequest, model: ModelInfo, limits: Limits) -> TokenizeResponse:
    """The tokens of a text, or of a conversation as Generate would render it.

    Raises:
        Unimplemented: The model has no tokenizer.
        InvalidArgument: Both text and messages are given, a message makes no sense, or the engine renders messages.
        ResourceExhausted: The text or the reply is larger than the server takes.
    """
    _tokenizer(model, "Tokenize")
    if request.messages and request.text:
        raise InvalidArgument("text and messages are given: give one of them")
    if request.messages and renders_messages(model):
        raise InvalidArgument(
            f"messages is not supported by model {model.name} here: its engine renders them; give text"
        )
    check_messages(request.messages, model)
    check_text_bytes("messages" if request.messages else "text", text_bytes(request.text, request.messages), limits)
    text = await conversation_text(request) if request.messages else request.text
    special = request.add_special_tokens if request.HasField("add_special_tokens") else None
    columns = await split("text", text, model, most=0, add_special_tokens=special)
    _check_reply(len(columns.data) * _LEAST_TOKEN_BYTES, limits)
    reply = TokenizeResponse(context_length=model.context_length)
    await fill_batch(reply.tokens, columns)
    _check_reply(reply.ByteSize(), limits)
    return reply


async def detokenize(request: DetokenizeRequest, model: ModelInfo, limits: Limits) -> DetokenizeResponse:
    """The text of ids. What is no UTF-8 in their bytes appears as U+FFFD.

    Raises:
        Unimplemented: The model has no tokenizer.
        InvalidArgument: An id is not in the vocabulary.
        ResourceExhausted: There are more ids, or is more text, than the server takes.
    """
    tokenizer = _tokenizer(model, "Detokenize")
    check_token_count("token_ids", len(request.token_ids), limits)
    ids = await offload(len(request.token_ids), _INLINE_IDS, list, request.token_ids)
    await offload(len(ids), _INLINE_IDS, check_ids, "token_ids", ids, model)
    columns = await tokenizer.decode(ids)
    reply = DetokenizeResponse(text=await whole_text(columns, special_text=wants_special_text(request)))
    _check_reply(reply.ByteSize(), limits)
    return reply


def _tokenizer(model: ModelInfo, method: str) -> Tokenizer:
    if model.tokenizer is None:
        raise Unimplemented(f"inference.v1.LLMService/{method} is not offered by model {model.name}")
    return model.tokenizer


def _check_reply(size: int, limits: Limits) -> None:
    if size > limits.max_reply_bytes:
        raise ResourceExhausted(
            f"the reply has {size} bytes or more and max_reply_bytes is {limits.max_reply_bytes}; send less at once"
        )
