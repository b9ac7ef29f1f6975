"""What a generation gives: its pieces as they come, the whole at the end, or what arrived before it broke."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from quill.errors import Code, ErrorDetail, Metadata, RpcError
from quill.token import Token
from quill.token.token import tokens_of_columns


class FinishReason(Enum):
    """Why a sequence ended. The values are the numbers of inference.v1.FinishReason."""

    UNSPECIFIED = 0
    STOP = 1
    LENGTH = 2
    TOOL_CALLS = 3
    CONTENT_FILTER = 4
    CANCELLED = 5
    OTHER = 6


@dataclass(frozen=True, slots=True)
class Finish:
    """How a sequence ended: the reason, and the stop string or token that matched, if one did."""

    reason: FinishReason
    stop_text: str | None = None
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a run; ``estimated`` where the engine tells none."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds from the arrival of the request at the server."""

    queue_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for; in a stream, pieces with one index belong together."""

    index: int = 0
    id: str = ""
    name: str = ""
    arguments: str = ""


Columns: TypeAlias = tuple[int, bytes, Sequence[int] | None, Sequence[float] | None, Iterable[bytes]]
"""The arguments of ``quill.token.token.tokens_of_columns``."""
RowOfColumns: TypeAlias = tuple[int, bytes, int | None, float | None, bytes]
"""The same of one token, with its values in the place of columns."""


def _tokens(columns: Columns | RowOfColumns) -> tuple[Token, ...]:
    ids: Any
    logprobs: Any
    place, incomplete, ids, logprobs, data = columns
    if isinstance(data, bytes):
        ids, logprobs, data = None if ids is None else (ids,), None if logprobs is None else (logprobs,), (data,)
    return tokens_of_columns(place, incomplete, ids, logprobs, data)


class _MakesTokens:
    """Has ``tokens`` that may be made of columns when they are first asked for: most readers want the text alone."""

    __slots__ = ("_columns",)

    _columns: Columns | RowOfColumns

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Python asks for what a slot does not have.
            if name != "tokens":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            tokens = _tokens(self._columns)
            object.__setattr__(self, "tokens", tokens)
            return tokens


class _DeltaSlots(_MakesTokens):
    """The layout of a Delta."""

    __slots__ = ("reasoning", "sequence_id", "text", "tokens", "tool_calls")


class _DeltaDraft(_DeltaSlots):
    """A Delta that can be filled in; then it is called one.

    Filling in a frozen one takes four times as long; an ``__init__``, a third longer.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Delta(_DeltaSlots):
    """A piece of a streamed generation: tokens of one sequence and the text that they add."""

    text: str
    tokens: tuple[Token, ...] = ()
    sequence_id: int = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @staticmethod
    def of_columns(text: str, sequence_id: int, columns: Columns | RowOfColumns) -> Delta:
        """A piece whose tokens are made when they are asked for."""
        delta: Any = _DeltaDraft()
        delta.text = text
        delta.sequence_id = sequence_id
        delta.reasoning = ""
        delta.tool_calls = ()
        delta._columns = columns  # noqa: SLF001  # its own
        delta.__class__ = Delta
        made: Delta = delta
        return made


@dataclass(frozen=True, slots=True)
class Choice(_MakesTokens):
    """One generated sequence. The texts of its tokens joined are its text."""

    sequence_id: int
    text: str
    tokens: tuple[Token, ...]
    finish: Finish
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @classmethod
    def of_columns(cls, columns: Columns, **fields: Any) -> Choice:
        """A sequence whose tokens are made when they are asked for.

        Args:
            columns: Of what they are made.
            fields: The other fields.
        """
        choice = cls(tokens=(), **fields)
        object.__delattr__(choice, "tokens")
        object.__setattr__(choice, "_columns", columns)
        return choice


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation."""

    request_id: str
    model: str
    choices: tuple[Choice, ...]
    """The sequences, by their ids."""
    usage: Usage
    timings: Timings
    seed: int | None = None
    """The seed that was used, where the engine tells it."""
    prompt_tokens: tuple[Token, ...] = ()
    """The tokens of the prompt, where ``prompt_logprobs`` or ``echo`` asked for them: with their log probabilities
    (the first has none) for ``prompt_logprobs``, without for ``echo`` alone."""

    @property
    def text(self) -> str:
        """The text of sequence 0."""
        return self.choices[0].text

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of sequence 0."""
        return self.choices[0].tokens

    @property
    def finish_reason(self) -> FinishReason:
        """Why sequence 0 ended."""
        return self.choices[0].finish.reason


class StreamInterrupted(RpcError):
    """A streamed generation ended before it was complete. What did arrive is kept.

    ``code`` is the status that ended the stream; the RpcError that ended it, where there was one, is ``__cause__``.
    """

    def __init__(
        self,
        message: str,
        *,
        code: Code,
        text: str = "",
        tokens: Sequence[Token] = (),
        usage: Usage | None = None,
        position: int = 0,
        details: Sequence[ErrorDetail] = (),
        metadata: Metadata = (),
        trailers: Metadata = (),
    ) -> None:
        super().__init__(message, details=details, metadata=metadata, trailers=trailers)
        self.code = code
        self.text = text
        """The text of sequence 0 that arrived."""
        self.tokens = tuple(tokens)
        """The tokens of sequence 0 that arrived."""
        self.usage = usage
        """The counts known so far; None where nothing told them."""
        self.position = position
        """The number of the first journal entry that did not arrive."""

    def __reduce__(self) -> tuple[Any, ...]:
        # What exceptions do by themselves leaves out the keyword that __init__ insists on.
        return partial(type(self), code=self.code), (self.message,), self.__dict__
