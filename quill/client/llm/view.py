"""What both kinds of generation stream show of what has arrived."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from quill.client.llm.fold import Fold
from quill.client.llm.resumption import Resumption
from quill.errors import Cancelled, RpcError

if TYPE_CHECKING:
    from quill import proto
    from quill.generation import Finish, Timings, Usage
    from quill.token import Token


class GenerationView:
    """What has arrived of a generation; may be read at any time, also after its end.

    Args:
        request: What is asked, with its id.
        timeout_ms: How long the generation may take; None for no bound.
        now: A monotonic clock, in seconds.
    """

    def __init__(self, request: proto.GenerateRequest, timeout_ms: int | None, now: Callable[[], float]) -> None:
        self._fold = Fold(request.request_id)
        self._resumption = Resumption(request, timeout_ms, self._fold, now)
        self._failure: RpcError | None = None
        self._ended = False
        """Whether nothing more is to be read."""

    @property
    def request_id(self) -> str:
        """The id of the run, for ``cancel``."""
        return self._fold.request_id

    @property
    def model(self) -> str:
        """The name of the model that runs; empty until the run has begun."""
        return self._fold.model

    @property
    def seed(self) -> int | None:
        """The seed that is used, where the engine tells it."""
        return self._fold.seed

    @property
    def text(self) -> str:
        """The text of sequence 0 so far."""
        return self._fold.text

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of sequence 0 so far."""
        return self._fold.tokens

    @property
    def prompt_tokens(self) -> tuple[Token, ...]:
        """The tokens of the prompt, as in ``Generation``; none until the run has begun."""
        return self._fold.prompt_tokens

    @property
    def finish(self) -> Finish | None:
        """How sequence 0 ended; None before."""
        return self._fold.finish

    @property
    def usage(self) -> Usage | None:
        """What the run consumed; None before its end."""
        return self._fold.usage

    @property
    def timings(self) -> Timings | None:
        """When things happened; None before its end."""
        return self._fold.timings

    def _raise_failure(self, error: RpcError | None) -> NoReturn:
        """Raise the exception for a stream that ended early, which is also for everybody who asks later."""
        self._failure = self._fold.interruption(error)
        raise self._failure from (None if self._failure is error else error)

    def _why_incomplete(self) -> RpcError:
        """The exception for a result that is not there."""
        return self._failure or self._fold.interruption(Cancelled("the stream was closed"))
