"""Handlers that are found when their call runs: for what grpc.aio shows to handlers and not to interceptors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from quill.server.behaviour import Context, UniformHandler
from quill.server.certificates import AuthContext
from quill.server.failure import OK
from quill.server.one_request import read_one


def deferred(resolve: Callable[[AuthContext], Awaitable[UniformHandler]]) -> UniformHandler:
    """The handler of one call, which asks for its real handler when it knows the connection.

    It has the kind that fits every method, streams of bytes both ways: on the wire one message is the same, whether
    it is a unary request or reply or the only one of a stream.

    Args:
        resolve: Finds the real handler; it is the same for every method, so it runs before a request is read.
    """
    call = _Deferred(resolve)
    return UniformHandler(
        request_streaming=True,
        response_streaming=True,
        request_deserializer=call.deserialize,
        response_serializer=call.serialize,
        invoke=call.invoke,
        parses=False,
    )


class _Deferred:
    def __init__(self, resolve: Callable[[AuthContext], Awaitable[UniformHandler]]) -> None:
        self._resolve = resolve
        self._handler: UniformHandler | None = None

    def deserialize(self, data: bytes) -> Any:
        """A request, in the way of the real handler, which is known when the first is read."""
        decode = self._handler and self._handler.request_deserializer
        return decode(data) if decode else data

    def serialize(self, reply: Any) -> bytes:
        """A reply, likewise."""
        encode = self._handler and self._handler.response_serializer
        data: bytes = encode(reply) if encode else reply
        return data

    async def invoke(self, requests: AsyncIterator[Any], context: Context) -> None:
        """Run the real handler."""
        handler = self._handler = await self._resolve(context.auth_context())
        given = requests if handler.request_streaming else await read_one(context)
        reply = await handler.invoke(given, context)
        if not handler.response_streaming and context.code() in OK:
            await context.write(reply)
