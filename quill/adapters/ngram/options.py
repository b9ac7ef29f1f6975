"""What of a request the model uses."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from quill.adapters.ngram.sampling import Sampling
from quill.adapters.ngram.tokenizer import EOS_ID
from quill.errors import InvalidArgument

if TYPE_CHECKING:
    from quill.llm.backend import ModelInfo
    from quill.proto import GenerateRequest

HONOURED = frozenset(
    {
        "max_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "logit_bias",
        "seed",
        "stop_token_ids",
        "include_stop",
        "ignore_eos",
        "logprobs",
        "prompt_logprobs",
        "skip_special_tokens",
        "response_format.choice",
    }
)
"""The fields of GenerateRequest that have an effect here, by their names in the contract."""

DEFAULT_TEMPERATURE = 0.7
_MAX_CHOICES = 1000  # a step looks at all choices, and steps may not hold up the event loop
_MAX_CHOICE_BYTES = 64 * 1024
_RANDOM_SEED_BITS = 53  # so that the seed of a run is a whole number in JavaScript, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one sequence is written."""

    sampling: Sampling
    seed: int
    """The request's, or a random one of 53 bits."""
    max_tokens: int
    """The request's or the model's, or what the context has room for if that is less."""
    min_tokens: int = 0
    """Before this many tokens, the end of sequence and the stop tokens may not come."""
    ignore_eos: bool = False
    """The end of sequence may not come at all, unless it is one of the stop tokens."""
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    """Whether the stop token is told before the end."""
    candidates: int | None = None
    """How many candidates to tell beside each token's own log probability; None tells neither."""
    choices: tuple[str, ...] = ()
    """The texts of which the output must be one; none where it is free."""

    @classmethod
    def from_request(cls, request: GenerateRequest, model: ModelInfo, *, prompt_tokens: int) -> Self:
        """What a request asks for, with the model's defaults where it says nothing.

        Raises:
            InvalidArgument: There are too many choices.
        """
        choices = tuple(request.response_format.choice.values)
        if len(choices) > _MAX_CHOICES:
            raise InvalidArgument(f"response_format.choice: at most {_MAX_CHOICES} choices, got {len(choices)}")
        size = sum(len(choice.encode()) for choice in choices)
        if size > _MAX_CHOICE_BYTES:
            raise InvalidArgument(f"response_format.choice: at most {_MAX_CHOICE_BYTES} bytes together, got {size}")
        max_tokens = request.max_tokens if request.HasField("max_tokens") else model.default_max_tokens
        return cls(
            sampling=Sampling(
                temperature=request.temperature if request.HasField("temperature") else DEFAULT_TEMPERATURE,
                top_k=request.top_k,
                top_p=request.top_p if request.HasField("top_p") else 1.0,
                min_p=request.min_p,
                logit_bias=dict(request.logit_bias),
            ),
            seed=request.seed if request.HasField("seed") else secrets.randbits(_RANDOM_SEED_BITS),
            max_tokens=min(max_tokens, model.context_length - prompt_tokens),
            min_tokens=request.min_tokens,
            ignore_eos=request.ignore_eos,
            stop_token_ids=frozenset(request.stop_token_ids),
            include_stop=request.include_stop,
            candidates=request.logprobs if request.HasField("logprobs") else None,
            choices=choices,
        )

    def forbidden(self, written: int) -> frozenset[int]:
        """The ids that may not come after so many tokens."""
        if written < self.min_tokens:
            return self.stop_token_ids | {EOS_ID}
        return frozenset({EOS_ID}) - self.stop_token_ids if self.ignore_eos else frozenset()
