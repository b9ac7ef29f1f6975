"""What a backend notes reaches the caller in trailing metadata; why a model is not ready, in the refusal."""

from dataclasses import replace

import grpc
import pytest

from llm.scripted import MODEL, ScriptedBackend, failure, finished, served, tokens
from quill.client.async_client import AsyncQuillClient
from quill.client.transport import ResponseMetadata
from quill.llm import LLMServicer, Note
from quill.proto import GenerateRequest, add_LLMServiceServicer_to_server
from quill.server.server import Server

SCRIPT = [
    Note("quill-label", "draft"),
    tokens("a"),
    Note("quill-warning", "cut"),
    Note("quill-warning", "late"),
    finished(),
]
NOTES = [("quill-label", "draft"), ("quill-warning", "cut"), ("quill-warning", "late")]


@pytest.mark.parametrize("protocol", ["grpc", "connect", "grpc-web"])
async def test_notes_are_trailing_metadata_over_every_protocol(protocol):
    server = Server(grpc="127.0.0.1:0", http="127.0.0.1:0")
    servicer = LLMServicer(ScriptedBackend(SCRIPT))
    add_LLMServiceServicer_to_server(servicer, server)
    async with server:
        url = f"grpc://{server.grpc_address}" if protocol == "grpc" else server.http_url
        async with AsyncQuillClient(url, protocol=protocol) as client:
            unary, streamed = ResponseMetadata(), ResponseMetadata()
            await client.llm.generate("p", response=unary)
            await client.llm.stream("p", response=streamed).result()
        await servicer.aclose()
    for response in (unary, streamed):
        assert [pair for pair in response.trailers if pair[0].startswith("quill-")] == NOTES


async def test_notes_of_several_starts_are_told_once():
    async with served(ScriptedBackend(SCRIPT)) as (_, stub):
        call = stub.Generate(GenerateRequest(prompt="p", n=3))
        assert len((await call).choices) == 3
        assert [tuple(pair) for pair in await call.trailing_metadata()] == NOTES


async def test_a_model_that_is_not_ready_says_why():
    reason = "the engine is being repaired"
    backend = ScriptedBackend(SCRIPT, models=(replace(MODEL, ready=False, unready_reason=reason),))
    async with served(backend) as (_, stub):
        error, _ = await failure(stub.Generate(GenerateRequest(prompt="p")))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == f"model scripted-1 is not ready: {reason}; try again later"
    assert backend.starts == 0
