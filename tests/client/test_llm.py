"""client.llm against the real service, and against one that breaks off."""

import asyncio
import gc

import grpc
import pytest

from client.harness import LIMIT_S
from client.test_llm_fold import completed, delta, done, started
from quill import (
    AsyncQuillClient,
    DeadlineExceeded,
    FinishReason,
    Generation,
    InvalidArgument,
    InvalidUsage,
    NotFound,
    QuillClient,
    ResponseMetadata,
    StreamInterrupted,
    Unavailable,
)
from quill.adapters.ngram.backend import NgramBackend
from quill.errors import Code
from quill.llm.servicer import LLMServicer
from quill.proto import LLMServiceServicer, add_LLMServiceServicer_to_server
from quill.server.server import Server


class Broken(LLMServiceServicer):
    """Streams what a test says; "hang" waits, a status aborts."""

    def __init__(self):
        self.script = []
        self.live = 0

    async def StreamGenerate(self, request, context):  # noqa: N802 - the contract's name
        self.live += 1
        try:
            for step in self.script:
                if step == "hang":
                    await asyncio.Event().wait()
                elif isinstance(step, grpc.StatusCode):
                    await context.abort(step, "broke off")
                else:
                    yield step
        finally:
            self.live -= 1


@pytest.fixture(scope="module")
def services(host):
    """Servers of the real service, with the embedded model, and of the broken one: (server, servicer) each."""
    started_here = []

    async def start(make):
        server, servicer = Server("127.0.0.1:0", "127.0.0.1:0"), make()
        add_LLMServiceServicer_to_server(servicer, server)
        await server.start()
        started_here.append(server)
        return server, servicer

    backend = NgramBackend()

    async def stop():
        for server in started_here:
            await server.stop(0)
        await real[1].aclose()
        await backend.aclose()

    real, broken = host.run(start(lambda: LLMServicer(backend))), host.run(start(Broken))
    yield {"real": real, "broken": broken}
    host.run(stop())


def url_of(server, protocol):
    return server.http_url if protocol == "connect" else f"grpc://{server.grpc_address}"


@pytest.fixture
def real(services, protocol, drive):
    return drive(url_of(services["real"][0], protocol))


@pytest.fixture
def broken(services, protocol, drive):
    """A client of the broken service, and a way to say what it does."""
    server, servicer = services["broken"]

    def script(*steps, **options):
        servicer.script = steps
        return drive(url_of(server, protocol), **options)

    return script


def test_a_stream_and_a_reply_of_one_seed_are_equal(real):
    whole = real.generate("Alice was", max_tokens=12, seed=7, temperature=0.5)
    stream, deltas = real.generation("Alice was", max_tokens=12, seed=7, temperature=0.5)
    assert "".join(piece.text for piece in deltas) == whole.text == stream.text != ""
    assert stream.tokens == whole.tokens
    assert len(whole.tokens) == 12
    assert stream.finish.reason is whole.finish_reason is FinishReason.LENGTH
    assert stream.usage == whole.usage
    assert whole.usage.completion_tokens == 12
    assert stream.timings.total_ms > 0
    assert real.result(stream).choices == whole.choices
    assert stream.model == whole.model


def test_the_client_makes_the_id_of_a_run(real):
    stream, _ = real.generation("Alice", max_tokens=1)
    assert len(stream.request_id) == 32
    assert real.generate("Alice", max_tokens=1, request_id="my-run").request_id == "my-run"


def test_several_sequences(real):
    whole = real.generate("Alice", max_tokens=4, n=3, seed=1)
    assert [choice.sequence_id for choice in whole.choices] == [0, 1, 2]
    stream, _ = real.generation("Alice", max_tokens=4, n=3, seed=1)
    assert real.result(stream).choices == whole.choices


def test_logprobs_come_along(real):
    whole = real.generate("Alice", max_tokens=2, logprobs=2, seed=1)
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in whole.tokens)


def test_a_refusal_is_what_the_server_says(real):
    with pytest.raises(InvalidArgument, match="temperature"):
        real.generate("x", temperature=-1.0)
    with pytest.raises(InvalidArgument, match="temperature"):
        real.generation("x", temperature=-1.0)
    with pytest.raises(NotFound, match="gpt"):
        real.generation("x", model="gpt")
    with pytest.raises(InvalidUsage, match="max_tokns"):
        real.generate("x", max_tokns=1)


def test_models_are_listed(real):
    (model,) = real.models()
    assert model.name == "ngram-alice"
    assert model.ready
    assert model.context_length > 0
    assert "temperature" in model.capabilities
    assert "not an LLM" in model.weights_origin
    assert model.default_sampling["temperature"] > 0


def test_nothing_to_cancel_is_false(real):
    assert real.cancel("no-such-run", reason="test") is False


def test_metadata_of_a_stream_is_told(broken):
    response = ResponseMetadata()
    client = broken(started(), done(1), completed(2))
    stream, deltas = client.generation("x", response=response, headers={"x-in-a": "b"})
    assert (deltas, client.result(stream).text) == ([], "")


def test_a_stream_that_ends_well_leaves_its_connection_usable(broken, services, host):
    client = broken(started(), delta(1, ["a"]), done(2), completed(3))
    for _ in range(3):
        stream, deltas = client.generation("x")
        assert [piece.text for piece in deltas] == ["a"]
        assert client.result(stream).text == "a"
    host.until(lambda: services["broken"][1].live == 0)


def test_a_status_after_completed_changes_nothing(broken):
    client = broken(started(), delta(1, ["a"]), done(2), completed(3), grpc.StatusCode.UNAVAILABLE)
    stream, _ = client.generation("x")
    assert client.result(stream).text == "a"


def test_a_server_that_does_not_hang_up_after_completed_is_not_waited_for_long(broken):
    client = broken(started(), done(1), completed(2), "hang")
    stream, _ = client.generation("x")
    assert client.result(stream).text == ""


@pytest.mark.parametrize(
    ("ending", "code"),
    [((grpc.StatusCode.UNAVAILABLE,), Code.UNAVAILABLE), ((grpc.StatusCode.CANCELLED,), Code.CANCELLED), ((), Code.OK)],
)
def test_a_stream_that_breaks_off_carries_what_came(broken, ending, code):
    client = broken(started(), delta(1, ["a", "b"]), *ending)
    received = []
    with pytest.raises(StreamInterrupted) as caught:
        client.generation("x", received=received)
    interrupted = caught.value
    assert [piece.text for piece in received] == ["ab"]
    assert (interrupted.code, interrupted.text, interrupted.position) == (code, "ab", 3)
    assert len(interrupted.tokens) == 2
    if ending:
        assert interrupted.__cause__.code is code
        assert "broke off" in interrupted.message
    else:
        assert interrupted.__cause__ is None


def test_a_stream_that_breaks_off_before_it_began_is_the_plain_error(broken):
    with pytest.raises(Unavailable, match="broke off") as caught:
        broken(grpc.StatusCode.UNAVAILABLE).generation("x")
    assert not isinstance(caught.value, StreamInterrupted)


def test_an_idle_timeout_interrupts(broken):
    client = broken(started(), delta(1, ["a"]), "hang", idle_timeout_ms=150)
    with pytest.raises(StreamInterrupted, match="150 ms") as caught:
        client.generation("x")
    assert (caught.value.code, caught.value.text) == (Code.DEADLINE_EXCEEDED, "a")


def test_no_first_message_is_the_plain_timeout(broken):
    with pytest.raises(DeadlineExceeded, match="150 ms"):
        broken("hang", timeout_ms=150).generation("x")


def test_a_gap_interrupts_and_cancels_the_call(broken, services, host):
    client = broken(started(), delta(1, ["a"]), delta(9, ["z"]), "hang")
    with pytest.raises(StreamInterrupted, match="expected entry 2, got entry 9") as caught:
        client.generation("x")
    assert (caught.value.code, caught.value.text) == (Code.DATA_LOSS, "a")
    host.until(lambda: services["broken"][1].live == 0)


def test_a_stream_that_is_left_ends_the_run_and_has_no_result(broken, services, host):
    client = broken(started(), delta(1, ["a"]), delta(2, ["b"]), "hang")
    stream, deltas = client.generation("x", take=1)
    assert stream.text == "a"
    host.until(lambda: services["broken"][1].live == 0)
    with pytest.raises(StreamInterrupted, match="closed") as caught:
        client.result(stream)
    assert (caught.value.code, caught.value.text) == (Code.CANCELLED, "a")
    assert len(deltas) == 1


def test_asking_again_for_a_result_that_broke_off_says_the_same(services, protocol):
    server, servicer = services["broken"]
    servicer.script = (started(), delta(1, ["a"]))
    with QuillClient(url_of(server, protocol)) as client:
        stream = client.llm.stream("x")
        assert next(stream).text == "a"
        with pytest.raises(StreamInterrupted) as first:
            next(stream)
        with pytest.raises(StreamInterrupted) as second:
            stream.result()
        assert first.value is second.value
        assert list(stream) == []


def test_leaving_a_generation_with_break_ends_the_run(services, protocol, host):
    server, servicer = services["broken"]
    servicer.script = (started(), delta(1, ["a"]), "hang")
    with QuillClient(url_of(server, protocol)) as client:
        for _ in client.llm.stream("x"):
            break
        gc.collect()
        host.until(lambda: servicer.live == 0)


def test_a_run_can_be_cancelled_by_its_id(services, protocol):
    with QuillClient(url_of(services["real"][0], protocol)) as client:
        stream = client.llm.stream("Alice", max_tokens=2000, ignore_eos=True)
        next(stream)
        found = client.llm.cancel(stream.request_id, reason="enough")
        ended = _ending(stream)
        # The model is fast: the run may have ended before.
        assert (found, type(ended)) in {(True, StreamInterrupted), (False, Generation)}
        if found:
            assert ended.code is Code.CANCELLED
            assert ended.text == stream.text != ""


def _ending(stream):
    try:
        return stream.result()
    except StreamInterrupted as interrupted:
        return interrupted


async def test_cancelling_the_task_of_a_generation_ends_the_run(services, protocol, host):
    server, servicer = services["broken"]
    servicer.script = (started(), delta(1, ["a"]), "hang")
    async with AsyncQuillClient(url_of(server, protocol)) as client:
        stream = client.llm.stream("x")

        async def consume():
            async for _ in stream:
                pass

        task = asyncio.create_task(consume())
        async with asyncio.timeout(LIMIT_S):
            while not stream.text:
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(host.until, lambda: servicer.live == 0)
        assert stream.text == "a"
