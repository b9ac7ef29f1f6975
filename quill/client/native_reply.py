"""Replies of the Quill framework's protocol, read in two steps, ``head`` and ``feed``; no socket and no clock."""

from __future__ import annotations

from quill.client import connect_reply, faults
from quill.client.connect import Encoding
from quill.client.connect_error import from_json
from quill.client.connect_reply import MAX_WINDOW_BYTES
from quill.client.native import ACCEPTED, CONTENT_TYPE
from quill.client.native_error import PROBLEM, from_problem, from_status
from quill.client.transport import Call
from quill.errors import Cancelled, Internal, InvalidArgument, ResourceExhausted, RpcError
from quill.wire import frames
from quill.wire.buffer import Buffer
from quill.wire.compression import ZstdBody

_CONNECT_ERROR = "application/json"
"""What quill.Server answers with: to a Connect server a unary call is the same request."""
_SUCCESS = range(200, 300)
_MAX_CREDITS_AT_ONCE = 4096
"""How many frames of credit one piece of a body may hold: they end no wait, and cost time."""


class _Reply(connect_reply.Reply):
    """What the replies of unary and streaming calls have in common."""

    @property
    def _is_refusal(self) -> bool:
        return self._status not in _SUCCESS

    def _check_content_type(self) -> None:
        got = self._content_type()
        if self._is_refusal:
            if got not in {PROBLEM, _CONNECT_ERROR}:
                raise self._error(from_status(self._status))
        elif got not in {CONTENT_TYPE, ""}:  # some say nothing of a body that is empty
            raise self._error(Internal(f"the answer has content type {got[:64]!r}, expected {CONTENT_TYPE!r}"))

    def _find_encoding(self) -> Encoding:
        match self._header("content-encoding") or "identity":
            case "identity":
                return "identity"
            case "zstd":
                return "zstd"
            case got:
                raise self._error(Internal(f"the answer is encoded with {got[:32]!r}, accepted is {ACCEPTED}"))

    def _error_body(self) -> RpcError:
        described = self._described()
        fallback = from_status(self._status)
        if described is None:
            return self._error(fallback)
        read = from_problem if self._content_type() == PROBLEM else from_json
        return self._error(read(described, fallback))


class UnaryReply(_Reply, connect_reply.UnaryReply):
    """The reply to a unary call: the whole body is the message."""


class StreamReply(_Reply):
    """The reply to a streaming call: frames, of which the last says that the stream has ended."""

    stream = True

    def __init__(self, call: Call, max_message_bytes: int) -> None:
        super().__init__(call, max_message_bytes)
        self._frames = frames.FrameReader(max_message_bytes)
        self._compressed: ZstdBody | None = None
        self._credits = 0
        self._ending: int | None = None
        """The flags of the frame that ended the stream."""

    @property
    def ended(self) -> bool:
        """Whether the server has said how the call ended."""
        return self._ending is not None

    def _take(self, chunk: Buffer) -> None:
        self._credits = 0
        if self._encoding == "zstd":
            if self._compressed is None:
                self._compressed = ZstdBody(self._max_bytes, MAX_WINDOW_BYTES)
            self._compressed.feed(chunk)
        else:
            self._frames.feed(chunk)

    def next_message(self) -> bytes | None:
        """The next message that is complete; None where there is none, or the call has ended.

        Raises:
            RpcError: What came is damaged or too large.
        """
        if self.ended or self._is_refusal:
            return None
        while True:
            try:
                frame = self._next_frame()
            except InvalidArgument as error:
                raise self._error(Internal(f"the stream is damaged: {error.message}")) from None
            except ResourceExhausted as error:
                raise self._error(ResourceExhausted(f"the reply is too large: {error.message}")) from None
            if frame is None:
                return None
            flags, payload = frame
            if flags != frames.CREDIT:
                break
            self._take_credit()
        if flags & (frames.END_STREAM | frames.CANCEL):
            self._ending = flags
        return payload if flags & frames.DATA else None

    def finish(self) -> None:
        """Tell how the call ended, once ``ended`` or the body is complete. Returns where it ended with OK.

        Raises:
            RpcError: What the server refused the call with; CANCELLED where it gave up; INTERNAL where the body ended
                before the stream.
        """
        if self._is_refusal:
            raise self._error_body()
        if self._ending is None:
            raise faults.cut_off(self._error(Internal("the answer ended before the frame that ends the stream")))
        if self._ending == frames.CANCEL:
            raise self._error(Cancelled("the server cancelled the stream"))

    def _next_frame(self) -> tuple[int, bytes] | None:
        """The next frame that is complete, of a body that may be compressed as a whole."""
        while (frame := self._frames.next_frame()) is None and self._compressed is not None:
            piece = self._compressed.read()
            if not piece:
                return None
            self._frames.feed(piece)
        return frame

    def _take_credit(self) -> None:
        """Pass over a frame of credit: how fast requests go is HTTP's own matter."""
        self._credits += 1
        if self._credits > _MAX_CREDITS_AT_ONCE:
            raise self._error(Internal(f"the stream has more than {_MAX_CREDITS_AT_ONCE} frames of credit at once"))
