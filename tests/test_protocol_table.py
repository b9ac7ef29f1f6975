"""The same cases over every protocol, sync and async: what is seen must be equal, cell by cell."""

import asyncio
import threading
import time
from contextlib import suppress

import pytest
from google.rpc import error_details_pb2

import quill
from quill.server.server import Server
from support import echo as echo_service
from support.echo import CANARY, SERVICE, Deny, Echo, EchoReply, EchoRequest

CELLS = [(protocol, style) for protocol in ("grpc", "connect") for style in ("sync", "async")]


class Host:
    """A server on a loop of its own, in a thread: the callers under test block their own thread."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.echo, self.server = self.run(self._start())
        self.urls = {"grpc": "grpc://" + self.server.grpc_address, "connect": self.server.http_url}

    async def _start(self):
        echo = Echo()
        server = Server(grpc="127.0.0.1:0", http="127.0.0.1:0", interceptors=[Deny()])
        echo_service.add_to_server(echo, server)
        await server.start()
        return echo, server

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def close(self):
        self.run(self.server.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture(scope="module")
def host():
    host = Host()
    yield host
    host.close()


class SyncCaller:
    def __init__(self, url):
        self.client = quill.QuillClient(url)

    def unary(self, *args, **kwargs):
        return self.client.call_json(*args, **kwargs)

    def call(self, *args, **kwargs):
        return self.client.call(*args, **kwargs)

    def stream(self, *args, take=None, **kwargs):
        seen = []
        with self.client.stream_json(*args, **kwargs) as stream:
            try:
                for message in stream:
                    seen.append(message)
                    if len(seen) == take:
                        break
            except quill.QuillError as error:
                return seen, error
        return seen, None

    def health(self):
        return self.client.health_check()

    def close(self):
        self.client.close()


class AsyncCaller:
    def __init__(self, url):
        self.loop = asyncio.new_event_loop()
        self.client = quill.AsyncQuillClient(url)

    def unary(self, *args, **kwargs):
        return self.loop.run_until_complete(self.client.call_json(*args, **kwargs))

    def call(self, *args, **kwargs):
        return self.loop.run_until_complete(self.client.call(*args, **kwargs))

    def stream(self, *args, take=None, **kwargs):
        async def collect():
            seen = []
            async with self.client.stream_json(*args, **kwargs) as stream:
                try:
                    async for message in stream:
                        seen.append(message)
                        if len(seen) == take:
                            break
                except quill.QuillError as error:
                    return seen, error
            return seen, None

        return self.loop.run_until_complete(collect())

    def health(self):
        return self.loop.run_until_complete(self.client.health_check())

    def close(self):
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


@pytest.fixture(params=CELLS, ids="-".join)
def caller(request, host):
    protocol, style = request.param
    caller = {"sync": SyncCaller, "async": AsyncCaller}[style](host.urls[protocol])
    yield caller
    caller.close()


def failure(function, *args, **kwargs):
    with pytest.raises(quill.QuillError) as caught:
        function(*args, **kwargs)
    return caught.value


def test_unary_with_json(caller):
    assert caller.unary(SERVICE, "Echo", {"text": "hé"}) == {"text": "hé"}


def test_unary_with_protobuf_bytes(caller):
    reply = caller.call(SERVICE, "Echo", EchoRequest(text="x").SerializeToString())
    assert EchoReply.FromString(reply).text == "x"


def test_unary_with_a_message(caller):
    reply = caller.call(SERVICE, "Echo", EchoRequest(text="x"))
    assert isinstance(reply, EchoReply)
    assert reply.text == "x"


def test_unary_with_json_bytes(caller):
    assert caller.call(SERVICE, "Echo", b'{"text": "x"}') == b'{"text":"x"}'


def test_server_streaming_keeps_order(caller):
    seen, error = caller.stream(SERVICE, "Repeat", {"text": "a", "count": 3})
    assert seen == [{"text": "a"}, {"text": "a", "index": 1}, {"text": "a", "index": 2}]
    assert error is None


def test_an_empty_stream_ends_well(caller):
    assert caller.stream(SERVICE, "Repeat", {"text": "a"}) == ([], None)


def check_details(error):
    assert isinstance(error, quill.FailedPrecondition)
    assert error.message == "told to fail"
    (detail,) = error.details
    assert detail.type_name == "google.rpc.BadRequest"
    violation = error_details_pb2.BadRequest.FromString(detail.value).field_violations[0]
    assert (violation.field, violation.description) == ("text", "says fail")
    assert [pair for pair in error.trailers if pair[0].startswith("x-")] == [("x-trailer", "there")]
    assert "grpc-status-details-bin" not in dict(error.trailers)


def test_a_unary_error_has_its_details_and_trailers(caller):
    check_details(failure(caller.unary, SERVICE, "Echo", {"text": "fail"}))


def test_a_stream_error_keeps_what_came_before(caller):
    seen, error = caller.stream(SERVICE, "Repeat", {"text": "a", "count": 5, "failAfter": 2})
    assert [message.get("index", 0) for message in seen] == [0, 1]
    check_details(error)


def test_metadata_goes_and_trailers_come_back(caller):
    response = quill.ResponseMetadata()
    headers = {"x-in-text": "v", "x-in-bin": b"\x00\xff"}
    caller.unary(SERVICE, "Echo", {"text": "a"}, headers=headers, response=response)
    assert [pair for pair in response.trailers if pair[0].startswith("x-")] == [
        ("x-trailer", "there"),
        ("x-seen", "x-in-bin,x-in-text"),
        ("x-data-bin", b"\x00\xff"),
    ]


def test_stream_metadata_comes_at_both_ends(caller):
    response = quill.ResponseMetadata()
    caller.stream(SERVICE, "Repeat", {"text": "a", "count": 1}, headers={"x-in-text": "v"}, response=response)
    assert ("x-initial", "here") in response.headers
    assert ("x-seen", "x-in-text") in response.trailers


def test_a_unary_deadline_ends_the_call(caller):
    start = time.monotonic()
    error = failure(caller.unary, SERVICE, "Echo", {"text": "hang"}, timeout_ms=200)
    assert isinstance(error, quill.DeadlineExceeded)
    assert isinstance(error, TimeoutError)
    assert time.monotonic() - start < 0.2 * 5 + 1


def test_a_stream_deadline_ends_the_stream_and_keeps_what_came(caller):
    seen, error = caller.stream(SERVICE, "Repeat", {"text": "hang", "count": 2}, timeout_ms=300)
    assert len(seen) == 2
    assert isinstance(error, quill.DeadlineExceeded)


@pytest.mark.parametrize("take", [1, 2])
def test_closing_a_stream_ends_the_handler(caller, host, take):
    host.loop.call_soon_threadsafe(host.echo.ended.clear)
    seen, error = caller.stream(SERVICE, "Repeat", {"text": "hang", "count": 2}, take=take)
    assert (len(seen), error) == (take, None)
    host.run(asyncio.wait_for(host.echo.ended.wait(), 5))
    assert host.echo.live == 0


def test_a_denying_interceptor_denies_unary(caller):
    error = failure(caller.unary, SERVICE, "Echo", {"text": "a"}, headers={"x-in-deny": "1"})
    assert isinstance(error, quill.PermissionDenied)
    assert error.message == "not for you"


def test_a_denying_interceptor_denies_streams(caller):
    seen, error = caller.stream(SERVICE, "Repeat", {"text": "a", "count": 2}, headers={"x-in-deny": "1"})
    assert seen == []
    assert isinstance(error, quill.PermissionDenied)
    assert error.message == "not for you"


def test_an_exception_in_a_handler_leaks_nothing(caller):
    error = failure(caller.unary, SERVICE, "Echo", {"text": "crash"})
    assert isinstance(error, quill.Internal)
    assert error.message.startswith("internal error; reference ")
    assert CANARY not in repr(error) + str(error) + repr(error.trailers) + repr(error.details)


@pytest.mark.parametrize(
    ("service", "method", "named"),
    [(SERVICE, "Nope", "Nope"), ("no.such.Service", "Echo", "no.such.Service")],
)
def test_unknown_methods_are_named(caller, service, method, named):
    error = failure(caller.call, service, method, b"")
    assert isinstance(error, quill.Unimplemented)
    assert named in error.message


@pytest.mark.parametrize(("field", "value"), [("count", "many"), ("text", 5), ("count", 2**40)])
def test_a_mistyped_json_field_is_named(caller, field, value):
    error = failure(caller.unary, SERVICE, "Echo", {field: value})
    assert isinstance(error, quill.InvalidArgument)
    assert field in error.message


def test_health(caller):
    assert caller.health() is True


def test_a_dead_server_is_unreachable(caller, unused_tcp_port):
    scheme = "grpc" if caller.client.base_url.startswith("grpc") else "http"
    dead = type(caller)(f"{scheme}://127.0.0.1:{unused_tcp_port}")
    try:
        error = failure(dead.unary, "inference.v1.LLMService", "ListModels", {}, timeout_ms=5000)
    finally:
        with suppress(Exception):
            dead.close()
    assert isinstance(error, quill.Unavailable)
    assert isinstance(error, ConnectionError)
    assert f"127.0.0.1:{unused_tcp_port}" in error.message
