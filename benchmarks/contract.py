"""What the benchmarks call, and with what: the same messages and the same bytes for every peer."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal

from quill import proto

if TYPE_CHECKING:
    from connectrpc.method import MethodInfo

Work = Literal["bytes", "message", "json", "json_512_tokens"]
"""Bytes; messages; messages as JSON on the wire; a dict in and one with 512 tokens out, transcoded by the client."""

LLM_SERVICE = "inference.v1.LLMService"
RAW_SERVICE = "bench.v1.Raw"
RAW_METHOD = "Unary"
RAW_PATH = f"/{RAW_SERVICE}/{RAW_METHOD}"
"""Takes and gives bytes, which no server parses."""

TIMEOUT_MS = 30_000
"""Every client sets a deadline, as a client in production does; it is the default of Quill's."""

TOKENIZE_REQUEST = proto.TokenizeRequest(
    model="ngram-alice-en", text="Alice was beginning to get very tired of sitting by her sister on the bank"
)
TOKENIZE_DICT = {"model": TOKENIZE_REQUEST.model, "text": TOKENIZE_REQUEST.text}
REQUEST_BYTES = TOKENIZE_REQUEST.SerializeToString()
"""About 90 bytes."""


_random = random.Random(7)  # noqa: S311 - numbers that look like log probabilities


def _token(position: int) -> proto.Token:
    text = f" w{position % 97}"
    logprob = -_random.expovariate(0.7)
    return proto.Token(id=position * 7 % 32000, text=text, logprob=logprob, position=position, data=text.encode())


TOKENIZE_REPLY = proto.TokenizeResponse(
    tokens=proto.TokenBatch(tokens=[_token(position) for position in range(4)]), context_length=4096
)
REPLY_BYTES = TOKENIZE_REPLY.SerializeToString()
"""About 90 bytes, too."""


def tokenize_method() -> MethodInfo[Any, Any]:
    """Tokenize, as connectrpc's generator describes it."""
    from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType

    return MethodInfo(
        name="Tokenize",
        service_name=LLM_SERVICE,
        input=proto.TokenizeRequest,
        output=proto.TokenizeResponse,
        idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS,
        stream_type=StreamType.UNARY,
    )


GENERATE_DICT: dict[str, Any] = {
    "model": "ngram-alice-en",
    "prompt": "Alice was beginning to get very tired",
    "maxTokens": 512,
    "temperature": 0.7,
    "seed": "7",
}

TOKENS = 512


def generate_reply() -> proto.GenerateResponse:
    """A reply with 512 tokens, each with its id, text, log probability, place and bytes."""
    tokens = [_token(position) for position in range(TOKENS)]
    text = "".join(token.text for token in tokens)
    return proto.GenerateResponse(
        request_id="benchmark",
        model="ngram-alice-en",
        text=text,
        choices=[proto.Choice(text=text, tokens=proto.TokenBatch(tokens=tokens))],
        usage=proto.Usage(prompt_tokens=8, completion_tokens=TOKENS),
        seed=7,
    )
