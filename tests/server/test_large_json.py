"""Large JSON over Connect: transcoded in a thread, both ways, while other calls are answered."""

import asyncio
import json
import threading
import time

import pytest
from google.protobuf import json_format

from quill.proto import (
    GenerateRequest,
    GenerateResponse,
    LLMServiceServicer,
    StreamGenerateResponse,
    Token,
    TokenBatch,
    TokenizeRequest,
    TokenizeResponse,
    add_LLMServiceServicer_to_server,
)
from quill.server.server import Server
from quill.wire import transcode
from support.http1 import enveloped, post

SERVICE = "/inference.v1.LLMService"
JSON = "application/json"
MANY = 60_000


class Model(LLMServiceServicer):
    """Replies without work of its own."""

    def __init__(self):
        tokens = [Token(id=index, text=f"t{index}", position=index, logprob=-0.125) for index in range(MANY)]
        self.large = TokenizeResponse(tokens=TokenBatch(tokens=tokens))
        self.received = None

    async def Tokenize(self, request, context):  # noqa: N802 - the name in the contract
        return self.large if request.text == "large" else TokenizeResponse(context_length=7)

    async def Generate(self, request, context):  # noqa: N802
        self.received = request
        return GenerateResponse(request_id="done")

    async def StreamGenerate(self, request, context):  # noqa: N802
        for index in range(40):
            # Large and small in turn, so that a small one could overtake.
            size = 100_000 if index % 2 else 1
            yield StreamGenerateResponse(position=index, started={"request_id": "x" * size})


@pytest.fixture
async def served():
    model = Model()
    server = Server(None, "127.0.0.1:0")
    add_LLMServiceServicer_to_server(model, server)
    async with server:
        yield server, model


@pytest.fixture
def work(monkeypatch):
    """When large messages were transcoded: pairs of times."""
    spans = []

    def timed(convert):
        def convert_timed(descriptor, data, **options):
            began = time.monotonic()
            converted = convert(descriptor, data, **options)
            if max(len(data), len(converted)) > 500_000:
                spans.append((began, time.monotonic()))
            return converted

        return convert_timed

    for name in ("json_to_proto", "proto_to_json"):
        monkeypatch.setattr(transcode, name, timed(getattr(transcode, name)))
    return spans


class Others:
    """Small calls, one after the other."""

    def __init__(self, url):
        self.url = url
        self.spans = []
        self.enough = False

    def during(self, work):
        """How many began and ended while a large message was transcoded."""
        ((start, end),) = work
        return sum(start <= began and ended <= end for began, ended in self.spans)

    async def __aenter__(self):
        self.task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_):
        self.enough = True
        await self.task

    async def run(self):
        while not self.enough:
            began = time.monotonic()
            reply = await post(self.url, f"{SERVICE}/Tokenize", JSON, b'{"text":"small"}')
            assert reply.json() == {"contextLength": 7}
            self.spans.append((began, time.monotonic()))


async def test_a_large_request_does_not_hold_up_other_calls(served, work):
    server, model = served
    messages = [{"role": "user", "parts": [{"text": f"line {index}"}]} for index in range(MANY)]
    body = json.dumps({"messages": messages}).encode()
    async with Others(server.http_url) as others:
        reply = await post(server.http_url, f"{SERVICE}/Generate", JSON, body)
    assert (reply.status, reply.json()) == (200, {"requestId": "done"})
    assert model.received == json_format.Parse(body, GenerateRequest())
    assert others.during(work) > 1


async def test_a_large_reply_does_not_hold_up_other_calls(served, work):
    server, model = served
    async with Others(server.http_url) as others:
        reply = await post(server.http_url, f"{SERVICE}/Tokenize", JSON, b'{"text":"large"}')
    assert reply.status == 200
    assert json_format.Parse(reply.body, TokenizeResponse()) == model.large
    assert others.during(work) > 1


async def test_messages_of_a_stream_keep_their_order_whatever_their_size(served):
    server, _ = served
    reply = await post(server.http_url, f"{SERVICE}/StreamGenerate", "application/connect+json", enveloped(b"{}"))
    assert [json.loads(message).get("position", 0) for message in reply.messages()] == list(range(40))


async def test_errors_of_large_documents_name_the_place(served):
    server, _ = served
    messages = [{"role": "user"}] * MANY + [{"role": 1.5}]
    reply = await post(server.http_url, f"{SERVICE}/Generate", JSON, json.dumps({"messages": messages}).encode())
    assert reply.status == 400
    assert reply.json()["message"].startswith(f"messages[{MANY}].role: expected")


async def test_the_threads_end_with_the_server():
    def threads():
        return {thread for thread in threading.enumerate() if thread.name.startswith(("quill-json", "quill-large"))}

    before = threads()
    model, server = Model(), Server(None, "127.0.0.1:0")
    add_LLMServiceServicer_to_server(model, server)
    async with server:
        await post(server.http_url, f"{SERVICE}/Tokenize", JSON, b'{"text":"large"}')
        text = TokenizeRequest(text="x" * 20_000)
        await post(server.http_url, f"{SERVICE}/Tokenize", JSON, json_format.MessageToJson(text).encode())
        assert len(threads() - before) == 2
    async with asyncio.timeout(20):
        while threads() - before:
            await asyncio.sleep(0.01)
