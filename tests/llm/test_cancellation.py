"""Whatever ends a run, its backend is told once and nothing is left behind."""

import asyncio
import logging
from contextlib import asynccontextmanager, suppress

import grpc
import pytest

from llm.scripted import LIMIT_S, MODEL, ScriptedBackend, failure, finished, served, tokens, until
from quill.errors import Cancelled, Unavailable
from quill.limits import Limits
from quill.llm import ModelInfo, Timeouts
from quill.llm.runs import RunTable
from quill.principal import ANONYMOUS, Principal, current_principal
from quill.proto import CancelGenerateRequest, GenerateRequest, LLMServiceStub

REQUEST = GenerateRequest(prompt="p", request_id="mine")


async def cancel(stub, request_id="mine"):
    return (await stub.CancelGenerate(CancelGenerateRequest(request_id=request_id), timeout=LIMIT_S)).found


def script_with_gate(place):
    """Three tokens and an end, with a gate before the event at ``place``: where the run stands when it is ended."""
    gate = asyncio.Event()
    steps = [tokens("a"), tokens("b"), tokens("c"), finished()]
    return [*steps[:place], gate, *steps[place:]]


@pytest.fixture(params=range(5), ids=["token-0", "token-1", "token-2", "terminal", "after-terminal"])
def place(request):
    return request.param


@pytest.fixture(params=["StreamGenerate", "Generate"])
def method(request):
    return request.param


class Tasks:
    """The tasks that run, against those that ran before."""

    def __init__(self):
        self.before = asyncio.all_tasks()

    def left(self):
        return [task for task in asyncio.all_tasks() - self.before if task.get_name().startswith("run ")]


async def test_an_explicit_cancel_ends_either_call_with_cancelled(method, place):
    backend = ScriptedBackend(script_with_gate(place))
    async with served(backend) as (_, stub):
        tasks = Tasks()
        call = asyncio.ensure_future(failure(getattr(stub, method)(REQUEST)))
        await until(lambda: backend.told == place and backend.running)
        assert await cancel(stub)
        assert (backend.running, backend.aborts) == (0, 1), "found means that the backend has been told"
        error, messages = await call
        assert not await cancel(stub)
        await until(lambda: not tasks.left())
    assert error.code() == grpc.StatusCode.CANCELLED
    assert error.details() == "run 'mine' was cancelled by CancelGenerate"
    assert "".join(message.delta.text for message in messages) == "abc"[:place] * (method == "StreamGenerate")
    assert (backend.starts, backend.closes, backend.aborts) == (1, 1, 1)


async def test_a_client_that_cancels_its_call_ends_the_run(method, place):
    backend = ScriptedBackend(script_with_gate(place))
    async with served(backend) as (_, stub):
        tasks = Tasks()
        call = getattr(stub, method)(REQUEST)
        reading = asyncio.ensure_future(failure(call))
        await until(lambda: backend.told == place and backend.running)
        call.cancel()
        await until(lambda: backend.closes and not tasks.left())
        await asyncio.wait({reading}, timeout=LIMIT_S)
        assert reading.cancelled()
        assert not await cancel(stub)
    assert (backend.starts, backend.closes, backend.aborts) == (1, 1, 1)


async def test_a_deadline_of_the_caller_ends_the_run(method):
    backend = ScriptedBackend([tokens("a"), asyncio.Event()])
    async with served(backend) as (_, stub):
        tasks = Tasks()
        error, _ = await failure(getattr(stub, method)(REQUEST, timeout=0.2))
        await until(lambda: backend.closes and not tasks.left())
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert backend.aborts == 1


@asynccontextmanager
async def relayed(address):
    """A relay before a server: its address, and the connections that it holds, to be broken."""
    host, port = address.rsplit(":", 1)
    open_writers, tasks = [], []

    async def copy(reader, writer):
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)

    async def accept(reader, writer):
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        open_writers.extend([writer, upstream_writer])
        tasks.append(asyncio.ensure_future(copy(reader, upstream_writer)))
        tasks.append(asyncio.ensure_future(copy(upstream_reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", open_writers
        for writer in open_writers:
            writer.close()
    await asyncio.gather(*tasks)


async def test_a_connection_that_is_reset_ends_the_run():
    backend = ScriptedBackend([tokens("a"), asyncio.Event()])
    async with served(backend) as (_, stub), relayed(stub.address) as (address, connections):
        tasks = Tasks()
        async with grpc.aio.insecure_channel(address) as channel:
            reading = asyncio.ensure_future(failure(LLMServiceStub(channel).StreamGenerate(REQUEST)))
            await until(lambda: backend.told)
            for connection in list(connections):
                connection.transport.abort()
            started_s = asyncio.get_running_loop().time()
            await until(lambda: backend.closes and not tasks.left())
            assert asyncio.get_running_loop().time() - started_s < 1.25, "five times the 250 ms that are promised"
            error, _ = await reading
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert (backend.starts, backend.aborts) == (1, 1)


async def test_a_client_that_stopped_reading_and_goes_away_ends_the_run():
    """The handler is then blocked in a send, and learns of the end as GeneratorExit."""
    backend = ScriptedBackend(lambda _: [*(tokens("x" * 20_000) for _ in range(200)), asyncio.Event()], models=(FREE,))
    async with served(backend, limits=Limits(max_journal_bytes=100_000)) as (_, stub):
        tasks = Tasks()
        call = stub.StreamGenerate(GenerateRequest(prompt="p", max_tokens=10_000))
        await call.read()
        told = -1
        while told != backend.told:  # until the transport and the journal are full
            told = backend.told
            await asyncio.sleep(0.05)
        assert told < 200
        call.cancel()
        await until(lambda: backend.closes and not tasks.left())
    assert (backend.starts, backend.closes, backend.aborts) == (1, 1, 1)


FREE = ModelInfo(name="free", default_max_tokens=10)


async def test_fifty_cancels_are_one_abort_and_return_when_the_backend_has_been_told():
    gate = asyncio.Event()
    backend = ScriptedBackend([asyncio.Event()], on_close=gate.wait)
    table = RunTable(backend, Limits(), Timeouts())
    table.start(ANONYMOUS, REQUEST, MODEL)
    await backend.was_running.wait()
    cancels = asyncio.gather(*(table.cancel(ANONYMOUS, "mine", "") for _ in range(50)))
    await until(lambda: backend.closes)
    assert not cancels.done()
    gate.set()
    assert await cancels == [True] * 50
    assert (backend.starts, backend.closes, backend.aborts) == (1, 1, 1)


async def test_a_cancel_of_an_unknown_run_finds_nothing_and_one_without_an_id_is_refused():
    async with served(ScriptedBackend()) as (_, stub):
        assert not await cancel(stub, "other")
        error, _ = await failure(stub.CancelGenerate(CancelGenerateRequest()))
    assert (error.code(), 'request_id=""' in error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_a_second_start_of_a_live_id_joins_it_or_is_refused_and_starts_nothing():
    gate = asyncio.Event()
    backend = ScriptedBackend([gate, tokens("a")])
    async with served(backend) as (_, stub):
        first = asyncio.ensure_future(stub.Generate(REQUEST))
        await backend.was_running.wait()
        noted = GenerateRequest(prompt="p", request_id="mine", metadata={"a": "b"})
        noted.stream_options.SetInParent()
        same = asyncio.ensure_future(stub.Generate(noted))
        other, _ = await failure(stub.Generate(GenerateRequest(prompt="q", request_id="mine")))
        gate.set()
        assert await first == await same
    assert other.code() == grpc.StatusCode.ALREADY_EXISTS
    assert other.details() == "run 'mine' is already running with other parameters; use another request_id"
    assert backend.starts == 1


class Named(grpc.aio.ServerInterceptor):
    """Sets the principal from the metadata, as a server with authentication does."""

    async def intercept_service(self, continuation, details):
        current_principal.set(Principal(dict(details.invocation_metadata).get("who", "anonymous")))
        return await continuation(details)


async def test_principals_cannot_cancel_each_other_and_may_use_the_same_ids():
    backend = ScriptedBackend([asyncio.Event()])
    async with served(backend, interceptors=[Named()]) as (_, stub):
        calls = [
            asyncio.ensure_future(failure(stub.StreamGenerate(REQUEST, metadata=[("who", who)])))
            for who in ("alice", "bob")
        ]
        await until(lambda: backend.running == 2)
        wanted = CancelGenerateRequest(request_id="mine")
        assert not (await stub.CancelGenerate(wanted, metadata=[("who", "mallory")])).found
        assert (await stub.CancelGenerate(wanted, metadata=[("who", "bob")])).found
        error, _ = await calls[1]
        assert error.code() == grpc.StatusCode.CANCELLED
        assert (backend.running, calls[0].done()) == (1, False)
        assert (await stub.CancelGenerate(wanted, metadata=[("who", "alice")])).found
        await calls[0]


async def test_closing_lets_runs_end_within_the_grace_and_ends_the_rest():
    gate = asyncio.Event()
    backend = ScriptedBackend(lambda asked: [tokens("a"), gate if asked.prompt == "short" else asyncio.Event()])
    async with served(backend) as (servicer, stub):
        tasks = Tasks()
        short = asyncio.ensure_future(stub.Generate(GenerateRequest(prompt="short")))
        long = asyncio.ensure_future(failure(stub.StreamGenerate(GenerateRequest(prompt="long", request_id="long"))))
        await until(lambda: backend.told == 2)
        closing = asyncio.ensure_future(servicer.aclose(0.2))
        await asyncio.sleep(0)
        refused, _ = await failure(stub.Generate(REQUEST))
        gate.set()
        assert (await short).text == "a"
        await closing
        assert (backend.running, backend.aborts, tasks.left()) == (0, 1, [])
        error, messages = await long
    assert refused.code() == error.code() == grpc.StatusCode.UNAVAILABLE
    assert error.details() == "the server is shutting down; run 'long' ended at entry 2"
    assert messages[-1].delta.text == "a"


async def test_closing_with_nothing_running_returns_at_once_and_again():
    async with served(ScriptedBackend()) as (servicer, _):
        async with asyncio.timeout(LIMIT_S):
            await servicer.aclose(3600)
            await servicer.aclose(3600)


async def test_a_backend_that_hangs_when_it_is_told_is_left(caplog):
    backend = ScriptedBackend([tokens("a"), asyncio.Event()], on_close=asyncio.Event().wait)
    async with served(backend, timeouts=Timeouts(backend_close_timeout_s=0.05)) as (_, stub):
        tasks = Tasks()
        call = asyncio.ensure_future(failure(stub.StreamGenerate(REQUEST)))
        await until(lambda: backend.told)
        assert await cancel(stub)
        error, _ = await call
        await until(lambda: not tasks.left())
    assert error.code() == grpc.StatusCode.CANCELLED


async def test_a_cancel_does_not_interrupt_a_backend_that_is_being_told_already():
    gate, told = asyncio.Event(), asyncio.Event()

    async def tell():
        await gate.wait()
        told.set()

    backend = ScriptedBackend([tokens("a"), tokens("END"), tokens("b")], on_close=tell)
    table = RunTable(backend, Limits(), Timeouts())
    run = table.start(ANONYMOUS, GenerateRequest(prompt="p", request_id="mine", stop=["END"]), MODEL)
    await until(lambda: backend.closes)
    cancelling = asyncio.ensure_future(table.cancel(ANONYMOUS, "mine", "changed my mind"))
    await asyncio.sleep(0)
    gate.set()
    async with asyncio.timeout(LIMIT_S):
        assert await cancelling
    assert told.is_set()
    reader = run.journal.follow()
    await anext(reader)
    with pytest.raises(Cancelled, match="was cancelled by CancelGenerate"):
        await anext(reader)


async def test_a_backend_that_hangs_when_a_stop_ended_it_does_not_keep_the_reply(caplog):
    backend = ScriptedBackend([tokens("a"), tokens("END"), tokens("b")], on_close=asyncio.Event().wait)
    with caplog.at_level(logging.ERROR, "quill.llm"):
        async with served(backend, timeouts=Timeouts(backend_close_timeout_s=0.05)) as (_, stub):
            reply = await stub.Generate(GenerateRequest(prompt="p", stop=["END"]), timeout=LIMIT_S)
    assert reply.text == "a"
    assert "did not take the end of a run within 0.05 s" in caplog.text


async def test_a_backend_that_fails_when_it_is_told_changes_no_reply(caplog):
    async def fail():
        raise RuntimeError("engine said no")

    backend = ScriptedBackend([tokens("a"), tokens("END"), tokens("b")], on_close=fail)
    with caplog.at_level(logging.ERROR, "quill.llm"):
        async with served(backend) as (_, stub):
            reply = await stub.Generate(GenerateRequest(prompt="p", stop=["END"]))
    assert reply.text == "a"
    assert "engine said no" in caplog.text


async def test_a_backend_that_fails_when_it_is_cancelled_was_cancelled_all_the_same():
    async def fail():
        raise RuntimeError("engine said no")

    backend = ScriptedBackend([tokens("a"), asyncio.Event()], on_close=fail)
    async with served(backend) as (_, stub):
        call = asyncio.ensure_future(failure(stub.Generate(REQUEST)))
        await until(lambda: backend.told)
        assert await cancel(stub)
        error, _ = await call
    assert error.code() == grpc.StatusCode.CANCELLED


class Deaf:
    """A backend that swallows its cancellation and goes on. No engine should; a careless adapter may."""

    name = "deaf"

    def __init__(self):
        self.told = 0
        self.closed = False

    def models(self):
        return (MODEL,)

    async def generate(self, request, *, model):
        try:
            for _ in range(50):
                try:
                    await asyncio.sleep(0.02)
                except asyncio.CancelledError:
                    asyncio.current_task().uncancel()
                self.told += 1
                yield tokens("a")
        finally:
            self.closed = True


async def test_a_backend_that_ignores_its_cancellation_is_closed_at_its_next_event():
    backend = Deaf()
    async with served(backend) as (_, stub):
        call = asyncio.ensure_future(failure(stub.StreamGenerate(REQUEST)))
        await until(lambda: backend.told == 2)
        assert await cancel(stub)
        error, _ = await call
    assert error.code() == grpc.StatusCode.CANCELLED
    assert backend.closed
    assert backend.told <= 4


async def test_a_cancellation_that_escapes_from_a_backend_is_an_internal_error():
    async def fail():
        raise asyncio.CancelledError

    async with served(ScriptedBackend([tokens("a"), fail])) as (_, stub):
        error, _ = await failure(stub.Generate(REQUEST))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert error.details().startswith("internal error; reference ")


async def test_a_cancel_between_the_sequences_of_a_run_starts_no_more():
    backend = ScriptedBackend(script_with_gate(2))
    async with served(backend) as (_, stub):
        call = asyncio.ensure_future(failure(stub.Generate(GenerateRequest(prompt="p", request_id="mine", n=5))))
        await until(lambda: backend.told == 2)
        assert await cancel(stub)
        await call
    assert (backend.starts, backend.aborts) == (1, 1)


async def test_a_run_that_is_ended_before_its_task_began_never_starts_the_backend():
    backend = ScriptedBackend([tokens("a")])
    table = RunTable(backend, Limits(), Timeouts())
    run = table.start(ANONYMOUS, REQUEST, MODEL)
    with run.follow() as reader:
        run.abort(Cancelled("never mind"))
        await run.wait()
        with pytest.raises(Cancelled, match="never mind"):
            await anext(reader)
    assert backend.starts == 0
    assert not await table.cancel(ANONYMOUS, "mine", "")


async def test_a_run_lives_while_one_of_two_readers_does():
    gate = asyncio.Event()
    backend = ScriptedBackend([tokens("a"), gate, tokens("b")])
    run = RunTable(backend, Limits(), Timeouts()).start(ANONYMOUS, REQUEST, MODEL)
    with run.follow() as staying:
        with run.follow() as leaving:
            await anext(leaving)
        gate.set()
        async with asyncio.timeout(LIMIT_S):
            entries = [entry async for _, batch in staying for entry in batch]
    assert len(entries) == 5
    assert backend.aborts == 0


async def test_a_run_that_lost_its_event_loop_tells_its_readers():
    """What asyncio.run does at its end: it cancels every task."""
    backend = ScriptedBackend([asyncio.Event()])
    run = RunTable(backend, Limits(), Timeouts()).start(ANONYMOUS, REQUEST, MODEL)
    await backend.was_running.wait()
    with run.follow() as reader:
        run._task.cancel()
        await run.wait()
        await anext(reader)
        with pytest.raises(Unavailable, match="shutting down"):
            await anext(reader)
    assert backend.aborts == 1


@pytest.mark.parametrize("ends", ["itself", "cancelled"])
async def test_a_generator_is_asked_and_closed_in_one_task(ends):
    """Scopes that a backend opens, such as asyncio.timeout or those of anyio, belong to the task that entered them."""
    tasks = []

    class Backend(ScriptedBackend):
        async def generate(self, request, *, model):
            tasks.append(asyncio.current_task())
            try:
                async with asyncio.timeout(LIMIT_S):
                    async for event in super().generate(request, model=model):
                        tasks.append(asyncio.current_task())
                        yield event
            finally:
                tasks.append(asyncio.current_task())

    script = [tokens("a"), tokens("b"), finished()] if ends == "itself" else [tokens("a"), tokens("b"), asyncio.Event()]
    backend = Backend(script)
    table = RunTable(backend, Limits(), Timeouts())
    run = table.start(ANONYMOUS, REQUEST, MODEL)
    await until(lambda: backend.told >= 2)
    if ends == "cancelled":
        run.abort(Cancelled("enough"))
    await asyncio.wait_for(run.wait(), LIMIT_S)
    await table.aclose(0)
    assert len(tasks) > 3
    assert len(set(tasks)) == 1
    assert backend.closes == 1
