"""Calls with one reply: of a stream of requests, and where a server sends another number of replies."""

import pytest

from client.harness import RAW, ask
from client.talk import SERVICE, Talk, struct
from quill import FailedPrecondition, ResponseMetadata, Unimplemented
from quill.errors import DeadlineExceeded
from support.http2 import GrpcPeer


@pytest.fixture(scope="module")
def talk(host):
    with Talk(host) as talk:
        yield talk


@pytest.fixture(params=["connect", "grpc", "grpc-web"])
def calls(request, talk, drive):
    return drive(talk.urls[request.param], protocol=request.param)


def test_a_stream_of_requests_may_be_called_for_its_one_reply(calls):
    response = ResponseMetadata()
    requests = [struct(text=word) for word in "abc"]
    assert calls.call(SERVICE, "Join", requests, response=response) == struct(text="a,b,c")
    assert response.attempts == 1
    assert (
        calls.call(SERVICE, "Join", (request.SerializeToString() for request in requests[:2]))
        == struct(text="a,b").SerializeToString()
    )
    assert calls.call_json(SERVICE, "Join", [{"text": "a"}, {"text": "b"}]) == {"text": "a,b"}


def test_it_ends_with_the_status_of_the_call(calls):
    with pytest.raises(FailedPrecondition, match="told to fail"):
        calls.call(SERVICE, "Join", [struct(text="a"), struct(text="fail")])


def test_it_ends_at_its_timeout(talk, calls):
    with pytest.raises(DeadlineExceeded, match="did not end within its timeout of 20 ms"):  # the peer takes 50 ms
        calls.call(SERVICE, "Join", [struct(text="a")], timeout_ms=20)


@pytest.mark.parametrize(("count", "said"), [(0, "ended well and has no reply"), (2, "has more than one reply")])
def test_another_number_of_replies_is_told(calls, count, said):
    requests = [struct(text="a")] * count
    with pytest.raises(Unimplemented, match=said):
        calls.call(SERVICE, "Chat", requests)
    with pytest.raises(Unimplemented, match=said):
        calls.call_json(SERVICE, "Chat", [{"text": "a"}] * count)


def test_a_grpc_server_that_answers_well_and_says_nothing_is_told(drive):
    with GrpcPeer() as peer:
        peer.replies["/a.B/C"] = ("identity", b"")
        with pytest.raises(Unimplemented, match="the reply to a unary call has no message"):
            drive(peer.url).call("a.B", "C", b"\x00")


def test_a_client_without_a_timeout_tells_none_and_waits(host, protocol, drive):
    client = drive(host.url(protocol), timeout_ms=None)
    host.raw.metadata.clear()
    assert client.call(RAW, "Unary", ask(bytes=2, sleep_s=0.05)) == bytes(2)
    assert client.stream(RAW, "Stream", ask(count=2)) == [b"\0", b"\1"]
    assert client.client.timeout_ms is None
    with pytest.raises(DeadlineExceeded, match="50 ms"):
        client.call(RAW, "Unary", ask(sleep_s=10), timeout_ms=50)
