"""The embedded model behind the Backend seam: no engine beside the process, no download, the same everywhere."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from quill.adapters.ngram.embedder import HashedFeatures
from quill.adapters.ngram.model import ORDER, NgramModel
from quill.adapters.ngram.options import DEFAULT_TEMPERATURE, HONOURED, Options
from quill.adapters.ngram.sequence import read, write
from quill.adapters.ngram.tokenizer import EOS_ID
from quill.adapters.ngram.vocabulary import Vocabulary
from quill.errors import InvalidType, InvalidUsage
from quill.generation import Usage
from quill.llm.backend import BackendEvent, ModelInfo, PromptTokens, Seeded, Tokens, UsageReport

if TYPE_CHECKING:
    from quill.proto import GenerateRequest

CONTEXT_LENGTH = 2048


class NgramBackend:
    """Serves the n-gram model ``ngram-alice``. Construction reads it, which takes some 10 ms; nothing waits later.

    Args:
        token_delay_ms: How long to wait before each token, at least 0. To watch a stream, or to pace a test.

    Raises:
        InvalidUsage: ``token_delay_ms`` is negative or not finite.
        InvalidType: It is no number.
    """

    name = "ngram"

    def __init__(self, *, token_delay_ms: float = 0) -> None:
        try:
            usable = math.isfinite(token_delay_ms) and token_delay_ms >= 0
        except TypeError:
            raise InvalidType(f"token_delay_ms must be a number, got {type(token_delay_ms).__name__}") from None
        if not usable:
            raise InvalidUsage(f"token_delay_ms must be finite and at least 0, got {token_delay_ms}")
        self._token_delay_s = token_delay_ms / 1000
        self.model = NgramModel.load()
        """The model itself, for tokens and probabilities without a request."""
        vocab_size = self.model.tokenizer.vocab_size
        self._info = ModelInfo(
            name="ngram-alice",
            aliases=("ngram",),
            context_length=CONTEXT_LENGTH,
            vocab_size=vocab_size,
            eos_token_ids=(EOS_ID,),
            options=HONOURED,
            text_prompt=False,
            token_prompt=True,
            tokenizer=Vocabulary(self.model.tokenizer),
            embedder=HashedFeatures(self.model.tokenizer),
            default_max_tokens=64,
            default_sampling={"temperature": DEFAULT_TEMPERATURE, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
            weights_origin=(
                "n-gram over Alice's Adventures in Wonderland by Lewis Carroll (1865, public domain), not an LLM: "
                f"counts of up to {ORDER} of {vocab_size:,} subword tokens; its embeddings are hashed features of "
                "tokens, in which nothing is learnt"
            ),
        )

    def models(self) -> Sequence[ModelInfo]:
        """The one model."""
        return (self._info,)

    async def generate(self, request: GenerateRequest, *, model: ModelInfo) -> AsyncIterator[BackendEvent]:
        """Seeded, a UsageReport of the prompt, one Tokens per token, Finished, and the whole UsageReport.

        With prompt_logprobs, PromptTokens come before the first Tokens. How tokens are drawn is told in
        ``quill.adapters.ngram.sampling``, and what ends a sequence and what log probabilities mean in
        ``quill.adapters.ngram.sequence``. The same request with the same seed gives the same tokens.
        ``completion_tokens`` counts the tokens told: an end of sequence that is no stop token is none of them. Where
        prompt and output together fill the context, the sequence ends with LENGTH.

        Raises:
            InvalidArgument: There are too many choices.
        """
        prompt = list(request.prompt_token_ids)
        options = Options.from_request(request, model, prompt_tokens=len(prompt))
        yield Seeded(options.seed)
        yield UsageReport(Usage(prompt_tokens=len(prompt)))
        if request.HasField("prompt_logprobs"):
            yield PromptTokens(await asyncio.to_thread(read, self.model, prompt, request.prompt_logprobs))
        completion_tokens = 0
        for event in write(self.model, prompt, options):
            if isinstance(event, Tokens):
                await asyncio.sleep(self._token_delay_s)  # lets other tasks and a cancellation in, also with 0
                completion_tokens += 1
            yield event
        yield UsageReport(Usage(prompt_tokens=len(prompt), completion_tokens=completion_tokens))

    async def aclose(self) -> None:
        """Nothing is held."""
