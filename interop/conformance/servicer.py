"""ConformanceService: an ordinary grpc.aio servicer, which knows nothing of Quill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Never, TypeAlias

import grpc
from frames import to_headers
from gen import service_pb2 as pb
from gen.service_pb2_grpc import ConformanceServiceServicer
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # it has stubs, but no py.typed

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
RequestInfo = pb.ConformancePayload.RequestInfo

_CODES = {status.value[0]: status for status in grpc.StatusCode}


class Conformance(ConformanceServiceServicer):
    """Answers what each request asks it to answer, and tells what it has seen of the request."""

    async def Unary(self, request: pb.UnaryRequest, context: Context) -> pb.UnaryResponse:
        """One request, one reply."""
        return pb.UnaryResponse(payload=await _answer_once(request.response_definition, [request], context))

    async def IdempotentUnary(self, request: pb.IdempotentUnaryRequest, context: Context) -> pb.IdempotentUnaryResponse:
        """The same, for calls by GET."""
        return pb.IdempotentUnaryResponse(payload=await _answer_once(request.response_definition, [request], context))

    async def ClientStream(
        self, requests: AsyncIterator[pb.ClientStreamRequest], context: Context
    ) -> pb.ClientStreamResponse:
        """Many requests, of which the first says what to reply."""
        seen = [request async for request in requests]
        definition = seen[0].response_definition if seen else pb.UnaryResponseDefinition()
        return pb.ClientStreamResponse(payload=await _answer_once(definition, seen, context))

    async def ServerStream(
        self, request: pb.ServerStreamRequest, context: Context
    ) -> AsyncIterator[pb.ServerStreamResponse]:
        """One request, many replies."""
        definition = request.response_definition
        await _begin(definition, context)
        info: RequestInfo | None = _info([request], context)
        for data in definition.response_data:
            await asyncio.sleep(definition.response_delay_ms / 1000)
            yield pb.ServerStreamResponse(payload=pb.ConformancePayload(data=data, request_info=info))
            info = None
        if definition.HasField("error"):
            await _fail(definition, info, context)

    async def BidiStream(
        self, requests: AsyncIterator[pb.BidiStreamRequest], context: Context
    ) -> AsyncIterator[pb.BidiStreamResponse]:
        """Many requests and replies: in turns, or the replies after all requests."""
        definition: pb.StreamResponseDefinition | None = None
        takes_turns = False
        seen: list[Message] = []
        sent = 0
        async for request in requests:
            seen.append(request)
            if definition is None:
                definition, takes_turns = request.response_definition, request.full_duplex
                if takes_turns:
                    await _begin(definition, context)
            if not takes_turns:
                continue
            if sent >= len(definition.response_data):
                break
            info = RequestInfo(requests=_packed(seen)) if sent else _info(seen, context)
            yield await _reply(definition, sent, info)
            sent, seen = sent + 1, []
        if definition is None:
            return
        if not takes_turns:
            await _begin(definition, context)
        for index in range(sent, len(definition.response_data)):
            yield await _reply(definition, index, None if index else _info(seen, context))
        if definition.HasField("error"):
            await _fail(definition, None if definition.response_data else _info(seen, context), context)

    async def Unimplemented(self, request: pb.UnimplementedRequest, context: Context) -> pb.UnimplementedResponse:
        """The method that the suite wants not to be there."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the suite wants this method not to be there")


async def _reply(
    definition: pb.StreamResponseDefinition, index: int, info: RequestInfo | None
) -> pb.BidiStreamResponse:
    """One of the replies, when its time has come."""
    await asyncio.sleep(definition.response_delay_ms / 1000)
    payload = pb.ConformancePayload(data=definition.response_data[index], request_info=info)
    return pb.BidiStreamResponse(payload=payload)


async def _answer_once(
    definition: pb.UnaryResponseDefinition, requests: Sequence[Message], context: Context
) -> pb.ConformancePayload:
    """The payload of a single reply, or its error."""
    info = _info(requests, context)
    await _begin(definition, context)
    await asyncio.sleep(definition.response_delay_ms / 1000)
    if definition.HasField("error"):
        await _fail(definition, info, context)
    return pb.ConformancePayload(data=definition.response_data, request_info=info)


async def _begin(definition: pb.UnaryResponseDefinition | pb.StreamResponseDefinition, context: Context) -> None:
    """Send the headers, and set the trailers."""
    context.set_trailing_metadata(_metadata(definition.response_trailers))
    await context.send_initial_metadata(_metadata(definition.response_headers))


async def _fail(
    definition: pb.UnaryResponseDefinition | pb.StreamResponseDefinition, info: RequestInfo | None, context: Context
) -> Never:
    """End the call with the error that was asked for; where there was no reply, it tells of the request."""
    error = definition.error
    details = [*error.details, *([] if info is None else _packed([info]))]
    rich = Status(code=error.code, message=error.message, details=details)
    trailers = [*_metadata(definition.response_trailers), ("grpc-status-details-bin", rich.SerializeToString())]
    await context.abort(_CODES[error.code], error.message, tuple(trailers))


def _info(requests: Sequence[Message], context: Context) -> RequestInfo:
    """What was seen of a call."""
    remaining_s = context.time_remaining()
    return RequestInfo(
        request_headers=to_headers(context.invocation_metadata() or ()),
        timeout_ms=None if remaining_s is None else int(remaining_s * 1000),
        requests=_packed(requests),
    )


def _packed(messages: Sequence[Message]) -> list[AnyMessage]:
    packed = [AnyMessage() for _ in messages]
    for target, message in zip(packed, messages, strict=True):
        target.Pack(message)
    return packed


def _metadata(headers: Sequence[pb.Header]) -> tuple[tuple[str, str | bytes], ...]:
    """The suite's headers as metadata."""
    return tuple((header.name.lower(), value) for header in headers for value in header.value)
