"""One call over HTTP: its request, its handler and its reply."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextvars import ContextVar
from types import AsyncGeneratorType
from typing import Any, cast

import grpc
import grpc.aio
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from google.protobuf.descriptor import MethodDescriptor

from quill.errors import LocalError, Metadata, ResourceExhausted, RpcError, Unimplemented
from quill.limits import Limits
from quill.server.behaviour import UniformHandler
from quill.server.connect.compression import ENCODINGS, Packed
from quill.server.connect.context import HttpContext
from quill.server.connect.errors import connect_error, rpc_error, status_error
from quill.server.connect.outgoing import ENVELOPE_BYTES, Outgoing
from quill.server.connect.read_ahead import ReadAhead
from quill.server.connect.request import Request
from quill.server.connect.transcoder import Transcoder
from quill.server.failure import OK, as_rpc_error
from quill.server.guard import Guard
from quill.server.http_host import Receive
from quill.server.registry import Handler, takes_turns
from quill.wire.descriptors import find_method, refuses_unknown_fields
from quill.wire.metadata import to_http
from quill.wire.pushback import PUSHBACK_KEY, read_pushback

current_exchange: ContextVar[Exchange] = ContextVar("quill_exchange")
"""The exchange of the request that runs now; connectrpc carries nothing of ours to its endpoints.

A weak proxy of it: every task and every timer copies the context and keeps it, a timer also when it was cancelled, and
granian's threads last as long as a request does.
"""

_REFUSAL_HEADERS = frozenset({"retry-after", "www-authenticate"})
"""What HTTP says beside a status (RFC 9110); other metadata of an error may be that of a call upstream."""


class Exchange:
    """Takes one request through the guard to its handler, and the handler's replies and status back.

    Args:
        request: The request.
        registered: The handler under the request's path, None where there is none.
        receive: Where the request's body comes from.
        outgoing: Where the reply goes.
        guard: The door.
        limits: What is accepted.
        transcoder: Turns JSON into what handlers take, and replies into JSON.
        grpc_address: Where calls are served that HTTP/1.1 cannot carry; None where they are not.
    """

    def __init__(
        self,
        request: Request,
        registered: Handler | None,
        receive: Receive,
        outgoing: Outgoing,
        *,
        guard: Guard,
        limits: Limits,
        transcoder: Transcoder,
        grpc_address: str | None,
    ) -> None:
        self._request = request
        self._registered = registered
        self._outgoing = outgoing
        self._guard = guard
        self._limits = limits
        self._transcoder = transcoder
        self._grpc_address = grpc_address
        self._task = asyncio.current_task()
        self.receive = ReadAhead(receive)
        """Where connectrpc reads the request's body."""
        self._is_abandoned = False
        self._handler: UniformHandler
        self._reply: RequestContext[Any, Any]
        self._json: MethodDescriptor | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is a handler under the path, for this caller."""
        return self._registered is not None

    @property
    def is_enveloped(self) -> bool:
        """Whether messages are enveloped: always in gRPC; in Connect as the method's kind says, where it is known."""
        if self._registered is None or self._request.protocol != "connect":
            return self._request.is_enveloped
        return self._registered.request_streaming or self._registered.response_streaming

    async def admit(self, reply: RequestContext[Any, Any]) -> None:
        """Find the handler, before the body is read.

        Raises:
            ConnectError: The call may not run.
        """
        self._reply = reply
        try:
            self._check_request()
            self._handler = await self._guard.resolve(self._request.details, self._request.auth_context)
            self._check_handler()
        except Exception as error:  # noqa: BLE001 - connectrpc would tell the client what it says
            raise self._refusal(as_rpc_error(error)) from None

    async def respond(self, request: bytes) -> bytes:
        """Run the handler of a call without envelopes, and return its reply.

        Raises:
            ConnectError: The call ended with a status.
        """
        return await self._respond(request)

    async def respond_in_envelopes(self, messages: AsyncIterator[bytes]) -> None:
        """Run the handler on the messages of a request, and send its replies.

        Raises:
            ConnectError: The call ended with a status.
        """
        requests = self._requests(messages) if self._reads else None
        try:
            async with self.receive.watched(self._abandon):
                await self._respond(requests or await _single(messages))
        finally:
            if requests is not None:
                await _close(requests)

    async def _respond(self, given: bytes | AsyncGenerator[Any]) -> bytes:
        """Run the handler, of whatever kind: an interceptor may have put one of another kind in its place."""
        reads = self._handler.request_streaming
        requests = self._messages_of(given) if reads and isinstance(given, bytes) else given
        context = HttpContext(
            metadata=self._request.metadata,
            peer=self._request.peer,
            auth_context=self._request.auth_context,
            time_remaining_s=self._time_remaining_s,
            send_head=self._send_head,
            read=functools.partial(anext, requests, grpc.aio.EOF) if reads else None,
            write=self._write,
        )
        cancelled = False
        try:
            return await self._run(requests, context)
        except asyncio.CancelledError:
            cancelled = True
            raise
        except Exception as error:  # noqa: BLE001 - also what transcoding a reply raises must become a status
            raise connect_error(as_rpc_error(error)) from None
        finally:
            context.finish(cancelled=cancelled)

    async def _run(self, requests: bytes | AsyncGenerator[Any], context: HttpContext) -> bytes:
        """Run the handler to its status.

        Raises:
            RpcError: The status, when it is not OK.
        """
        reply = b""
        # abort() has raised this; what it was given stands in the context.
        with contextlib.suppress(grpc.aio.AbortError):
            if not self._handler.request_streaming:
                requests = await self._only(requests)
            reply = await self._handler.invoke(requests, context) or b""
        status = context.code()
        self._add_trailers(context.trailing_metadata())
        if status not in OK:
            raise status_error(status, context.details(), context.trailing_metadata())
        return await self._finish(reply, context)

    def _refusal(self, error: RpcError) -> ConnectError:
        for key, value in error.metadata:
            if key in _REFUSAL_HEADERS:
                self._reply.response_headers[key] = str(value)
        try:
            self._add_trailers(error.trailers)
        except LocalError as unusable:
            error = as_rpc_error(unusable)
        return connect_error(error)

    async def _only(self, requests: bytes | AsyncGenerator[Any]) -> Any:
        """The request for a handler that takes one."""
        return await self._request_of(requests) if isinstance(requests, bytes) else await anext(requests, b"")

    async def _finish(self, reply: bytes, context: HttpContext) -> bytes:
        """The reply of a unary handler in the caller's encoding; in envelopes it is the only message."""
        if self._handler.response_streaming:
            return b""
        self._outgoing.compress_next = context.compresses_next()
        reply = await self._encode(reply)
        if self.is_enveloped:
            await self._send(reply)
        return reply

    async def _write(self, message: Any, compress: bool) -> None:
        if not self.is_enveloped:
            raise grpc.aio.UsageError("a unary call has one reply: return it")
        serialize = self._handler.response_serializer
        data = await self._encode(message if serialize is None else serialize(message))
        self._outgoing.compress_next = compress
        await self._send(data)

    async def _send(self, data: bytes) -> None:
        if not self._outgoing.started:
            await self._send_head(())
        await self._deliver(self._outgoing.write(data))

    async def _deliver(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except OSError:  # how ASGI hosts say that the client has gone
            self._abandon()
            await asyncio.sleep(0)

    async def _send_head(self, metadata: Metadata) -> None:
        for key, value in to_http(metadata):
            self._reply.response_headers.add(key, value)
        if self.is_enveloped:
            headers = [("content-type", self._request.binary_content_type), *self._reply.response_headers.allitems()]
            encoded = [(key.encode(), value.encode()) for key, value in headers]
            await self._deliver(self._outgoing.start(encoded, self._request.headers.encoding))

    def _add_trailers(self, trailers: Metadata) -> None:
        # Keys of gRPC's own mean nothing to a Connect client, but for one that Quill's clients read on every protocol.
        for key, value in to_http([entry for entry in trailers if not entry[0].startswith("grpc-")]):
            self._reply.response_trailers.add(key, value)
        for key, told in trailers:
            if key == PUSHBACK_KEY:
                self._reply.response_trailers.add(key, str(read_pushback(str(told))))

    def _time_remaining_s(self) -> float | None:
        remaining_ms = self._reply.timeout_ms
        return None if remaining_ms is None else max(remaining_ms / 1000, 0.0)

    @property
    def _reads(self) -> bool:
        """Whether the method takes a stream of requests; the handler may be another's than the method's own."""
        registered = self._registered
        return self._handler.request_streaming if registered is None else registered.request_streaming

    async def _messages_of(self, message: bytes) -> AsyncGenerator[Any]:
        """The requests of a call with one request."""
        yield await self._request_of(message)

    async def _requests(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[Any]:
        """The requests of a stream."""
        try:
            async for message in messages:
                yield await self._request_of(message)
        except ConnectError as error:
            raise rpc_error(error) from None

    async def _request_of(self, message: bytes) -> Any:
        """What the handler takes: bytes, or where it reads a stream what it deserializes them to."""
        data = await self._decode(await message.unpack() if isinstance(message, Packed) else message)
        deserialize = self._handler.request_deserializer
        return data if deserialize is None else deserialize(data)

    def _abandon(self) -> None:
        """The client has gone: nobody will read what the handler still writes."""
        if self._task is not None and not self._is_abandoned:
            self._is_abandoned = True
            self._task.cancel()

    def take_back_cancellation(self) -> None:
        """The call has ended; what cancelled its task on account of the client is over."""
        if self._is_abandoned and self._task is not None:
            self._task.uncancel()

    async def _decode(self, data: bytes) -> bytes:
        if self._json is None:
            return data
        lenient = not refuses_unknown_fields(self._request.path.removeprefix("/"))
        return await self._transcoder.to_proto(self._json.input_type, data, ignore_unknown_fields=lenient)

    async def _encode(self, data: bytes) -> bytes:
        return data if self._json is None else await self._transcoder.to_json(self._json.output_type, data)

    def _check_request(self) -> None:
        request, limits = self._request, self._limits
        if request.header_bytes > limits.max_metadata_bytes:
            raise ResourceExhausted(
                f"the request headers have {request.header_bytes} bytes, "
                f"max_metadata_bytes is {limits.max_metadata_bytes}"
            )
        many = request.is_enveloped if self._registered is None else self._registered.request_streaming
        body_bytes = request.content_length - (ENVELOPE_BYTES if self.is_enveloped else 0)
        if not many and body_bytes > limits.max_message_bytes:
            raise ResourceExhausted(
                f"the request has {body_bytes} bytes, max_message_bytes is {limits.max_message_bytes}"
            )
        if request.encoding not in ("identity", *ENCODINGS):
            accepted = ", ".join(ENCODINGS)
            self._reply.response_headers[request.headers.accepted] = accepted
            raise Unimplemented(f"requests compressed with {request.encoding!r} are not understood; use {accepted}")

    def _check_handler(self) -> None:
        if self._handler.refusal is not None:
            raise self._handler.refusal
        registered = self._registered
        if registered is not None and takes_turns(registered) and not self._request.takes_turns:
            where = f"call it over gRPC at {self._grpc_address}" if self._grpc_address else "it needs HTTP/2"
            raise Unimplemented(
                f"in {self._request.path[1:]} both sides take turns, which HTTP/1.1 and gRPC-Web cannot: {where}"
            )
        if registered is not None and registered.request_deserializer is not None and not self._handler.parses:
            return  # an interceptor's handler that looks at no request: it refuses, whatever stands in there
        if self._request.is_json:
            service, _, method = self._request.path[1:].rpartition("/")
            self._json = find_method(service, method)
            if self._json is None:
                raise Unimplemented(f"the server has no descriptor of {service}, so it takes no JSON: send protobuf")


async def _close(requests: AsyncGenerator[Any]) -> None:
    """Close a generator; a task or a thread of the handler's may still be in it, which the end of the body lets go."""
    while cast("AsyncGeneratorType[Any, None]", requests).ag_running:  # noqa: ASYNC110 - generators have no event for it
        await asyncio.sleep(0)
    await requests.aclose()


async def _single(messages: AsyncIterator[bytes]) -> bytes:
    """The one message of a request, read to the end of its body, behind which a disconnect is told.

    Raises:
        ConnectError: There is none, or more than one.
    """
    found = []
    async for message in messages:
        found.append(message)
        if len(found) > 1:
            break
    if len(found) == 1:
        return found[0]
    count = "more than one message" if found else "no message"
    raise connect_error(Unimplemented(f"the request has {count}; this method takes one"))
