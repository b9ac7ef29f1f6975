"""Calls with several requests, against servers that know nothing of Quill."""

import asyncio
import gc
import threading

import pytest

from client.harness import LIMIT_S
from client.talk import SERVICE, Talk, struct
from quill import AsyncQuillClient, DeadlineExceeded, FailedPrecondition, InvalidType, InvalidUsage, QuillClient
from quill.client import last_words
from quill.errors import ResourceExhausted


@pytest.fixture(scope="module")
def talk(host):
    with Talk(host) as talk:
        yield talk


@pytest.fixture
def peer(talk, host):
    """The server's side, at rest."""
    host.until(lambda: talk.peer.live == 0)
    talk.peer.seen.clear()
    talk.peer.completed = 0
    return talk.peer


@pytest.fixture(params=["connect", "grpc", "grpc-web"])
def protocol(request):
    return request.param


@pytest.fixture
def client(talk, peer, protocol, drive):
    return drive(talk.urls[protocol], protocol=protocol)


def texts(*words):
    return [struct(text=word) for word in words]


def test_a_stream_of_requests_has_one_reply(client, peer):
    assert client.stream(SERVICE, "Join", texts("a", "b", "c")) == [struct(text="a,b,c")]
    assert peer.completed == 1


def test_bytes_in_are_bytes_out(client):
    requests = (message.SerializeToString() for message in texts("a", "b"))
    assert client.stream(SERVICE, "Join", requests) == [struct(text="a,b").SerializeToString()]


def test_dicts_in_are_dicts_out(client):
    assert client.stream_json(SERVICE, "Join", ({"text": word} for word in "ab")) == [{"text": "a,b"}]


def test_json_bytes_in_are_json_bytes_out(client):
    (reply,) = client.stream(SERVICE, "Join", [b'{"text": "a"}'], codec="json")
    assert reply.replace(b" ", b"") == b'{"text":"a"}'


def test_no_requests_are_a_call_all_the_same(client, peer):
    assert client.stream_json(SERVICE, "Join", []) == [{"text": ""}]
    assert client.stream_json(SERVICE, "Chat", iter(())) == []
    assert peer.completed == 2


def test_each_request_has_its_reply_in_a_dialogue(client):
    words = [f"w{index}" for index in range(300)]
    replies = client.stream_json(SERVICE, "Chat", ({"text": word} for word in words))
    assert [reply["text"] for reply in replies] == [word.upper() for word in words]


def test_large_requests_arrive_whole(client):
    (reply,) = client.stream_json(SERVICE, "Join", ({"text": "x" * 200_000} for _ in range(10)))
    assert len(reply["text"]) == 10 * 200_000 + 9


def test_an_error_of_the_server_ends_the_call_and_closes_the_iterator(client):
    closed = []

    def requests():
        try:
            yield {"text": "fail"}
            for _ in range(100_000):
                yield {"text": "after"}
        finally:
            closed.append(True)

    with pytest.raises(FailedPrecondition, match="told to fail"):
        client.stream_json(SERVICE, "Chat", requests())
    gc.collect()
    wait_for(lambda: closed)


class OwnError(Exception):
    pass


@pytest.mark.parametrize("method", ["Join", "Chat"])
def test_what_the_iterator_raises_comes_out_and_the_server_takes_nothing_for_whole(client, peer, host, method):
    def requests():
        yield {"text": "a"}
        raise OwnError("mine")

    with pytest.raises(OwnError, match="mine"):
        client.stream_json(SERVICE, method, requests())
    host.until(lambda: peer.live == 0)
    assert peer.completed == 0


def test_an_iterator_is_not_touched_before_the_first_read_nor_after_the_end(talk, peer, protocol):
    pulled = []

    def requests():
        pulled.append(1)
        yield {"text": "a"}

    with QuillClient(talk.urls[protocol], protocol=protocol) as client:
        stream = client.stream_json(SERVICE, "Join", requests())
        assert pulled == []
        assert list(stream) == [{"text": "a"}]
        assert list(stream) == []
    assert pulled == [1]


@pytest.mark.parametrize(
    ("requests", "kind", "named"),
    [
        (["text"], InvalidType, "bytes"),
        ([{"text": "a"}], InvalidType, "stream_json"),
        ([struct(text="a"), b""], InvalidType, "one kind"),
        ("text", InvalidType, "bytes"),
    ],
)
def test_a_wrong_request_is_named(client, requests, kind, named):
    with pytest.raises(kind, match=named):
        client.stream(SERVICE, "Chat", requests)


def test_a_request_that_is_too_large_ends_the_call(talk, peer, host, protocol, drive):
    client = drive(talk.urls[protocol], protocol=protocol, max_message_bytes=1000)
    with pytest.raises(ResourceExhausted, match="max_message_bytes is 1000"):
        client.stream(SERVICE, "Join", [struct(text="a").SerializeToString(), bytes(1001)])
    host.until(lambda: peer.live == 0)
    assert peer.completed == 0


def test_the_number_of_requests_must_fit_the_method(client):
    with pytest.raises(InvalidUsage, match="stream of requests: use stream with an iterator"):
        client.stream(SERVICE, "Chat", struct(text="a"))
    with pytest.raises(InvalidUsage, match="takes one request"):
        client.stream(SERVICE, "Echo", texts("a"))


def test_a_deadline_ends_a_call_whose_iterator_waits(talk, peer, host):
    never = threading.Event()

    def requests():
        yield {"text": "a"}
        never.wait(LIMIT_S)

    with QuillClient(talk.urls["grpc"]) as client, pytest.raises(DeadlineExceeded):
        list(client.stream_json(SERVICE, "Join", requests(), timeout_ms=300))
    never.set()
    host.until(lambda: peer.live == 0)
    assert peer.completed == 0


async def test_a_deadline_ends_a_call_whose_asynchronous_iterator_waits(talk, peer, host, protocol):
    closed = asyncio.Event()

    async def requests():
        try:
            yield {"text": "a"}
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with AsyncQuillClient(talk.urls[protocol], protocol=protocol) as client:
        with pytest.raises(DeadlineExceeded):
            async for _ in client.stream_json(SERVICE, "Join", requests(), timeout_ms=300):
                pass
        await asyncio.wait_for(closed.wait(), LIMIT_S)
    await asyncio.to_thread(host.until, lambda: peer.live == 0)
    assert peer.completed == 0


async def test_the_wait_for_the_first_reply_counts_from_the_last_request(talk, peer, protocol):
    async def requests():
        for _ in range(4):
            yield {"text": "a"}
            await asyncio.sleep(0.3)

    async with AsyncQuillClient(talk.urls[protocol], protocol=protocol, timeout_ms=700) as client:
        assert [reply async for reply in client.stream_json(SERVICE, "Join", requests())] == [{"text": "a,a,a,a"}]


def test_the_wait_for_the_first_reply_counts_from_the_last_request_in_threads_too(talk, peer, protocol):
    pause = threading.Event()

    def requests():
        for _ in range(4):
            yield {"text": "a"}
            pause.wait(0.3)

    with QuillClient(talk.urls[protocol], protocol=protocol, timeout_ms=700) as client:
        assert list(client.stream_json(SERVICE, "Join", requests())) == [{"text": "a,a,a,a"}]


def test_a_dialogue_over_grpc_in_threads(talk, peer):
    said = threading.Semaphore(1)

    def requests():
        for word in ("a", "b", "c"):
            said.acquire(timeout=LIMIT_S)
            yield {"text": word}

    heard = []
    with QuillClient(talk.urls["grpc"]) as client:
        for reply in client.stream_json(SERVICE, "Chat", requests()):
            heard.append(reply["text"])
            said.release()
    assert heard == ["A", "B", "C"]


async def test_a_dialogue_over_grpc_on_a_loop(talk, peer):
    said = asyncio.Queue()
    said.put_nowait("a")

    async def requests():
        while (word := await said.get()) is not None:
            yield {"text": word}

    heard = []
    async with AsyncQuillClient(talk.urls["grpc"]) as client:
        async for reply in client.stream_json(SERVICE, "Chat", requests()):
            heard.append(reply["text"])
            said.put_nowait({"A": "b", "B": "c", "C": None}[reply["text"]])
    assert heard == ["A", "B", "C"]


async def test_closing_a_stream_closes_the_iterator_and_ends_the_call(talk, peer, host):
    closed = asyncio.Event()

    async def requests():
        try:
            yield {"text": "a"}
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with AsyncQuillClient(talk.urls["grpc"]) as client:
        async with client.stream_json(SERVICE, "Chat", requests()) as stream:
            assert await anext(stream) == {"text": "A"}
        await asyncio.wait_for(closed.wait(), LIMIT_S)
        await asyncio.to_thread(host.until, lambda: peer.live == 0)
    assert peer.completed == 0


async def test_closing_the_client_closes_the_iterators(talk, peer, protocol):
    closed, pulled = asyncio.Event(), asyncio.Event()

    async def requests():
        try:
            yield {"text": "a"}
            pulled.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    client = AsyncQuillClient(talk.urls[protocol], protocol=protocol)
    reading = asyncio.create_task(anext(client.stream_json(SERVICE, "Join", requests())))
    await asyncio.wait_for(pulled.wait(), LIMIT_S)
    await client.close()
    assert closed.is_set()
    with pytest.raises(Exception, match="closed"):
        await reading


def test_closing_a_stream_in_a_thread_ends_the_call(talk, peer, host):
    pulls = []

    def requests():
        while True:
            pulls.append(1)
            yield {"text": "a"}

    with QuillClient(talk.urls["grpc"]) as client:
        stream = client.stream_json(SERVICE, "Chat", requests())
        assert next(stream) == {"text": "A"}
        stream.close()
        host.until(lambda: peer.live == 0)
        assert list(stream) == []
    assert peer.completed == 0


async def test_the_iterator_is_pulled_no_faster_than_the_server_takes(host, protocol):
    """A TCP server that accepts and never reads: what was pulled is what fits into buffers."""
    pulled = 0

    async def stall(reader, writer):
        await asyncio.Event().wait()

    async def requests():
        nonlocal pulled
        while True:
            pulled += 1
            yield bytes(100_000)

    with host.tcp(stall) as port:
        scheme = "grpc" if protocol == "grpc" else "http"
        async with AsyncQuillClient(f"{scheme}://127.0.0.1:{port}", protocol=protocol) as client:
            with pytest.raises(Exception):  # noqa: B017, PT011 - how it ends is not the point
                await anext(client.stream("a.B", "C", requests(), timeout_ms=1000))
    assert pulled < 200


async def test_an_asynchronous_iterator_needs_the_asynchronous_client(talk, protocol):
    async def requests():
        yield b""

    with (
        QuillClient(talk.urls[protocol], protocol=protocol) as client,
        pytest.raises(InvalidType, match="AsyncQuillClient"),
    ):
        client.stream(SERVICE, "Join", requests())


def wait_for(condition):
    pause = threading.Event()
    for _ in range(int(LIMIT_S / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("did not happen")


async def open_with_a_slow_end(url, protocol, seconds, events):
    """A client with a call that runs, whose requests take so long to end."""

    async def requests():
        try:
            yield texts("a")[0]
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(seconds)
            events.append("ended")

    client = AsyncQuillClient(url, protocol=protocol)
    reading = asyncio.create_task(anext(client.stream(SERVICE, "Join", requests())))
    return client, reading


async def test_closing_a_client_waits_for_the_end_of_requests(talk, peer, protocol):
    events = []
    client, reading = await open_with_a_slow_end(talk.urls[protocol], protocol, 0.3, events)
    await asyncio.to_thread(talk.host.until, lambda: peer.seen)
    await client.close()
    assert events == ["ended"]
    await asyncio.gather(reading, return_exceptions=True)


async def test_closing_a_client_can_be_cancelled(talk, peer, protocol):
    client, reading = await open_with_a_slow_end(talk.urls[protocol], protocol, 60, [])
    await asyncio.to_thread(talk.host.until, lambda: peer.seen)
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(closing, LIMIT_S)
    await asyncio.gather(reading, return_exceptions=True)


async def test_closing_a_client_does_not_wait_for_ever(talk, peer, protocol, monkeypatch):
    monkeypatch.setattr(last_words, "_WAIT_S", 0.1)
    client, reading = await open_with_a_slow_end(talk.urls[protocol], protocol, 60, [])
    await asyncio.to_thread(talk.host.until, lambda: peer.seen)
    await asyncio.wait_for(client.close(), LIMIT_S)
    await asyncio.gather(reading, return_exceptions=True)
