"""One call over HTTP: its request, its handler and its reply."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from google.protobuf.descriptor import MethodDescriptor

from quill.errors import LocalError, Metadata, ResourceExhausted, RpcError, Unimplemented
from quill.limits import Limits
from quill.server.behaviour import UniformHandler
from quill.server.connect.compression import ENCODINGS
from quill.server.connect.context import HttpContext
from quill.server.connect.errors import connect_error, status_error
from quill.server.connect.outgoing import ENVELOPE_BYTES, Outgoing
from quill.server.connect.request import Request
from quill.server.failure import OK, as_rpc_error
from quill.server.guard import Guard
from quill.server.registry import Handler
from quill.wire import transcode
from quill.wire.descriptors import find_method
from quill.wire.metadata import to_http

current_exchange: ContextVar[Exchange] = ContextVar("quill_exchange")
"""The exchange of the request that runs now; connectrpc carries nothing of ours to its endpoints."""

_OWN_PACKAGE = "/inference.v1."
_REFUSAL_HEADERS = frozenset({"retry-after", "www-authenticate"})
"""What HTTP says beside a status (RFC 9110); other metadata of an error may be that of a call upstream."""


class Exchange:
    """Takes one request through the guard to its handler, and the handler's replies and status back.

    Args:
        request: The request.
        registered: The handler under the request's path, None where there is none.
        outgoing: Where the reply goes.
        guard: The door.
        limits: What is accepted.
        grpc_address: Where calls are served that HTTP/1.1 cannot carry; None where they are not.
    """

    def __init__(
        self,
        request: Request,
        registered: Handler | None,
        outgoing: Outgoing,
        *,
        guard: Guard,
        limits: Limits,
        grpc_address: str | None,
    ) -> None:
        self._request = request
        self._registered = registered
        self._outgoing = outgoing
        self._guard = guard
        self._limits = limits
        self._grpc_address = grpc_address
        self._handler: UniformHandler
        self._reply: RequestContext[Any, Any]
        self._json: MethodDescriptor | None = None

    @property
    def is_stream(self) -> bool:
        """Whether messages are enveloped: as the method's kind says, or the request where there is no such method."""
        if self._registered is None:
            return self._request.is_stream
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

    async def respond(self, data: bytes) -> bytes:
        """Run the handler on a request message; the reply of a unary call is returned, those of a stream are sent.

        Raises:
            ConnectError: The call ended with a status.
        """
        context = HttpContext(
            metadata=self._request.metadata,
            peer=self._request.peer,
            auth_context=self._request.auth_context,
            time_remaining_s=self._time_remaining_s,
            send_head=self._send_head,
            write=self._write,
        )
        cancelled = False
        try:
            return await self._run(self._decode(data), context)
        except asyncio.CancelledError:
            cancelled = True
            raise
        except Exception as error:  # noqa: BLE001 - also what transcoding a reply raises must become a status
            raise connect_error(as_rpc_error(error)) from None
        finally:
            context.finish(cancelled=cancelled)

    async def _run(self, request: bytes, context: HttpContext) -> bytes:
        """Run the handler to its status.

        Raises:
            RpcError: The status, when it is not OK.
        """
        reply = b""
        # abort() has raised this; what it was given stands in the context.
        with contextlib.suppress(grpc.aio.AbortError):
            reply = await self._invoke(request, context)
        status = context.code()
        self._add_trailers(context.trailing_metadata())
        if status not in OK:
            raise status_error(status, context.details(), context.trailing_metadata())
        return await self._finish(reply)

    def _refusal(self, error: RpcError) -> ConnectError:
        for key, value in error.metadata:
            if key in _REFUSAL_HEADERS:
                self._reply.response_headers[key] = str(value)
        try:
            self._add_trailers(error.trailers)
        except LocalError as unusable:
            error = as_rpc_error(unusable)
        return connect_error(error)

    async def _invoke(self, request: bytes, context: HttpContext) -> bytes:
        """Call the handler, of whatever kind: an interceptor may have put one of another kind in its place."""
        handler = self._handler
        result = await handler.invoke(_one(handler, request) if handler.request_streaming else request, context)
        return result or b""

    async def _finish(self, reply: bytes) -> bytes:
        """The reply of a unary handler in the caller's encoding; in a stream it is the only message."""
        if self._handler.response_streaming:
            return b""
        reply = self._encode(reply)
        if self.is_stream:
            await self._send(reply)
        return reply

    async def _write(self, message: Any) -> None:
        if not self.is_stream:
            raise grpc.aio.UsageError("a unary call has one reply: return it")
        serialize = self._handler.response_serializer
        await self._send(self._encode(message if serialize is None else serialize(message)))

    async def _send(self, data: bytes) -> None:
        if not self._outgoing.started:
            await self._send_head(())
        await self._outgoing.write(data)

    async def _send_head(self, metadata: Metadata) -> None:
        for key, value in to_http(metadata):
            self._reply.response_headers.add(key, value)
        if self.is_stream:
            headers = [("content-type", self._request.content_type), *self._reply.response_headers.allitems()]
            await self._outgoing.start([(key.encode(), value.encode()) for key, value in headers])

    def _add_trailers(self, trailers: Metadata) -> None:
        # Keys of gRPC's own (error details, retry pushback) mean nothing to a Connect client.
        for key, value in to_http([entry for entry in trailers if not entry[0].startswith("grpc-")]):
            self._reply.response_trailers.add(key, value)

    def _time_remaining_s(self) -> float | None:
        remaining_ms = self._reply.timeout_ms
        return None if remaining_ms is None else max(remaining_ms / 1000, 0.0)

    def _decode(self, data: bytes) -> bytes:
        if self._json is None:
            return data
        lenient = not self._request.path.startswith(_OWN_PACKAGE)
        return transcode.json_to_proto(self._json.input_type, data, ignore_unknown_fields=lenient)

    def _encode(self, data: bytes) -> bytes:
        return data if self._json is None else transcode.proto_to_json(self._json.output_type, data)

    def _check_request(self) -> None:
        request, limits = self._request, self._limits
        if request.header_bytes > limits.max_metadata_bytes:
            raise ResourceExhausted(
                f"the request headers have {request.header_bytes} bytes, "
                f"max_metadata_bytes is {limits.max_metadata_bytes}"
            )
        body_bytes = request.content_length - (ENVELOPE_BYTES if self.is_stream else 0)
        if body_bytes > limits.max_message_bytes:
            raise ResourceExhausted(
                f"the request has {body_bytes} bytes, max_message_bytes is {limits.max_message_bytes}"
            )
        if request.encoding not in ("identity", *ENCODINGS):
            accepted = ", ".join(ENCODINGS)
            self._reply.response_headers["connect-accept-encoding" if self.is_stream else "accept-encoding"] = accepted
            raise Unimplemented(f"requests compressed with {request.encoding!r} are not understood; use {accepted}")

    def _check_handler(self) -> None:
        if self._handler.refusal is not None:
            raise self._handler.refusal
        registered = self._registered
        if self._handler.request_streaming and (registered is None or registered.request_streaming):
            where = f": call it over gRPC at {self._grpc_address}" if self._grpc_address else ""
            raise Unimplemented(f"{self._request.path[1:]} takes a stream of requests, not served over HTTP/1.1{where}")
        if registered is not None and registered.request_deserializer is not None and not self._handler.parses:
            return  # an interceptor's handler that looks at no request: it refuses, whatever stands in there
        if self._request.is_json:
            service, _, method = self._request.path[1:].rpartition("/")
            self._json = find_method(service, method)
            if self._json is None:
                raise Unimplemented(f"the server has no descriptor of {service}, so it takes no JSON: send protobuf")


async def _one(handler: UniformHandler, request: bytes) -> AsyncIterator[Any]:
    """The request stream of a call with one request."""
    yield request if handler.request_deserializer is None else handler.request_deserializer(request)
