"""The seam between LLMService and an engine: what a backend is asked, and what it may answer.

A backend is small. The layer above it validates requests, resolves the model, assembles UTF-8, matches stop
strings, counts usage, bounds the output and keeps the journal; a backend turns a valid request into events. What a
model has besides, a tokenizer or an embedder, it offers in its ModelInfo.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from quill.generation import Finish, ToolCall, Usage
from quill.proto import GenerateRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quill.proto import Pooling


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a backend says of one of its models."""

    name: str
    aliases: tuple[str, ...] = ()
    context_length: int = 0
    """Tokens of prompt and output together; 0 where unknown."""
    vocab_size: int = 0
    eos_token_ids: tuple[int, ...] = ()
    options: frozenset[str] = frozenset()
    """The fields of GenerateRequest that the backend honours itself, by their names in the contract. A constraint
    of response_format is named with it: ``response_format.choice``; an engine's own option as ``extra.mirostat``,
    or ``extra`` for whatever comes. What is not here is supplied by the layer above where it can (stop,
    include_stop, max_tokens, n; messages by ``quill.llm.template``; add_special_tokens, truncate_prompt_tokens and
    echo with the tokenizer) and refused by name where it cannot. With max_tokens here, the backend ends a
    sequence there itself and tells why; without, the layer above ends it at the last token. Stop strings are
    matched above in any case; with stop here, they are passed on as well."""
    text_prompt: bool = True
    """Whether ``generate`` and the embedder take text."""
    token_prompt: bool = False
    """Whether they take token ids. Where a model takes only these and has a tokenizer, the layer above splits text."""
    tokenizer: Tokenizer | None = None
    """What splits text into the model's tokens; None where the engine lets nobody see."""
    embedder: Embedder | None = None
    """What turns inputs into vectors; None where the model does not."""
    default_max_tokens: int = 256
    """How many tokens are generated where the request says nothing."""
    default_sampling: Mapping[str, float] = field(default_factory=dict)
    """What the backend uses where a request says nothing, by option name."""
    ready: bool = True
    """Whether it can answer now; requests are refused with UNAVAILABLE while it cannot."""
    unready_reason: str = ""
    """Why it cannot, for people."""
    weights_origin: str = ""
    """Where the weights come from and what they are, for people."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have stood at a position."""

    id: int | None
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Consecutive tokens of one sequence, as columns of equal length."""

    data: Sequence[bytes]
    """The raw bytes of each token; a character may be split over two."""
    ids: Sequence[int] | None = None
    """The ids; None where the engine does not tell them."""
    logprobs: Sequence[float | None] | None = None
    """Natural logarithms of the probability under the model's own distribution: after logit_bias and constraints,
    before temperature and truncation. None for a token that has none."""
    top_logprobs: Sequence[Sequence[Candidate]] | None = None
    """The most probable candidates of each position, most probable first; empty for a token that has none."""
    special: Sequence[bool] | None = None
    """Whether each is a control token that stands for no text; None where none is."""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The tokens of the prompt with their log probabilities, where the request has prompt_logprobs. Told once.

    Told before everything but Seeded, UsageReport and Progress: the caller is told of the start of its generation
    with it. The first token has no log probability and no candidates. Those of the others are the model's own, given
    the tokens before: logit_bias and constraints, which steer the output, have no part in them.
    """

    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model reasoned before its answer."""

    text: str
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of a tool call."""

    call: ToolCall
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A sequence ended, by the engine's own account."""

    finish: Finish
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The engine's own counts; the last one told is the one that counts.

    Told at the end, and before the first token as well where the prompt's count is known by then: a generation that
    is ended at a stop string never comes to its end.
    """

    usage: Usage


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the engine is with the prompt. Told on to the caller once its generation has started."""

    processed: int
    total: int
    queue_position: int = 0


@dataclass(frozen=True, slots=True)
class Seeded:
    """The seed that the engine uses. Told first of all, or not at all.

    Where the model lists ``seed`` and the request has none, the caller is told of the start of its generation with
    the first event, so that the seed can be told with it: the engine's queue comes after.
    """

    seed: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the caller should know of the generation: it is told in the trailing metadata of the call.

    The same note of several starts is told once.
    """

    key: str
    """In lower case, as metadata has it: ``quill-warning``."""
    value: str
    """Printable ASCII."""


BackendEvent = Tokens | PromptTokens | Reasoning | ToolCallDelta | Finished | UsageReport | Progress | Seeded | Note
"""Everything that a backend may tell of a generation."""


class Tokenizer(Protocol):
    """The tokens of one model. Its methods keep their work off the event loop where it takes more than 1 ms."""

    @property
    def longest_token_bytes(self) -> int:
        """How many bytes of UTF-8 a token stands for at most; 0 where that is unknown.

        A text that cannot fit for its length alone is refused before it is split.
        """
        ...

    async def encode(self, text: str, *, add_special_tokens: bool | None = None) -> Tokens:
        """The tokens of a text: ids, data, and which are special. No text gives a control token.

        Args:
            text: Any text, which has UTF-8.
            add_special_tokens: Whether the tokens that begin a prompt come first; None for the model's habit.
        """
        ...

    async def decode(self, ids: Sequence[int]) -> Tokens:
        """The same for ids, all of the vocabulary. The data of a control token is the text that people know it by."""
        ...


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vectors of one input."""

    values: NDArray[np.floating[Any]]
    """Floating point, [dimensions]; or [tokens, dimensions] of an embedder that has a row for each token."""


class Embedder(Protocol):
    """Vectors of inputs. What is asked beyond the attributes here is refused by name, above.

    The layer above pools, cuts, scales and converts the vectors, in this order, and computes in float64.
    """

    @property
    def dimensions(self) -> int:
        """The elements of a vector."""
        ...

    @property
    def per_token(self) -> bool:
        """Whether it gives one row for each token, which the layer above pools in any way; else it pools itself."""
        ...

    @property
    def pooling(self) -> Pooling.ValueType:
        """How vectors become one where a request does not say; POOLING_UNSPECIFIED where the engine does not tell."""
        ...

    @property
    def normalized(self) -> bool:
        """Whether the vectors come scaled to length 1."""
        ...

    @property
    def shortens(self) -> bool:
        """Whether leading dimensions are of use alone."""
        ...

    def embed(self, inputs: Sequence[str | Sequence[int]]) -> AsyncIterator[Embedding | UsageReport]:
        """One Embedding per input, in order; UsageReports add up.

        Closing the iterator is the abort. It keeps work of more than 1 ms off the event loop.

        Args:
            inputs: Texts where the model takes text, token ids where it takes these; none empty.
        """
        ...


class Backend(Protocol):
    """An engine behind LLMService.

    ``generate`` receives a request whose values are valid, token ids included, and whose model, request_id and
    max_tokens are filled in, and that asks for nothing else outside the model's ``options``. Its input is one that
    the model takes; token ids leave room in the context. Without ``n`` among the options it is called once for each
    sequence, one after the other, with the seed one higher each time, and tells of sequence 0; only the first start
    has prompt_logprobs.

    Closing its iterator is the abort, and returns when the engine has been told; the abort may also come as a
    CancelledError where the iterator waits. It is bounded (Timeouts.backend_close_timeout_s). Raising an RpcError
    ends the run with its status; any other exception ends it INTERNAL with a reference into the log. An iterator
    that ends without Finished ended by itself: the reason is STOP, or LENGTH at max_tokens.
    """

    name: str
    """The kind of engine, as in ``quill serve --backend``."""

    def models(self) -> Sequence[ModelInfo]:
        """The models on offer. Cheap: called for every request."""
        ...

    def generate(self, request: GenerateRequest, *, model: ModelInfo) -> AsyncIterator[BackendEvent]:
        """Start a generation; nothing runs before the first ``anext``."""
        ...

    async def aclose(self) -> None:
        """Release what the backend holds."""
        ...
