"""A unary call in Connect, without envelopes: its body, its deadline, and its reply or error as HTTP carries them.

Source: https://connectrpc.com/docs/protocol#unary-request. connectrpc serves the protocols with envelopes; this one is
short, and most calls are of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext

from quill.errors import Cancelled, Code, DeadlineExceeded, InvalidArgument, ResourceExhausted, RpcError
from quill.limits import Limits
from quill.server.connect.compression import BoundedCompression
from quill.server.connect.errors import connect_error
from quill.server.connect.exchange import Exchange
from quill.server.connect.outgoing import Outgoing
from quill.server.connect.request import Request
from quill.server.http_host import Receive
from quill.wire.base64 import encode_base64

METHOD: MethodInfo[Any, Any] = MethodInfo(
    name="",
    service_name="",
    input=bytes,
    output=bytes,
    idempotency_level=IdempotencyLevel.UNKNOWN,
    stream_type=StreamType.UNARY,
)
"""What connectrpc is told of every method: it hands bytes through."""

_CONTENT_TYPES = {"application/proto": b"application/proto", "application/json": b"application/json"}
_ACCEPT_POST = (b"accept-post", b"application/json, application/proto")
_VARY = (b"vary", b"Accept-Encoding")
_ERROR_HEAD = (b"content-type", b"application/json")
_LATE = "the deadline of the call has passed"
_MAX_TIMEOUT_DIGITS = 10
_MAX_SHOWN = 64


class UnaryCall:
    """Answers one call.

    Args:
        request: The request.
        exchange: Takes it to its handler.
        receive: Where its body comes from.
        outgoing: Where the reply goes.
        limits: What is accepted.
        compressions: How a request may be compressed, by name.
    """

    def __init__(
        self,
        request: Request,
        exchange: Exchange,
        receive: Receive,
        outgoing: Outgoing,
        *,
        limits: Limits,
        compressions: Mapping[str, BoundedCompression],
    ) -> None:
        self._request = request
        self._exchange = exchange
        self._receive = receive
        self._outgoing = outgoing
        self._limits = limits
        self._compressions = compressions
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._reply: RequestContext[Any, Any] | None = None
        self._ending: RpcError | None = None
        """Why the call was cancelled: its deadline has passed, or its client has gone."""
        self._watcher: asyncio.Task[None] | None = None

    async def answer(self) -> None:
        """Answer the call, whatever comes of it."""
        timer: asyncio.TimerHandle | None = None
        try:
            timeout_ms = self._check_headers()
            self._reply = _context(timeout_ms)
            if timeout_ms is not None:
                timer = self._loop.call_later(timeout_ms / 1000, self._end, DeadlineExceeded, _LATE)
            content_type = _CONTENT_TYPES.get(self._request.content_type)
            if content_type is None:
                await self._outgoing.send_whole(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, [_ACCEPT_POST], b"")
                return
            await self._exchange.admit(self._reply)
            reply = await self._respond(await self._body())
            head = [(b"content-type", content_type), _VARY, *_metadata(self._reply)]
            await self._outgoing.send_message(head, reply)
        except ConnectError as error:
            await self._refuse(error)
        except asyncio.CancelledError:
            if self._ending is None or (self._task is not None and self._task.cancelling() > 1):
                with contextlib.suppress(Exception):  # the connection may be closing, too
                    await self._refuse(connect_error(Cancelled("the call was cancelled")))
                raise
            await self._refuse(connect_error(self._ending))
        finally:
            if timer is not None:
                timer.cancel()
            if self._ending is not None and self._task is not None:
                self._task.uncancel()  # the cancellation was the call's alone

    def _check_headers(self) -> int | None:
        """The timeout in milliseconds.

        Raises:
            ConnectError: The version or the timeout is none.
        """
        version = self._request.header("connect-protocol-version") or "1"
        if version != "1":
            raise connect_error(InvalidArgument(f"connect-protocol-version must be '1', got {version[:_MAX_SHOWN]!r}"))
        timeout = self._request.header("connect-timeout-ms")
        if not timeout:
            return None
        if len(timeout) > _MAX_TIMEOUT_DIGITS or not (timeout.isascii() and timeout.isdigit()):
            raise connect_error(
                InvalidArgument(f"connect-timeout-ms must have 1 to 10 digits, got {timeout[:_MAX_SHOWN]!r}")
            )
        return int(timeout)

    async def _body(self) -> bytes:
        """The message: the body, decompressed.

        Raises:
            ConnectError: It is too large or damaged, or the client has gone.
        """
        body, more = await self._piece(0)
        if more:
            whole = bytearray(body)  # parts kept by themselves would cost more than what is in them
            while more:
                piece, more = await self._piece(len(whole))
                whole += piece
            body = bytes(whole)
        encoding = self._request.encoding
        if encoding == "identity" or not body:
            return body
        return await self._compressions[encoding].decompress_body(body)

    async def _piece(self, before_bytes: int) -> tuple[bytes, bool]:
        """The next part of the body, and whether more follow."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise connect_error(Cancelled("the client has gone before the end of its request"))
        piece: bytes = message.get("body", b"")
        size = before_bytes + len(piece)
        if size > self._limits.max_message_bytes:
            raise connect_error(
                ResourceExhausted(
                    f"the request has at least {size} bytes, max_message_bytes is {self._limits.max_message_bytes}"
                )
            )
        return piece, bool(message.get("more_body", False))

    async def _respond(self, message: bytes) -> bytes:
        """Run the handler; it is cancelled when its client leaves.

        The watch begins when the handler waits for something. One that answers at once costs no task.
        """
        start = self._loop.call_soon(self._watch)
        try:
            return await self._exchange.respond(message)
        finally:
            start.cancel()
            if self._watcher is not None:
                self._watcher.cancel()

    def _watch(self) -> None:
        self._watcher = self._loop.create_task(self._wait_until_gone())

    async def _wait_until_gone(self) -> None:
        with contextlib.suppress(Exception):  # a host that fails here fails in the reply, too
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self._end(Cancelled, "the client has gone")

    def _end(self, reason: type[RpcError], message: str) -> None:
        """Cancel the call, once."""
        if self._ending is None and self._task is not None:
            self._ending = reason(message)
            self._task.cancel()

    async def _refuse(self, error: ConnectError) -> None:
        """Tell an error, unless a reply is under way."""
        if self._outgoing.started:
            return
        described: dict[str, Any] = {"code": error.code.value, "message": error.message}
        if error.details:
            described["details"] = [
                {"type": detail.type_name, "value": encode_base64(detail.message_bytes)} for detail in error.details
            ]
        body = json.dumps(described, ensure_ascii=False).encode()
        head = [_ERROR_HEAD, *([] if self._reply is None else _metadata(self._reply))]
        code = Code.from_connect(error.code.value)
        # To HTTP a method that is not there is a page that is not there; the code is in the body either way.
        is_missing = code is Code.UNIMPLEMENTED and not self._exchange.is_known
        status = HTTPStatus.NOT_FOUND if is_missing else code.http_status
        await self._outgoing.send_whole(status, head, body)


def _context(timeout_ms: int | None) -> RequestContext[Any, Any]:
    """Where the exchange puts what goes beside the reply."""
    return RequestContext(method=METHOD, http_method="POST", request_headers=_NO_HEADERS, timeout_ms=timeout_ms)


_NO_HEADERS = Headers()
"""The exchange reads those of the request itself."""


def _metadata(reply: RequestContext[Any, Any]) -> list[tuple[bytes, bytes]]:
    """The headers of a reply and, with their prefix, its trailers."""
    headers = [(key.encode(), value.encode()) for key, value in reply.response_headers.allitems()]
    trailers = [(b"trailer-" + key.encode(), value.encode()) for key, value in reply.response_trailers.allitems()]
    return headers + trailers
