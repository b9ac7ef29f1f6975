"""gRPC-Web, as a client speaks it: requests and replies as bytes, without a socket and without a clock.

Written from https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md. Messages are enveloped as in Connect's
streams; the trailers are a last envelope of header lines, or headers where there is no body. Unary calls look the same.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable
from typing import cast

from quill.client import connect_reply, faults
from quill.client.connect import Encoding, attempt_headers
from quill.client.connect_error import from_http_status
from quill.client.transport import Call
from quill.errors import Code, ErrorDetail, Internal, InvalidArgument, Metadata, RpcError
from quill.wire.buffer import Buffer
from quill.wire.metadata import decode_binary, to_http
from quill.wire.pushback import PUSHBACK_KEY
from quill.wire.status import status_from_details_bin

_CONTENT_TYPES = frozenset({"application/grpc-web", "application/grpc-web+proto"})
_ACCEPTED = "gzip, zstd"
_STATUS, _MESSAGE, _DETAILS = "grpc-status", "grpc-message", "grpc-status-details-bin"
_MAX_TIMEOUT_DIGITS = 8


def request_headers(call: Call, *, encoding: Encoding, user_agent: str) -> list[tuple[str, str]]:
    """The headers of a request."""
    headers = [
        ("user-agent", user_agent),
        ("x-user-agent", user_agent),
        ("x-grpc-web", "1"),
        ("content-type", "application/grpc-web+proto"),
        ("grpc-accept-encoding", _ACCEPTED),
        ("accept-encoding", "identity"),
    ]
    if encoding != "identity":
        headers.append(("grpc-encoding", encoding))
    if call.remaining_ms is not None:
        headers.append(("grpc-timeout", _timeout(call.remaining_ms)))
    return headers + attempt_headers(call) + to_http(call.metadata)


class StreamReply(connect_reply.StreamReply):
    """The reply to a call: envelopes, of which the last has the trailers."""

    end_flag = 0x80

    def _check_content_type(self) -> None:
        if self._is_refusal:
            raise self._refusal()
        got = self._content_type()
        if got not in _CONTENT_TYPES:
            raise self._error(
                RpcError.of(Code.UNKNOWN, f"the answer has content type {got[:64]!r}, expected application/grpc-web")
            )

    def _refusal(self) -> RpcError:
        """What an answer that is no success means: some servers put the status of the call beside it."""
        if self._header(_STATUS):
            return self._error(_status(self.headers) or from_http_status(self._status))
        return self._error(from_http_status(self._status))

    def _find_encoding(self) -> Encoding:
        got = self._header("grpc-encoding") or "identity"
        if got not in {"identity", "gzip", "zstd"}:
            raise self._error(Internal(f"the answer is encoded with {got[:32]!r}, accepted are {_ACCEPTED}"))
        return cast("Encoding", got)

    def _take_ending(self, data: bytes) -> None:
        lines = data.decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in lines if line]
        if not all(colon for _, colon, _ in pairs):
            raise self._error(Internal("the trailers are no header lines"))
        self._trailing = [(name.strip().lower(), value.strip()) for name, _, value in pairs]

    _trailing: list[tuple[str, str]] | None = None

    def _pushback(self) -> str | None:
        return dict(self._trailing or ()).get(PUSHBACK_KEY) or super()._pushback()

    @property
    def ended(self) -> bool:
        """Whether the server has said how the call ended."""
        return self._trailing is not None

    def finish(self) -> None:
        """Tell how the call ended, once ``ended`` or the body is complete. Returns where it ended with OK.

        Raises:
            RpcError: The status that the call ended with, or INTERNAL where the body ended without one.
        """
        trailing = self._trailing
        if trailing is None:  # the status of a call without messages may stand in the headers
            trailing = self.headers if self._header(_STATUS) and not self._received_any else []
        if not any(name == _STATUS for name, _ in trailing):
            raise faults.cut_off(self._error(Internal("the answer ended without a status")))
        self._response.trailers = _metadata(trailing)
        error = _status(trailing)
        if error is not None:
            raise self._error(error)


class UnaryReply(StreamReply):
    """The reply to a unary call: one message, and the trailers."""

    def __init__(self, call: Call, max_message_bytes: int) -> None:
        super().__init__(call, max_message_bytes)
        self._messages: list[bytes] = []

    def feed(self, chunk: Buffer) -> None:
        """Take a piece of the body.

        Raises:
            RpcError: A message is damaged or too large, or there is more than one.
        """
        super().feed(chunk)
        while (message := self.next_message()) is not None:
            if self._messages:
                raise self._error(RpcError.of(Code.UNIMPLEMENTED, "the reply to a unary call has several messages"))
            self._messages.append(message)

    def message(self) -> bytes:
        """The message, once the body is complete.

        Raises:
            RpcError: The call ended with an error, or without a message.
        """
        self.finish()
        if not self._messages:
            raise self._error(RpcError.of(Code.UNIMPLEMENTED, "the reply to a unary call has no message"))
        return self._messages[0]


def _timeout(timeout_ms: int) -> str:
    """A timeout as gRPC writes it: at most eight digits and a unit, never shorter than it is."""
    if len(str(timeout_ms)) <= _MAX_TIMEOUT_DIGITS:
        return f"{timeout_ms}m"
    return f"{-(-timeout_ms // 1000)}S"


def _status(trailing: Iterable[tuple[str, str]]) -> RpcError | None:
    """The error that trailers tell; None for OK."""
    found = dict(trailing)
    number = found.get(_STATUS, "")
    code = Code.from_grpc(int(number)) if number.isascii() and number.isdigit() and len(number) < 4 else Code.UNKNOWN  # noqa: PLR2004 - no code has more digits
    if code is Code.OK:
        return None
    message = urllib.parse.unquote(found.get(_MESSAGE, ""), errors="replace")
    return RpcError.of(code, message, details=_details(found.get(_DETAILS)))


def _details(text: str | None) -> tuple[ErrorDetail, ...]:
    """The details of a rich error; damaged ones are left out, the status itself is known."""
    if text is None:
        return ()
    try:
        return status_from_details_bin(decode_binary(text))[2]
    except InvalidArgument:
        return ()


def _metadata(trailing: Iterable[tuple[str, str]]) -> Metadata:
    return connect_reply.metadata_of((name, value) for name, value in trailing if name != _DETAILS)
