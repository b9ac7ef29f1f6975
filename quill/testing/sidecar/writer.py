"""What the network writes: the text of the embedded model, in tokens that are whole characters."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

from quill import adapters
from quill.llm.backend import Tokens
from quill.proto import GenerateRequest

_CONTEXT_TOKENS = 64
_CONTEXT_CHARACTERS = 2048
_SEGMENT_TOKENS = 512


class Writer:
    """The embedded model. The same prompt has the same text, from each peer another one; it never ends by itself."""

    def __init__(self) -> None:
        self._backend = adapters.load("ngram")
        self._model = self._backend.models()[0]
        self.model = self._model.name
        self.origin = self._model.weights_origin
        """What the model is, for people."""

    async def tokens(self, prompt: str, *, peer: int = 0) -> AsyncGenerator[str, None]:
        """The text that follows a prompt, without end, in pieces that are never empty.

        Args:
            prompt: A text that has UTF-8.
            peer: Who writes it.
        """
        digest = hashlib.blake2b(f"{peer} {prompt}".encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "little")
        tokenizer = self._model.tokenizer
        assert tokenizer is not None  # noqa: S101 - the embedded model has one
        ids = list((await tokenizer.encode(prompt[-_CONTEXT_CHARACTERS:])).ids or ())
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            ids = ids[-_CONTEXT_TOKENS:]
            request = GenerateRequest(
                prompt_token_ids=ids, max_tokens=_SEGMENT_TOKENS, seed=seed, temperature=0.7, ignore_eos=True
            )
            async with aclosing(self._backend.generate(request, model=self._model)) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Tokens):
                        ids.extend(event.ids or ())
                        if text := decoder.decode(b"".join(event.data)):
                            yield text
            seed += 1

    async def aclose(self) -> None:
        """Release the model."""
        await self._backend.aclose()
