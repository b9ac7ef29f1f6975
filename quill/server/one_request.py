"""Calls with one request on the gRPC port: read as a stream, of which the first message is wanted.

Of a unary method grpc.aio reads the message itself, and where none comes it leaves the call without a status: its
client waits until its deadline. A second message is ignored here as there; to look for it would cost every call
another round through C-core. Source: "cardinality violation" in
https://grpc.github.io/grpc/core/md_doc_statuscodes.html.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from quill.errors import Unimplemented
from quill.server.behaviour import Context, UniformHandler
from quill.server.failure import abort


class OneRequest(grpc.RpcMethodHandler):  # type: ignore[type-arg]  # not generic when it runs
    """A handler of one request, in the shape of one that reads a stream."""

    request_streaming = True
    request_deserializer = None

    __slots__ = ("_invoke", "response_serializer", "response_streaming")

    def __init__(self, handler: UniformHandler) -> None:
        self._invoke = handler.invoke
        self.response_streaming = handler.response_streaming
        self.response_serializer = handler.response_serializer

    async def stream_unary(self, _requests: object, context: Context) -> Any:  # type: ignore[override]  # as above
        """Run the handler; a host looks for it under the name of its kind."""
        return await self._invoke(await read_one(context), context)

    stream_stream = stream_unary  # type: ignore[assignment]


async def read_one(context: Context) -> Any:
    """The request of a call; ends the call with UNIMPLEMENTED where there is none."""
    request = await context.read()
    if request is grpc.aio.EOF:
        await abort(context, Unimplemented("the request has no message; this method takes one"))
    return request
