"""Methods with one request, called over gRPC without any."""

import asyncio

import pytest

from support.http2 import ask_grpc, enveloped
from support.probe import LOOK, STREAM, UNARY, Answer, Ask, serving

UNIMPLEMENTED = 12
ASKED = enveloped(Ask(text="a").SerializeToString())


async def unary(request, context):
    return Answer(text=request.text)


async def stream(request, context):
    yield Answer(text=request.text)


@pytest.mark.parametrize("path", [UNARY, STREAM, LOOK])
async def test_a_call_without_its_request_is_refused_at_once(path):
    ran = []

    async def look(request, context):
        ran.append(request)
        return Answer()

    async with serving(unary=unary, stream=stream, look=look) as server:
        status, message, received = await asyncio.to_thread(ask_grpc, server.grpc_address, path, b"")
        assert (status, message, received) == (
            UNIMPLEMENTED,
            "the request has no message; this method takes one",
            b"",
        )
        assert ran == []
        status, _, received = await asyncio.to_thread(ask_grpc, server.grpc_address, UNARY, ASKED)
        assert (status, received) == (0, enveloped(Answer(text="a").SerializeToString()))
