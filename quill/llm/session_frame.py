"""One frame of a session while it is filled: tokens of any number of generations, and their events."""

from __future__ import annotations

from quill.errors import RpcError
from quill.llm.block import Block
from quill.proto import ErrorDetail, SessionError, SessionEvent, SessionResponse, StreamGenerateResponse
from quill.wire.columns import Columns

MAX_TOKENS = 1000
_TYPE_URL = "type.googleapis.com/"
_MAX_EVENT_BYTES = 256 * 1024


class Frame:
    """What goes out next.

    Order within a frame is starts, tokens, ends: a generation that has another event than Started in it takes no
    further part.
    """

    __slots__ = ("_closed_runs", "_columns", "_event_bytes", "_response", "room")

    def __init__(self) -> None:
        self.room = MAX_TOKENS
        """How many tokens it may still take; at 0 nothing more should be put into it."""
        self._columns: Columns | None = None
        self._response = SessionResponse()
        """What goes out; the tokens come into it last."""
        self._event_bytes = 0
        self._closed_runs: set[int] = set()

    def add_rows(self, run: int, block: Block, position: int, limit: int) -> int:
        """Add rows of a block.

        Args:
            run: The session's number of the generation.
            block: Where they are.
            position: The number of the first.
            limit: How many at most.

        Returns:
            How many were added; 0 where they have to wait for another frame.
        """
        if run in self._closed_runs:
            return 0
        ids, logprobs, columns = block.ids, block.logprobs, self._columns
        if columns is None:
            columns = self._columns = Columns(has_ids=ids is not None, has_logprobs=logprobs is not None)
        elif columns.has_ids is (ids is None) or columns.has_logprobs is (logprobs is None):
            return 0
        row = position - block.first
        count = min(len(block.data) - row, limit, self.room)
        columns.heads += (run, position, count, block.sequence_id)
        self.room -= count
        if ids is not None:
            columns.ids += ids[row : row + count]
        if logprobs is not None:
            columns.logprobs += logprobs[row : row + count]
        columns.data += block.data[row : row + count]
        return count

    def add_token(self, head: tuple[int, int, int, int], data: bytes, id_: int | None, logprob: float | None) -> bool:
        """Add a token for which there is room, headed as in ``Columns.heads``. Whether it was added.

        Not by ``add_rows``, which takes twice as long.
        """
        if head[0] in self._closed_runs:
            return False
        columns = self._columns
        if columns is None:
            columns = self._columns = Columns(has_ids=id_ is not None, has_logprobs=logprob is not None)
        elif columns.has_ids is (id_ is None) or columns.has_logprobs is (logprob is None):
            return False
        columns.heads += head
        if id_ is not None:
            columns.ids.append(id_)
        if logprob is not None:
            columns.logprobs.append(logprob)
        columns.data.append(data)
        self.room -= 1
        return True

    def add_message(self, run: int, message: StreamGenerateResponse) -> bool:
        """Add an event as a stream of its own would have carried it. Returns False where it has to wait."""
        if message.HasField("started"):
            if run in self._closed_runs:
                return False
        else:
            self._closed_runs.add(run)
        self._count(self._response.events.add(run=run, response=message))
        return True

    def add_error(self, run: int, error: RpcError) -> None:
        """Add the end of a generation that did not come to its own."""
        details = [ErrorDetail(type_url=_TYPE_URL + detail.type_name, value=detail.value) for detail in error.details]
        told = SessionError(code=error.code.grpc_number, message=error.message, details=details)
        self._count(self._response.events.add(run=run, error=told))

    def response(self) -> SessionResponse | None:
        """The message; None where there is nothing in it."""
        if self._columns is not None:
            self._response.tokens.MergeFromString(self._columns.encode())
        elif not self._event_bytes:
            return None
        return self._response

    def _count(self, event: SessionEvent) -> None:
        self._event_bytes += event.ByteSize()
        if self._event_bytes >= _MAX_EVENT_BYTES:
            self.room = 0
