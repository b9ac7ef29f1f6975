"""Handlers of every style in one shape: coroutines that take and give bytes and end in a status of their own.

A servicer may be written as a coroutine, an asynchronous generator, a coroutine that writes through its context, a
blocking function or a blocking generator. What leaves this module is always a coroutine function: it returns the
serialized reply of a unary call and writes the replies of a stream to its context.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from quill.errors import InvalidArgument, ResourceExhausted, RpcError
from quill.server.blocking import Blocking
from quill.server.calls import Calls, current_call
from quill.server.failure import OK, abort, end_call
from quill.server.registry import Handler

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Unary: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
Stream: TypeAlias = Callable[[Any, Context], Awaitable[None]]
Deserializer: TypeAlias = Callable[[bytes], Any]
Serializer: TypeAlias = Callable[[Any], bytes]


@dataclass(frozen=True, slots=True)
class UniformHandler(grpc.RpcMethodHandler):  # type: ignore[type-arg]  # not generic when it runs
    """A handler whose behaviour is a coroutine function, whatever its kind.

    A unary request is given as bytes and a unary reply comes as bytes. Streams are read and written through the
    request iterator and the context, which apply the two functions below, as grpc.aio does.
    """

    request_streaming: bool
    response_streaming: bool
    request_deserializer: Deserializer | None
    """For each request of a stream; None where the request is one."""
    response_serializer: Serializer | None
    """For each reply of a stream; None where the reply is one."""
    invoke: Callable[[Any, Context], Awaitable[Any]]
    """Run the handler; ends in a status, never in another exception than a host of grpc.aio handlers expects."""
    parses: bool
    """Whether requests are deserialized at all; a handler that only refuses has no need to."""
    refusal: RpcError | None = None
    """The status, where it is known already; nothing of the request need be read then."""

    @property
    def unary_unary(self) -> Any:  # type: ignore[override]  # the stubs allow for handlers that change
        """The behaviour; a host looks for it under the name of its kind."""
        return self.invoke

    unary_stream = stream_unary = stream_stream = unary_unary


def refusal(error: RpcError) -> UniformHandler:
    """The handler of a call that is refused, whatever the kind of its method."""

    async def refuse(_requests: object, context: Context) -> None:
        await abort(context, error)

    return UniformHandler(
        # Of this kind, because its host runs it before it has a request.
        request_streaming=True,
        response_streaming=True,
        request_deserializer=None,
        response_serializer=None,
        invoke=refuse,
        parses=False,
        refusal=error,
    )


class Uniform:
    """Makes the uniform handler of a handler."""

    def __init__(self, calls: Calls, blocking: Blocking, max_reply_bytes: int) -> None:
        self._calls = calls
        self._blocking = blocking
        self._max_reply_bytes = max_reply_bytes

    def __call__(self, handler: Handler) -> UniformHandler:
        """The uniform form of a handler."""
        reads, writes = handler.request_streaming, handler.response_streaming
        decode = _checked(handler.request_deserializer)
        encode = self._sized(handler.response_serializer)
        here = None if reads else decode
        if writes:
            behaviour = handler.stream_stream if reads else handler.unary_stream
            invoke = self._stream(self._writing(behaviour, reads=reads), here)
        else:
            behaviour = handler.stream_unary if reads else handler.unary_unary
            invoke = self._unary(self._single(behaviour, reads=reads), here, encode, streams=reads)
        return UniformHandler(
            request_streaming=reads,
            response_streaming=writes,
            request_deserializer=decode if reads else None,
            response_serializer=encode if writes else None,
            invoke=invoke,
            parses=decode is not None,
        )

    def _single(self, behaviour: Any, *, reads: bool) -> Unary:
        if inspect.iscoroutinefunction(behaviour):
            return cast("Unary", behaviour)
        return self._blocking.unary(behaviour, reads=reads)

    def _writing(self, behaviour: Any, *, reads: bool) -> Stream:
        if inspect.iscoroutinefunction(behaviour):
            return cast("Stream", behaviour)
        if inspect.isasyncgenfunction(behaviour):
            return _written(behaviour)
        return self._blocking.stream(behaviour, reads=reads)

    def _unary(self, invoke: Unary, decode: Deserializer | None, encode: Serializer, *, streams: bool) -> Unary:
        calls = self._calls

        async def unary(request: Any, context: Context) -> bytes:
            task = current_call()
            try:
                calls.enter(task, streams=streams)
                reply = await invoke(request if decode is None else decode(request), context)
                if context.code() not in OK:
                    return b""  # grpc.aio sends no reply beside such a status, so there may be none to serialize
                data = encode(reply)
                calls.deliver(task, len(data))
                return data  # noqa: TRY300 - what fails here is the call's failure
            except BaseException as error:  # noqa: BLE001 - every way out of a handler becomes a status
                request = None  # grpc keeps the frames of an aborted call until a collection
                await end_call(context, error, task, calls)
                return b""
            finally:
                calls.leave(task)

        return unary

    def _stream(self, invoke: Stream, decode: Deserializer | None) -> Stream:
        calls = self._calls

        async def stream(request: Any, context: Context) -> None:
            task = current_call()
            try:
                calls.enter(task, streams=True)
                await invoke(request if decode is None else decode(request), context)
            except BaseException as error:  # noqa: BLE001 - every way out of a handler becomes a status
                request = None  # grpc keeps the frames of an aborted call until a collection
                await end_call(context, error, task, calls)
            finally:
                calls.leave(task)

        return stream

    def _sized(self, serialize: Serializer | None) -> Serializer:
        """Serialize within the limit."""
        limit = self._max_reply_bytes

        def encode(reply: Any) -> bytes:
            data: bytes = reply if serialize is None else serialize(reply)
            if len(data) > limit:
                raise ResourceExhausted(f"the reply has {len(data)} bytes, max_reply_bytes is {limit}")
            return data

        return encode


def _checked(deserialize: Deserializer | None) -> Deserializer | None:
    """Deserialize, or refuse the request by the name of the message that it should have been."""
    if deserialize is None:
        return None
    descriptor = getattr(getattr(deserialize, "__self__", None), "DESCRIPTOR", None)
    refusal = f"the request is not a valid {getattr(descriptor, 'full_name', 'request')} message"

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, ValueError):
            raise InvalidArgument(refusal) from None

    return decode


def _written(generate: Callable[[Any, Context], AsyncIterator[Any]]) -> Stream:
    """A generator's messages, written. The generator is closed here, not some time later by the garbage collector."""

    async def write_all(request: Any, context: Context) -> None:
        async with aclosing(generate(request, context)) as messages:  # type: ignore[type-var]
            async for message in messages:
                await context.write(message)

    return write_all
