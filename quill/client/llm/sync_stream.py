"""A streamed generation as the user of the blocking client iterates over it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from quill.client.llm.view import GenerationView
from quill.client.transport import LINGER_MS
from quill.errors import RpcError

if TYPE_CHECKING:
    from types import TracebackType

    from quill import proto
    from quill.client.streams import MessageStream
    from quill.generation import Delta, Generation


class GenerationStream(GenerationView):
    """The pieces of a generation as they come. Close it, use it as a context manager, or read it to its end.

    Raises, from ``next``: an RpcError where the server refuses the generation; StreamInterrupted where it ends after
    it began and before it was complete, for whatever reason.
    """

    def __init__(self, messages: MessageStream[proto.StreamGenerateResponse], request_id: str) -> None:
        super().__init__(request_id)
        self._messages = messages
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        while not self._ended:
            delta = self._take()
            if delta is not None:
                return delta
        raise StopIteration

    def result(self) -> Generation:
        """Read to the end, and return the whole generation.

        Raises:
            RpcError: As from ``next``, also where that raised it before; CANCELLED where the stream was closed early.
        """
        for _ in self:
            pass
        if not self._fold.completed:
            raise self._why_incomplete()
        return self._fold.result()

    def close(self) -> None:
        """End the generation if it still runs. May be called again, and from any thread."""
        self._ended = True
        self._messages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> Delta | None:
        """Wait for the next message."""
        try:
            delta = self._fold.add(next(self._messages))
        except StopIteration:
            self.close()
            raise self._fail(None) from None
        except RpcError as error:
            self.close()
            failure = self._fail(error)
            raise failure from (None if failure is error else error)
        except BaseException:
            self.close()
            raise
        if self._fold.completed:
            self._finish()
        return delta

    def _finish(self) -> None:
        """Read the status, which cannot change anything any more."""
        self._messages.idle_timeout_ms = LINGER_MS
        with contextlib.suppress(RpcError, StopIteration):
            next(self._messages)
        self.close()
