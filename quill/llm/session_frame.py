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

    __slots__ = ("_closed_runs", "_columns", "_event_bytes", "_events", "room")

    def __init__(self) -> None:
        self.room = MAX_TOKENS
        """How many tokens it may still take; at 0 nothing more should be put into it."""
        self._columns: Columns | None = None
        self._events: list[SessionEvent] = []
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

    def add_newest(self, run: int, block: Block, position: int) -> bool:
        """Add the last row of a block, for which there is room; as ``add_rows``, for half. Whether it was added."""
        columns, ids, logprobs = self._columns, block.ids, block.logprobs
        if columns is None:
            return self.add_rows(run, block, position, 1) > 0
        if columns.has_ids is (ids is None) or columns.has_logprobs is (logprobs is None) or run in self._closed_runs:
            return False
        columns.heads += (run, position, 1, block.sequence_id)
        if ids is not None:
            columns.ids.append(ids[-1])
        if logprobs is not None:
            columns.logprobs.append(logprobs[-1])
        columns.data.append(block.data[-1])
        self.room -= 1
        return True

    def add_message(self, run: int, message: StreamGenerateResponse) -> bool:
        """Add an event as a stream of its own would have carried it. Returns False where it has to wait."""
        if message.HasField("started"):
            if run in self._closed_runs:
                return False
        else:
            self._closed_runs.add(run)
        self._add(SessionEvent(run=run, response=message))
        return True

    def add_error(self, run: int, error: RpcError) -> None:
        """Add the end of a generation that did not come to its own."""
        details = [ErrorDetail(type_url=_TYPE_URL + detail.type_name, value=detail.value) for detail in error.details]
        told = SessionError(code=error.code.grpc_number, message=error.message, details=details)
        self._add(SessionEvent(run=run, error=told))

    def response(self) -> SessionResponse | None:
        """The message; None where there is nothing in it."""
        if self._columns is None and not self._events:
            return None
        response = SessionResponse(events=self._events)
        if self._columns is not None:
            response.tokens.MergeFromString(self._columns.encode())
        return response

    def _add(self, event: SessionEvent) -> None:
        self._events.append(event)
        self._event_bytes += event.ByteSize()
        if self._event_bytes >= _MAX_EVENT_BYTES:
            self.room = 0
