"""Whoever counts tokens is told once how many a run used, however it ends."""

import asyncio

import grpc
import pytest

from llm.scripted import ScriptedBackend, failure, finished, served, tokens, until
from quill.generation import Usage
from quill.llm import UsageReport
from quill.principal import token_meter
from quill.proto import GenerateRequest


class Metering(grpc.aio.ServerInterceptor):
    """Sets the meter, as a server does before it enters a servicer."""

    def __init__(self):
        self.told = []

    async def intercept_service(self, continuation, details):
        token_meter.set(self.told.append)
        return await continuation(details)


@pytest.fixture
def meter():
    return Metering()


async def test_tokens_that_the_engine_counted_are_told(meter):
    backend = ScriptedBackend([tokens("a"), tokens("b"), UsageReport(Usage(7, 5)), finished()])
    async with served(backend, interceptors=[meter]) as (_, stub):
        await stub.Generate(GenerateRequest(prompt="p"))
        assert meter.told == [12]
        async for _ in stub.StreamGenerate(GenerateRequest(prompt="p")):
            pass
    assert meter.told == [12, 12]


async def test_tokens_that_nobody_counted_are_estimated(meter):
    async with served(ScriptedBackend([tokens("a", "b", "c"), finished()]), interceptors=[meter]) as (_, stub):
        await stub.Generate(GenerateRequest(prompt="p" * 40))
    assert meter.told == [10 + 3]


async def test_a_run_that_is_cut_off_is_paid_for(meter):
    backend = ScriptedBackend([tokens("a"), tokens("b"), asyncio.Event()])
    async with served(backend, interceptors=[meter]) as (_, stub):
        call = stub.StreamGenerate(GenerateRequest(prompt="p" * 40))
        await until(lambda: backend.told == 2)
        call.cancel()
        await until(lambda: meter.told == [10 + 2])


async def test_a_run_that_fails_is_paid_for(meter):
    async with served(ScriptedBackend([tokens("a"), RuntimeError("x")]), interceptors=[meter]) as (_, stub):
        await failure(stub.Generate(GenerateRequest(prompt="pppp")))
    assert meter.told == [1 + 1]


async def test_a_request_that_is_refused_costs_nothing(meter):
    async with served(ScriptedBackend([finished()]), interceptors=[meter]) as (_, stub):
        await failure(stub.Generate(GenerateRequest(prompt="p", temperature=-1)))
    assert meter.told == []
