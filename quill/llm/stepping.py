"""The seam for an engine that steps many generations at once: it is handed an output for each, and fills them.

Everything else is as for ``generate``: the run validates, matches stop strings, assembles UTF-8, counts, keeps the
journal, and has its deadlines. What differs is who is in charge: no task of a run is woken for its tokens, which alone
would take longer than the rest. docs/engines.md has a whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from quill.llm.backend import Backend, ModelInfo, Tokens
from quill.llm.output import Output
from quill.proto import GenerateRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Submission(Protocol):
    """A generation that an engine has taken on."""

    async def aclose(self) -> None:
        """Give it up if it has not ended: the abort. Returns when the engine has been told; called once.

        It is bounded (Timeouts.backend_close_timeout_s).
        """
        ...


class SteppingBackend(Protocol):
    """An engine that steps many generations at once, behind LLMService. Of ``Backend`` it differs in ``submit`` alone.

    An engine that fails as a whole tells each of its outputs (``Output.fail``); until then a run waits as long as for
    any silent backend (Timeouts.backend_idle_timeout_s).
    """

    name: str
    """The kind of engine, as in ``quill serve --backend``."""

    def models(self) -> Sequence[ModelInfo]:
        """The models on offer. Cheap: called for every request."""
        ...

    def submit(self, request: GenerateRequest, *, model: ModelInfo, output: Output) -> Submission:
        """Take on a generation, whose request is as for ``Backend.generate``, and whose events go into ``output``.

        Returns at once. The engine puts tokens while ``output.wanted`` and not ``output.is_full``, then what it knows
        of the end (Finished, UsageReport), and calls ``output.end()``, or ``output.fail(error)``. Where the output ends
        first, at a stop string, say, or by an abort, the submission is closed. What is raised here is the run's end.
        """
        ...

    async def aclose(self) -> None:
        """Release what the backend holds."""
        ...


AnyBackend = Backend | SteppingBackend
"""What LLMServicer takes."""


def steps(backend: AnyBackend) -> TypeGuard[SteppingBackend]:
    """Whether a backend is handed outputs, in place of being asked for events."""
    return hasattr(backend, "submit")  # a checked protocol would cost ten microseconds a run


def put_tokens(
    outputs: Sequence[Output],
    data: Sequence[bytes],
    ids: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    logprobs: Sequence[float] | NDArray[np.floating[Any]] | None = None,
) -> None:
    """One step of an engine: the next token of sequence 0 of each of many outputs, as columns of equal length.

    The same as ``output.put(Tokens(...))`` for each, at a fraction of the cost.

    Args:
        outputs: Whose tokens they are; those that want nothing more are passed over.
        data: The raw bytes of each token; a character may be split over two.
        ids: The ids; None where the engine does not tell them.
        logprobs: The log probabilities, as in ``Tokens``; None where there are none.

    Raises:
        ValueError: The columns differ in length.
    """
    for name, column in (("data", data), ("ids", ids), ("logprobs", logprobs)):
        if column is not None and len(column) != len(outputs):
            raise ValueError(f"put_tokens got {len(outputs)} outputs, and {name} for {len(column)}")
    now_s = asyncio.get_running_loop().time()
    for output, piece, id_, logprob in zip(outputs, data, _values(ids), _values(logprobs), strict=False):
        if not output.put_token(piece, id_, logprob, now_s):
            output.put(
                Tokens(
                    data=(piece,),
                    ids=None if id_ is None else (id_,),
                    logprobs=None if logprob is None else (logprob,),
                )
            )


def _values(column: Any) -> Iterable[Any]:
    """Python's own numbers, of an array too; without a column, None for everybody."""
    if column is None:
        return repeat(None)
    values: Iterable[Any] = column.tolist() if hasattr(column, "tolist") else column
    return values
