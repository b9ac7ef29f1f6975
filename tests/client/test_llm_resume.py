"""client.llm over a service that loses its connections on purpose: what is asked then, and what comes out."""

import asyncio
import os
import threading

import grpc
import pytest

from client.harness import LIMIT_S
from client.test_llm_fold import completed, delta, done, started
from quill import AsyncQuillClient, QuillClient, StreamInterrupted, Unavailable
from quill.errors import Code
from quill.proto import CancelGenerateResponse, LLMServiceServicer, add_LLMServiceServicer_to_server
from quill.server.server import Server

LOST = grpc.StatusCode.UNAVAILABLE
BEGUN = (started(epoch="e1", resumable=True), delta(1, ["a", "b"]))
REST = (delta(3, ["c"]), done(4), completed(5))


class Losing(LLMServiceServicer):
    """Plays one script for each call: messages, seconds to wait, "hang", a status to end with; else it ends with OK."""

    def __init__(self):
        self.script(())

    def script(self, *calls):
        self.calls = list(calls)
        self.asked, self.cancelled = [], []
        self.live = 0

    async def StreamGenerate(self, request, context):  # noqa: N802 - the contract's name
        self.asked.append(request)
        steps = self.calls.pop(0) if self.calls else (grpc.StatusCode.INTERNAL,)
        self.live += 1
        try:
            for step in steps:
                if step == "hang":
                    await asyncio.Event().wait()
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, grpc.StatusCode):
                    await context.abort(step, "as scripted")
                elif isinstance(step, tuple):
                    await context.abort(step[0], "as scripted", (("grpc-retry-pushback-ms", step[1]),))
                else:
                    yield step
        finally:
            self.live -= 1

    async def CancelGenerate(self, request, context):  # noqa: N802 - the contract's name
        self.cancelled.append(request.request_id)
        return CancelGenerateResponse(found=True)

    def resumes(self):
        """Epoch and position of each call; None where it did not resume."""
        options = [request.stream_options for request in self.asked]
        return [(o.resume.epoch, o.resume.next_position) if o.HasField("resume") else None for o in options]


@pytest.fixture(scope="module")
def service(host):
    servicer = Losing()

    async def start():
        server = Server("127.0.0.1:0", "127.0.0.1:0")
        add_LLMServiceServicer_to_server(servicer, server)
        await server.start()
        return server

    server = host.run(start())
    yield server, servicer
    host.run(server.stop(0))


@pytest.fixture(params=["connect", "grpc", "grpc-web"])
def protocol(request):
    return request.param


@pytest.fixture
def url(service, protocol):
    return f"grpc://{service[0].grpc_address}" if protocol == "grpc" else service[0].http_url


@pytest.fixture
def losing(service, url, protocol, drive):
    """A client, after saying what each of its calls meets; and the servicer."""

    def scripted(*calls, **options):
        service[1].script(*calls)
        return drive(url, protocol=protocol, **options), service[1]

    return scripted


@pytest.mark.parametrize("loss", [(LOST,), ()], ids=["UNAVAILABLE", "OK without Completed"])
def test_a_stream_goes_on_and_gives_each_token_once(losing, loss):
    # What the second call repeats was seen before.
    client, servicer = losing((*BEGUN, *loss), (delta(2, ["b", "c"]), *loss), loss or (LOST,), REST[1:])
    stream, deltas = client.generation("p", resume_ttl_ms=20_000, max_tokens=3)
    assert [piece.text for piece in deltas] == ["ab", "c"]
    assert [token.text for piece in deltas for token in piece.tokens] == ["a", "b", "c"]
    whole = client.result(stream)
    assert (whole.text, whole.usage.completion_tokens) == ("abc", 2)
    assert servicer.resumes() == [None, ("e1", 3), ("e1", 4), ("e1", 4)]
    first = servicer.asked[0]
    assert len(first.request_id) == 32
    assert first.stream_options.resume_ttl_ms == 20_000
    for later in servicer.asked[1:]:
        later.stream_options.ClearField("resume")
        assert later == first
    assert servicer.cancelled == []


def test_a_start_that_was_lost_before_it_was_heard_of_is_sent_again(losing):
    client, servicer = losing((LOST,), (*BEGUN, *REST))
    stream, _ = client.generation("p", resume_ttl_ms=20_000)
    assert client.result(stream).text == "abc"
    assert servicer.resumes() == [None, None]
    assert servicer.asked[0] == servicer.asked[1]


@pytest.mark.parametrize("code", [Code.OUT_OF_RANGE, Code.ABORTED, Code.NOT_FOUND, Code.ALREADY_EXISTS])
def test_a_run_that_cannot_be_resumed_interrupts_the_stream(losing, code):
    client, servicer = losing((*BEGUN, LOST), (grpc.StatusCode[code.name],))
    received = []
    with pytest.raises(StreamInterrupted, match="as scripted") as caught:
        client.generation("p", received=received, resume_ttl_ms=20_000)
    interrupted = caught.value
    assert [piece.text for piece in received] == ["ab"]
    assert (interrupted.code, interrupted.text, interrupted.position) == (code, "ab", 3)
    assert (len(interrupted.tokens), interrupted.usage) == (2, None)
    assert interrupted.__cause__.code is code
    assert (len(servicer.asked), servicer.cancelled) == (2, [])


def test_an_unavailable_that_forbids_to_come_back_ends_the_stream(losing):
    client, servicer = losing((*BEGUN, (LOST, "-1")))
    with pytest.raises(StreamInterrupted) as caught:
        client.generation("p", resume_ttl_ms=20_000)
    assert (caught.value.code, caught.value.position) == (Code.UNAVAILABLE, 3)
    assert (len(servicer.asked), servicer.cancelled) == (1, [])


def test_a_server_that_keeps_no_runs_is_not_asked_again(losing):
    client, servicer = losing((started(epoch="e1"), delta(1, ["a"]), LOST))
    with pytest.raises(StreamInterrupted) as caught:
        client.generation("p", resume_ttl_ms=20_000)
    assert (caught.value.code, caught.value.text) == (Code.UNAVAILABLE, "a")
    assert len(servicer.asked) == 1


def test_without_a_ttl_a_loss_is_the_end(losing):
    client, servicer = losing((*BEGUN, LOST))
    with pytest.raises(StreamInterrupted):
        client.generation("p")
    assert (len(servicer.asked), servicer.cancelled) == (1, [])
    assert not servicer.asked[0].HasField("stream_options")


def test_a_gap_after_a_loss_is_no_end_that_is_passed_over(losing):
    client, servicer = losing((*BEGUN, LOST), (delta(5, ["z"]), "hang"))
    with pytest.raises(StreamInterrupted, match="expected entry 3, got entry 5") as caught:
        client.generation("p", resume_ttl_ms=20_000)
    assert (caught.value.code, caught.value.text) == (Code.DATA_LOSS, "ab")
    assert servicer.cancelled == ["r"]


def test_the_ttl_bounds_the_tries(losing):
    client, servicer = losing((*BEGUN, LOST), *((LOST,) for _ in range(1000)))
    with pytest.raises(StreamInterrupted) as caught:
        client.generation("p", resume_ttl_ms=400)
    assert (caught.value.code, caught.value.text, caught.value.position) == (Code.UNAVAILABLE, "ab", 3)
    assert 2 < len(servicer.asked) < 20


def test_the_timeout_bounds_all_calls_together(losing, service, host):
    client, servicer = losing((*BEGUN, LOST), ("hang",))
    with pytest.raises(StreamInterrupted) as caught:
        client.generation("p", resume_ttl_ms=60_000, timeout_ms=600)
    assert (caught.value.code, caught.value.text) == (Code.DEADLINE_EXCEEDED, "ab")
    assert servicer.cancelled == ["r"]
    host.until(lambda: servicer.live == 0)


def test_a_resumed_stream_may_be_silent_as_long_as_any(losing):
    client, _ = losing((*BEGUN, LOST), (1.5, *REST), timeout_ms=500)
    stream, _ = client.generation("p", resume_ttl_ms=20_000)
    assert client.result(stream).text == "abc"


def test_a_resumed_stream_that_stays_silent_is_ended_by_the_idle_timeout(losing):
    client, servicer = losing((*BEGUN, LOST), ("hang",), idle_timeout_ms=300)
    with pytest.raises(StreamInterrupted, match="300 ms") as caught:
        client.generation("p", resume_ttl_ms=20_000)
    assert (caught.value.code, servicer.cancelled) == (Code.DEADLINE_EXCEEDED, ["r"])


def test_closing_early_tells_the_server_that_nobody_comes_back(losing, host):
    client, servicer = losing((*BEGUN, "hang"))
    stream, _ = client.generation("p", take=1, resume_ttl_ms=60_000)
    assert servicer.cancelled == [stream.request_id]
    host.until(lambda: servicer.live == 0)


def test_reading_to_the_end_tells_nothing(losing):
    client, servicer = losing((*BEGUN, *REST))
    client.generation("p", resume_ttl_ms=60_000)
    assert servicer.cancelled == []


def test_a_whole_generation_survives_a_loss(losing):
    client, servicer = losing((*BEGUN, LOST), REST)
    whole = client.generate("p", resume_ttl_ms=20_000, request_id="mine")
    assert (whole.text, whole.request_id) == ("abc", "r")
    assert servicer.resumes() == [None, ("e1", 3)]
    assert servicer.asked[0].request_id == "mine"


def test_a_whole_generation_has_the_timeout_of_a_call(losing):
    client, servicer = losing((*BEGUN, "hang"), timeout_ms=400)
    with pytest.raises(StreamInterrupted, match="400 ms") as caught:
        client.generate("p", resume_ttl_ms=20_000)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert servicer.cancelled == ["r"]


def test_a_server_that_is_not_there_is_asked_as_often_as_for_any_call(drive, protocol):
    scheme = "grpc" if protocol == "grpc" else "http"
    client = drive(f"{scheme}://127.0.0.1:1", protocol=protocol, max_attempts=2)
    with pytest.raises(Unavailable, match="2 attempts") as caught:
        client.generation("p", resume_ttl_ms=60_000)
    assert not isinstance(caught.value, StreamInterrupted)


def test_another_thread_that_closes_is_heard_by_the_server(service, url, protocol):
    _, servicer = service
    servicer.script((*BEGUN, "hang"))
    with QuillClient(url, protocol=protocol) as client:
        stream = client.llm.stream("p", resume_ttl_ms=60_000)
        next(stream)
        closing = threading.Timer(0.05, stream.close)
        closing.start()
        # How the wait ends depends on whether the call or the flag is seen first.
        with pytest.raises((StreamInterrupted, StopIteration)):
            next(stream)
        closing.join(LIMIT_S)
    assert servicer.cancelled == ["r"]


def test_closing_ends_the_wait_before_the_next_try(service, url, protocol):
    _, servicer = service
    servicer.script((*BEGUN, LOST), *((LOST,) for _ in range(1000)))
    with QuillClient(url, protocol=protocol) as client:
        stream = client.llm.stream("p", resume_ttl_ms=3_600_000)
        next(stream)
        closing = threading.Timer(0.3, stream.close)
        closing.start()
        with pytest.raises((StreamInterrupted, StopIteration)):
            next(stream)
        closing.join(LIMIT_S)
        asked = len(servicer.asked)
    assert servicer.cancelled == ["r"]
    assert len(servicer.asked) == asked


@pytest.mark.parametrize("calls", [((*BEGUN, "hang"),), ((*BEGUN, LOST), *((LOST,),) * 1000)], ids=["read", "pause"])
async def test_a_task_that_is_cancelled_tells_the_server(service, url, protocol, calls):
    _, servicer = service
    servicer.script(*calls)
    async with AsyncQuillClient(url, protocol=protocol) as client:
        stream = client.llm.stream("p", resume_ttl_ms=3_600_000)
        await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.2)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert servicer.cancelled == [stream.request_id]
        assert stream.text == "ab"


async def test_a_client_that_is_closed_ends_a_stream_that_would_come_back(service, url, protocol):
    _, servicer = service
    servicer.script((*BEGUN, LOST), *((LOST,),) * 1000)
    client = AsyncQuillClient(url, protocol=protocol)
    stream = client.llm.stream("p", resume_ttl_ms=3_600_000)
    await anext(stream)
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(StreamInterrupted) as caught:
        async with asyncio.timeout(LIMIT_S):
            await reading
    assert (caught.value.code, caught.value.text) == (Code.CANCELLED, "ab")


def test_a_process_that_was_forked_does_not_end_the_run(service):
    server, servicer = service
    servicer.script((*BEGUN, *REST))
    with QuillClient(server.http_url) as client:
        stream = client.llm.stream("p", resume_ttl_ms=60_000)
        next(stream)
        if (child := os.fork()) == 0:
            try:
                stream.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert stream.result().text == "abc"
    assert servicer.cancelled == []
