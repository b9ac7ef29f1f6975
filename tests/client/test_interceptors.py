"""Interceptors: those of docs/interceptors.md as they stand there, and the rules, on every protocol and client."""

import asyncio
import gc
import logging
import re
from pathlib import Path

import grpc
import pytest

from client.harness import RAW, Host, ask
from quill import (
    CallInfo,
    Cancelled,
    Code,
    InvalidType,
    InvalidUsage,
    PermissionDenied,
    ResponseMetadata,
    RpcError,
    Unauthenticated,
    Unavailable,
)
from quill.client import last_words
from quill.client.async_client import AsyncQuillClient
from quill.client.sync_client import QuillClient

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/interceptors.md"
CANARY = "canary-55d0"


def from_document(name):
    """A class or function as the document defines it."""
    text = DOCUMENT.read_text()
    source = re.search(rf"^(?:class|def) {name}\b.*?(?=^\S|^```)", text, re.DOTALL | re.MULTILINE)[0]
    assert len([line for line in source.splitlines() if line.strip()]) < 20
    scope = {}
    exec("import logging, time, quill\n" + source, scope)  # noqa: S102 - the document's own code
    return scope[name]


class Guarded(grpc.aio.ServerInterceptor):
    """Lets calls with the newest token in, to the raw service, and notes what it was shown."""

    def __init__(self):
        self.tokens = []
        self.valid = None

    async def intercept_service(self, continuation, details):
        metadata = dict(details.invocation_metadata)
        if details.method.startswith(f"/{RAW}/"):
            self.tokens.append(metadata.get("authorization"))
            if self.valid is not None and metadata.get("authorization") != f"Bearer {self.valid}":
                raise Unauthenticated("the token has run out")
        return await continuation(details)


@pytest.fixture(scope="module")
def host():
    guard = Guarded()
    with Host(interceptors=[guard]) as host:
        host.guard = guard
        yield host


@pytest.fixture(autouse=True)
def _fresh(host):
    host.guard.valid = None
    host.guard.tokens.clear()


@pytest.fixture(params=["connect", "grpc", "grpc-web"])
def protocol(request):
    return request.param


@pytest.fixture
def connect(host, protocol, drive):
    return lambda *interceptors, **options: drive(
        host.url("connect" if protocol != "grpc" else "grpc"),
        protocol=protocol,
        interceptors=list(interceptors),
        **options,
    )


@pytest.fixture(params=["unary", "stream"])
def how(request):
    def call(client, **options):
        if request.param == "unary":
            return [client.call(RAW, "Unary", ask(bytes=3), **options)]
        return client.stream(RAW, "Stream", ask(count=2, bytes=3), **options)

    call.replies = 1 if request.param == "unary" else 2
    return call


class Recorder:
    """Notes what it sees."""

    def __init__(self, name="", log=None):
        self.name = name
        self.log = [] if log is None else log
        self.calls = []
        self.outcomes = []

    def __call__(self, call):
        self.log.append(f"{self.name} begins")
        self.calls.append(call)
        outcome = yield call
        self.outcomes.append(outcome)
        self.log.append(f"{self.name} ends")


def test_the_documents_logger_logs(connect, how, caplog):
    caplog.set_level(logging.WARNING, "calls")
    how(connect(from_document("log_calls")))
    kind = "Unary" if how.replies == 1 else "Stream"
    expected = rf"/{RAW}/{kind}: OK, {how.replies} replies of {how.replies * 3} bytes in \d+ ms"
    assert re.fullmatch(expected, caplog.messages[0])


def test_the_documents_token_is_refreshed_once(host, connect, how):
    tokens = iter(["old", "new", "newest"])
    client = connect(from_document("BearerToken")(lambda: next(tokens)))
    assert len(how(client)) == how.replies
    host.guard.valid = "new"
    assert len(how(client)) == how.replies
    assert host.guard.tokens == ["Bearer old", "Bearer old", "Bearer new"]
    host.guard.valid = "none"
    with pytest.raises(Unauthenticated, match=r"^UNAUTHENTICATED: the token has run out$"):
        how(client)
    assert host.guard.tokens[3:] == ["Bearer new", "Bearer newest"]


async def test_the_documents_asynchronous_token_is_refreshed_once(host, protocol):
    tokens = iter(["old", "new"])

    async def fetch():
        await asyncio.sleep(0.01)
        return next(tokens)

    host.guard.valid = "new"
    async with async_client(host, protocol, from_document("AsyncBearerToken")(fetch)) as client:
        assert await client.call(RAW, "Unary", ask(bytes=2)) == bytes(2)
        assert [reply async for reply in client.stream(RAW, "Stream", ask(count=2))] == [b"\0", b"\1"]
    assert host.guard.tokens == ["Bearer old", "Bearer new", "Bearer new"]


class Span:
    def __init__(self, name):
        self.name = name
        self.attributes = {}
        self.exceptions = []
        self.ended = 0

    def set_attribute(self, key, value):
        self.attributes[key] = value

    def record_exception(self, error):
        self.exceptions.append(error)

    def end(self):
        self.ended += 1


class Tracer:
    def __init__(self):
        self.spans = []

    def start_span(self, name):
        self.spans.append(Span(name))
        return self.spans[-1]


def test_the_documents_spans_end_with_their_calls(host, connect, how):
    tracer = Tracer()
    client = connect(from_document("Tracing")(tracer, lambda headers: headers.update(traceparent="00-1-2-01")))
    how(client)
    (span,) = tracer.spans
    assert (span.ended, span.attributes["rpc.grpc.status_code"], span.exceptions) == (1, 0, [])
    assert span.name.startswith(f"{RAW}/")
    assert dict(host.raw.metadata[-1])["traceparent"] == "00-1-2-01"
    host.guard.valid = "none"
    with pytest.raises(Unauthenticated) as caught:
        how(client)
    assert (tracer.spans[1].ended, tracer.spans[1].attributes["rpc.grpc.status_code"]) == (1, 16)
    assert tracer.spans[1].exceptions == [caught.value]


def test_a_span_ends_when_its_stream_is_left_early(host, connect):
    tracer = Tracer()
    client = connect(from_document("Tracing")(tracer))
    assert client.stream(RAW, "Stream", ask(count=3, hang=True), take=2) == [b"\0", b"\1"]
    (span,) = tracer.spans
    assert (span.ended, span.attributes["rpc.grpc.status_code"]) == (1, Code.CANCELLED.value)
    host.until(lambda: host.raw.live == 0)


def test_a_stream_that_nobody_closes_ends_for_its_interceptor_too(host, protocol):
    seen = Recorder()
    with sync_client(host, protocol, seen) as client:
        for _ in client.stream(RAW, "Stream", ask(count=3, hang=True)):
            break
        gc.collect()
        host.until(lambda: host.raw.live == 0)
        client.call(RAW, "Unary", ask())
        assert [outcome.code for outcome in seen.outcomes] == [Code.CANCELLED, Code.OK]
        assert seen.outcomes[0].messages == 1


def test_no_interceptor_runs_inside_the_garbage_collector(host, protocol):
    events = []

    def watch(call):
        try:
            outcome = yield call
            events.append(outcome.code)
        finally:
            events.append("finally")

    with sync_client(host, protocol, watch) as client:
        stream = client.stream(RAW, "Stream", ask(count=3, hang=True))
        next(stream)
        stream.myself = stream  # in a cycle, as with any object that keeps its stream
        del stream
        gc.collect()
        assert events == []
        host.until(lambda: host.raw.live == 0)
    assert events == [Code.CANCELLED, "finally"]


async def test_an_asynchronous_stream_that_nobody_closes_ends_for_its_interceptor_too(host, protocol):
    events = []

    async def watch(call):
        try:
            outcome = yield call
            events.append(outcome.code)
        finally:
            events.append("finally")

    async with async_client(host, protocol, watch) as client:
        stream = client.stream(RAW, "Stream", ask(count=3, hang=True))
        await anext(stream)
        stream.myself = stream
        del stream
        gc.collect()
        assert events == []
        await asyncio.to_thread(host.until, lambda: host.raw.live == 0)
    assert events == [Code.CANCELLED, "finally"]


def test_an_interceptor_that_yields_after_success_is_ended_with_its_call(connect, how):
    events = []

    def insist(call):
        try:
            yield call
            yield call
        finally:
            events.append("ended")

    with pytest.raises(InvalidUsage, match="second time"):
        how(connect(insist))
    assert events == ["ended"]


async def test_an_asynchronous_interceptor_that_yields_after_success_is_ended_with_its_call(host, protocol):
    events = []

    async def insist(call):
        try:
            yield call
            yield call
        finally:
            await asyncio.sleep(0)
            events.append("ended")

    async with async_client(host, protocol, insist) as client:
        with pytest.raises(InvalidUsage, match="second time"):
            await client.call(RAW, "Unary", ask())
        assert events == ["ended"]
        with pytest.raises(InvalidUsage, match="second time"):
            [message async for message in client.stream(RAW, "Stream", ask())]
        assert events == ["ended"] * 2


async def test_interceptors_that_are_late_share_one_wait_and_are_ended(host, protocol, monkeypatch):
    monkeypatch.setattr(last_words, "_WAIT_S", 0.5)
    events = []

    async def linger(call):
        try:
            yield call
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            events.append("ended")

    client = async_client(host, protocol, *[linger] * 8)
    stream = client.stream(RAW, "Stream", ask(hang=True))
    await anext(stream)
    await stream.aclose()
    start = asyncio.get_running_loop().time()
    await client.close()
    assert asyncio.get_running_loop().time() - start < 8 * 0.5
    assert events == ["ended"] * 8


def test_the_first_interceptor_is_the_outermost(connect, how):
    log = []
    how(connect(Recorder("a", log), Recorder("b", log)))
    assert log == ["a begins", "b begins", "b ends", "a ends"]


def test_a_call_and_its_outcome_are_told(host, connect, how, protocol):
    seen = Recorder()
    client = connect(seen, headers={"x-mine": "1"})
    client.client.set_bearer_token(CANARY)
    told = ResponseMetadata()
    how(client, timeout_ms=9000, response=told)
    (call,), (outcome,) = seen.calls, seen.outcomes
    assert (call.service, call.protocol, call.timeout_ms) == (RAW, protocol, 9000)
    assert call.streaming is (how.replies == 2)
    assert call.request_bytes == len(ask(bytes=3) if how.replies == 1 else ask(count=2, bytes=3))
    assert call.headers == {"x-mine": "1", "authorization": f"Bearer {CANARY}"}
    assert (outcome.code, outcome.error, outcome.attempts) == (Code.OK, None, 1)
    assert (outcome.messages, outcome.message_bytes) == (how.replies, how.replies * 3)
    assert (outcome.headers, outcome.trailers) == (told.headers, told.trailers)
    assert CANARY not in repr(call) + repr(outcome) + str(call)


def test_headers_and_timeout_can_be_changed(host, connect, how):
    def change(call):
        yield call.with_headers({"X-Added": "2"}).with_timeout(7000)

    seen = Recorder()
    how(connect(change, seen))
    assert (seen.calls[0].timeout_ms, seen.calls[0].headers["x-added"]) == (7000, "2")
    assert dict(host.raw.metadata[-1])["x-added"] == "2"


def test_a_changed_timeout_counts(connect):
    def hurry(call):
        yield call.with_timeout(200)

    with pytest.raises(RpcError, match="timeout of 200 ms"):
        connect(hurry).call(RAW, "Unary", ask(sleep_s=30))


def test_a_call_can_be_denied(host, connect, how):
    def deny(call):
        raise PermissionDenied("not from here")
        yield call

    calls = host.raw.calls
    with pytest.raises(PermissionDenied, match="not from here"):
        how(connect(deny))
    assert host.raw.calls == calls


def test_an_error_cannot_be_swallowed_but_replaced(host, connect, how):
    def swallow(call):
        yield call

    def replace(call):
        outcome = yield call
        if outcome.code is not Code.OK:
            raise PermissionDenied(f"was {outcome.code.name}")

    host.guard.valid = "none"
    with pytest.raises(Unauthenticated):
        how(connect(swallow))
    with pytest.raises(PermissionDenied, match="was UNAUTHENTICATED"):
        how(connect(replace))


def test_retries_happen_inside(connect, how, protocol, drive):
    seen = Recorder()
    scheme = "grpc" if protocol == "grpc" else "http"
    client = drive(f"{scheme}://127.0.0.1:1", protocol=protocol, interceptors=[seen], max_attempts=2)
    with pytest.raises(Unavailable, match="2 attempts"):
        how(client)
    assert len(seen.calls) == 1
    assert (seen.outcomes[0].attempts, seen.outcomes[0].code) == (2, Code.UNAVAILABLE)


def test_a_stream_is_not_made_again_after_its_first_message(host, connect):
    def stubborn(call):
        outcome = yield call
        while outcome.code is not Code.OK:
            outcome = yield call

    calls = host.raw.calls
    with pytest.raises(RpcError, match="idle_timeout_ms"):
        connect(stubborn, idle_timeout_ms=200).stream(RAW, "Stream", ask(count=1, hang=True))
    assert host.raw.calls == calls + 1


def test_secrets_of_an_interceptor_do_not_cross_a_network_in_clear_text(drive, protocol, how):
    def leak(call):
        yield call.with_headers({"authorization": f"Bearer {CANARY}"})

    scheme = "grpc" if protocol == "grpc" else "http"
    client = drive(f"{scheme}://192.0.2.1:1", protocol=protocol, interceptors=[leak])
    with pytest.raises(InvalidUsage, match="authorization would go to") as caught:
        how(client)
    assert CANARY not in str(caught.value)


def test_a_reserved_header_is_refused_where_it_is_added(connect, how):
    def forge(call):
        yield call.with_headers({"grpc-timeout": "1S"})

    with pytest.raises(InvalidUsage, match="reserved"):
        how(connect(forge))


def none_at_all(call):
    return
    yield call


def twice(call):
    yield call
    yield call


def another(call):
    yield CallInfo(**{name: getattr(call, name) for name in CallInfo.__slots__} | {"service": "other.v1.Other"})


def nonsense(call):
    yield "call"


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (none_at_all, InvalidUsage, "must yield the call"),
        (twice, InvalidUsage, "a second time"),
        (another, InvalidUsage, "headers and timeout_ms only"),
        (nonsense, InvalidType, "got str"),
        (lambda call: call, InvalidType, "generator function"),
    ],
)
def test_an_interceptor_that_breaks_the_rules_is_told(connect, how, wrong, error, text):
    with pytest.raises(error, match=text):
        how(connect(wrong))


async def asynchronous(call):
    yield call


@pytest.mark.parametrize(
    ("value", "text"), [([asynchronous], "AsyncQuillClient"), ([1], "generator function"), (1, "a list")]
)
def test_a_client_refuses_what_is_no_interceptor(value, text):
    with pytest.raises(InvalidType, match=text):
        QuillClient("http://localhost:1", interceptors=value)


def test_health_goes_without_interceptors(connect):
    seen = Recorder()
    assert connect(seen).health_check()
    assert seen.calls == []


async def test_a_cancelled_task_is_told_to_asynchronous_interceptors(host, protocol):
    seen = []

    async def watch(call):
        outcome = yield call
        await asyncio.sleep(0)
        seen.append(outcome)

    async with async_client(host, protocol, watch) as client:
        task = asyncio.create_task(client.call(RAW, "Unary", ask(sleep_s=60)))
        calls = host.raw.calls
        await asyncio.to_thread(host.until, lambda: host.raw.calls > calls)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [outcome.code for outcome in seen] == [Code.CANCELLED]
        stream = client.stream(RAW, "Stream", ask(hang=True))
        await anext(stream)
        await stream.aclose()
    assert [outcome.code for outcome in seen] == [Code.CANCELLED] * 2


async def test_closing_while_another_task_reads_ends_both(host, protocol):
    seen = Recorder()
    async with async_client(host, protocol, seen) as client:
        stream = client.stream(RAW, "Stream", ask(hang=True))
        await anext(stream)
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.05)
        await stream.aclose()
        with pytest.raises(Cancelled):
            await reading
    assert [outcome.code for outcome in seen.outcomes] == [Code.CANCELLED]


async def test_an_interceptor_that_fails_after_the_reader_left_is_logged(host, protocol, caplog):
    def fail(call):
        yield call
        raise ValueError("late")

    async with async_client(host, protocol, fail) as client, client.stream(RAW, "Stream", ask(hang=True)) as stream:
        await anext(stream)
    assert "failed after its call was given up" in caplog.text


def sync_client(host, protocol, *interceptors):
    url = host.url("grpc" if protocol == "grpc" else "connect")
    return QuillClient(url, protocol=protocol, interceptors=list(interceptors))


def async_client(host, protocol, *interceptors):
    url = host.url("grpc" if protocol == "grpc" else "connect")
    return AsyncQuillClient(url, protocol=protocol, interceptors=list(interceptors))
