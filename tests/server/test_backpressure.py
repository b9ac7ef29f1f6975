"""A reader that stops: the backend is at most so many bytes ahead, and not for ever."""

import asyncio

import pytest

import quill
from quill.limits import Limits
from quill.llm import LLMServicer, ModelInfo, Timeouts, Tokens
from quill.proto import add_LLMServiceServicer_to_server

TOKEN = b"x" * 8192
JOURNAL_BYTES = 256 * 1024
TRANSPORT_BYTES = {"grpc": 4 << 20, "connect": 12 << 20}
"""Between the journal and the reader, at most. gRPC: windows of HTTP/2, which follow the line. HTTP/1.1: the kernel's
receive buffer of the client, 6 MiB at most where the system's defaults hold, and a little in front of it."""


class Eager:
    """As many tokens as are taken."""

    name = "eager"

    def __init__(self):
        self.told = 0
        self.live = 0

    def models(self):
        return [ModelInfo(name="eager", weights_origin="none")]

    async def generate(self, request, *, model):
        self.live += 1
        try:
            while True:
                yield Tokens(data=[TOKEN])
                self.told += 1
                await asyncio.sleep(0)  # so that each is a message, and fills what is between, too
        finally:
            self.live -= 1

    async def aclose(self):
        pass


@pytest.fixture(params=["grpc", "connect"])
async def stopped(request):
    """A stream whose reader took one token and stops; the backend; the protocol."""
    backend = Eager()
    limits = Limits(max_journal_bytes=JOURNAL_BYTES)
    servicer = LLMServicer(backend, limits=limits, timeouts=Timeouts(reader_stall_timeout_s=3.0))
    server = quill.Server("127.0.0.1:0", "127.0.0.1:0", limits=limits)
    add_LLMServiceServicer_to_server(servicer, server)
    async with server:
        url = server.http_url if request.param == "connect" else f"grpc://{server.grpc_address}"
        client = quill.AsyncQuillClient(url)
        async with client, client.llm.stream("go", max_tokens=1_000_000) as stream:
            await anext(stream)
            yield stream, backend, request.param
        await servicer.aclose()


async def test_a_backend_is_bounded_in_bytes_ahead_of_its_reader(stopped, record_property):
    _, backend, protocol = stopped
    told = -1
    async with asyncio.timeout(60):
        while told != (told := backend.told):
            await asyncio.sleep(0.5)
    ahead = told * len(TOKEN)
    record_property("bytes_ahead", ahead)
    assert JOURNAL_BYTES // 2 <= ahead <= JOURNAL_BYTES + TRANSPORT_BYTES[protocol]


async def test_a_run_that_nobody_reads_ends_and_its_reader_is_told(stopped):
    stream, backend, _ = stopped
    async with asyncio.timeout(60):
        while backend.live:
            await asyncio.sleep(0.05)
    with pytest.raises(quill.StreamInterrupted, match="nobody read from it for 3 s") as caught:
        async for _ in stream:
            pass
    assert caught.value.code is quill.Code.ABORTED
    assert len(caught.value.text) >= JOURNAL_BYTES // 2
