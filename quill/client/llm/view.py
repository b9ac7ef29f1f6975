"""What both kinds of generation stream show of what has arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quill.client.llm.fold import Fold
from quill.errors import Cancelled, RpcError

if TYPE_CHECKING:
    from quill.generation import Finish, Timings, Usage
    from quill.token import Token


class GenerationView:
    """What has arrived of a generation; may be read at any time, also after its end.

    Args:
        request_id: The id that the client asked under.
    """

    def __init__(self, request_id: str) -> None:
        self._fold = Fold(request_id)
        self._failure: RpcError | None = None

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

    def _fail(self, error: RpcError | None) -> RpcError:
        """The exception for a stream that ended early, also for everybody who asks later."""
        self._failure = self._fold.interruption(error)
        return self._failure

    def _why_incomplete(self) -> RpcError:
        """The exception for a result that is not there."""
        return self._failure or self._fold.interruption(Cancelled("the stream was closed"))
