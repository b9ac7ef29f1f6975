"""Calls against a real server: the same cases over both protocols, blocking and on an event loop."""

import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2

from client.harness import RAW, ask
from quill import (
    FailedPrecondition,
    InvalidArgument,
    InvalidType,
    InvalidUsage,
    ResponseMetadata,
    RpcError,
    Unimplemented,
)
from quill.errors import Code
from quill.proto import SessionRequest
from support.echo import CANARY, SERVICE, EchoReply, EchoRequest


def test_bytes_go_out_and_bytes_come_back(client):
    request = EchoRequest(text="héllo")
    assert client.call(SERVICE, "Echo", request.SerializeToString()) == EchoReply(text="héllo").SerializeToString()


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_other_kinds_of_bytes_are_bytes(client, kind):
    assert client.call(SERVICE, "Echo", kind(b"\n\x01a")) == b"\n\x01a"


def test_no_bytes_are_the_empty_message(client):
    assert client.call(SERVICE, "Echo", b"") == b""


def test_a_message_goes_out_and_a_message_comes_back(client):
    reply = client.call(SERVICE, "Echo", EchoRequest(text="a"))
    assert reply == EchoReply(text="a")
    assert isinstance(reply, EchoReply)


def test_a_json_object_in_bytes_comes_back_as_json(client):
    assert client.call(SERVICE, "Echo", b'{"text": "h\xc3\xa9"}') == '{"text":"hé"}'.encode()


@pytest.mark.parametrize("request_bytes", [b' {"text": "a"}', b'{"text": "a"', b"[]", b'"a"', b"{"])
def test_what_is_not_wholly_a_json_object_is_protobuf(client, request_bytes):
    with pytest.raises(RpcError) as caught:
        client.call(SERVICE, "Echo", request_bytes)
    assert caught.value.code in {Code.INVALID_ARGUMENT, Code.INTERNAL}


def test_the_codec_decides_where_it_is_given(client):
    assert client.call(SERVICE, "Echo", b' {"text": "a"} ', codec="json") == b'{"text":"a"}'
    with pytest.raises(RpcError):
        client.call(SERVICE, "Echo", b'{"text": "a"}', codec="proto")


def test_a_dict_goes_out_and_a_dict_comes_back(client):
    assert client.call_json(SERVICE, "Echo", {"text": "hé"}) == {"text": "hé"}


def test_a_stream_of_bytes(client):
    replies = client.stream(SERVICE, "Repeat", EchoRequest(text="a", count=3).SerializeToString())
    assert replies == [EchoReply(text="a", index=index).SerializeToString() for index in range(3)]


def test_a_stream_of_messages(client):
    replies = client.stream(SERVICE, "Repeat", EchoRequest(text="a", count=3))
    assert replies == [EchoReply(text="a", index=index) for index in range(3)]


def test_a_stream_of_dicts_has_canonical_json(client):
    replies = client.stream_json(SERVICE, "Repeat", {"text": "a", "count": 2, "fail_after": 0})
    assert replies == [MessageToDict(EchoReply(text="a", index=index)) for index in range(2)]


def test_a_stream_does_not_look_at_its_bytes(client):
    with pytest.raises(RpcError):
        client.stream(SERVICE, "Repeat", b'{"text": "a", "count": 1}')
    assert client.stream(SERVICE, "Repeat", b'{"text": "a", "count": 1}', codec="json") == [b'{"text":"a"}']


def test_an_empty_stream_ends(client):
    assert client.stream(SERVICE, "Repeat", EchoRequest(count=0)) == []


def test_many_messages_come_in_order(client):
    replies = client.stream(RAW, "Stream", ask(count=2000))
    assert replies == [bytes([index % 256]) for index in range(2000)]


def test_headers_and_trailers_of_a_unary_call_are_told(client):
    response = ResponseMetadata()
    client.call_json(SERVICE, "Echo", {}, headers={"X-In-Text": "t", "x-in-bin": b"\x00\xff"}, response=response)
    assert response.headers == ()
    assert response.trailers == (("x-trailer", "there"), ("x-seen", "x-in-bin,x-in-text"), ("x-data-bin", b"\x00\xff"))


def test_headers_and_trailers_of_a_stream_are_told(client):
    response = ResponseMetadata(headers=(("old", "call"),))
    client.stream(SERVICE, "Repeat", EchoRequest(count=1), response=response)
    assert response.headers == (("x-initial", "here"),)
    assert ("x-trailer", "there") in response.trailers


def test_headers_of_a_stream_are_there_with_its_first_message(client):
    response = ResponseMetadata()
    client.stream(SERVICE, "Repeat", EchoRequest(count=3), response=response, take=1)
    assert response.headers == (("x-initial", "here"),)


def test_an_error_carries_its_status_details_and_trailers(client):
    response = ResponseMetadata()
    with pytest.raises(FailedPrecondition, match=r"^FAILED_PRECONDITION: told to fail$") as caught:
        client.call_json(SERVICE, "Echo", {"text": "fail"}, response=response)
    (detail,) = caught.value.details
    assert detail.type_name == "google.rpc.BadRequest"
    assert error_details_pb2.BadRequest.FromString(detail.value).field_violations[0].field == "text"
    assert caught.value.trailers == response.trailers == (("x-trailer", "there"),)
    assert caught.value.__cause__ is None


def test_an_error_after_messages_leaves_the_messages(client):
    received = []
    with pytest.raises(FailedPrecondition, match="told to fail") as caught:
        client.stream(SERVICE, "Repeat", EchoRequest(text="a", count=5, fail_after=2), received=received)
    assert [reply.index for reply in received] == [0, 1]
    assert caught.value.metadata == (("x-initial", "here"),)
    assert len(caught.value.details) == 1


def test_an_internal_error_does_not_tell_what_broke(client):
    with pytest.raises(RpcError) as caught:
        client.call_json(SERVICE, "Echo", {"text": "crash"})
    assert caught.value.code is Code.INTERNAL
    assert CANARY not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize(("service", "method"), [(SERVICE, "Nope"), ("no.such.Service", "Call")])
def test_an_unknown_method_is_unimplemented(client, service, method):
    with pytest.raises(Unimplemented):
        client.call(service, method, b"")
    with pytest.raises(Unimplemented):
        client.stream(service, method, b"")


def test_a_wrong_field_in_json_is_named(client):
    with pytest.raises(InvalidArgument, match="count"):
        client.call_json(SERVICE, "Echo", {"count": "many"})


def test_unknown_fields_of_foreign_services_are_ignored(client):
    assert client.call_json(SERVICE, "Echo", {"text": "a", "later": 1}) == {"text": "a"}


def test_the_server_sees_who_calls(client, host):
    client.call(RAW, "Unary", ask())
    agent = dict(host.raw.metadata[-1])["user-agent"]
    assert agent.startswith("quill-python/")


def test_a_header_of_the_call_replaces_that_of_the_client(client, host):
    client.client.set_header("X-In-A", "client")
    client.client.set_header("X-In-B", "client")
    client.call(RAW, "Unary", ask(), headers={"x-in-a": "call"})
    seen = dict(host.raw.metadata[-1])
    assert (seen["x-in-a"], seen["x-in-b"]) == ("call", "client")
    client.client.remove_header("X-IN-A")
    client.call(RAW, "Unary", ask())
    assert "x-in-a" not in dict(host.raw.metadata[-1])


@pytest.mark.parametrize(
    ("arguments", "kind", "named"),
    [
        ((SERVICE, "Echo", "text"), InvalidType, "bytes"),
        ((SERVICE, "Echo", {"text": "a"}), InvalidType, "call_json"),
        ((SERVICE, "Echo", EchoReply()), InvalidType, "EchoRequest"),
        (("bad service", "Echo", b""), InvalidUsage, "bad service"),
        ((SERVICE, "Echo/", b""), InvalidUsage, "Echo/"),
        ((7, "Echo", b""), InvalidType, "service"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_sent(client, arguments, kind, named):
    with pytest.raises(kind, match=named):
        client.call(*arguments)


def test_a_method_that_streams_is_not_called_and_one_that_does_not_is_not_streamed(client):
    with pytest.raises(InvalidUsage, match="streams its replies: use stream"):
        client.call(SERVICE, "Repeat", EchoRequest())
    with pytest.raises(InvalidUsage, match="answers once: use call"):
        client.stream(SERVICE, "Echo", EchoRequest())
    with pytest.raises(InvalidUsage, match="stream of requests"):
        client.stream("inference.v1.LLMService", "Session", SessionRequest())


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"timeout_ms": 0}, InvalidUsage),
        ({"timeout_ms": -1}, InvalidUsage),
        ({"timeout_ms": 10**10}, InvalidUsage),
        ({"timeout_ms": 1.5}, InvalidType),
        ({"timeout_ms": True}, InvalidType),
        ({"codec": "xml"}, InvalidUsage),
        ({"headers": {"content-type": "x"}}, InvalidUsage),
        ({"headers": {"a": b"x"}}, InvalidType),
        ({"headers": [("a", "x")]}, InvalidType),
        ({"response": {}}, InvalidType),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_sent(client, host, options, kind):
    calls = host.raw.calls
    with pytest.raises(kind):
        client.call(RAW, "Unary", ask(), **options)
    with pytest.raises(kind):
        client.stream(RAW, "Stream", ask(), **options)
    assert host.raw.calls == calls


@pytest.mark.parametrize(
    ("request_dict", "kind"),
    [
        ({"text": b"x"}, InvalidType),
        ({"count": float("nan")}, InvalidUsage),
        ({("a",): 1}, InvalidType),
        (7, InvalidType),
        ('{"text": 1}', InvalidType),
        ({"text": "\ud800"}, InvalidUsage),
    ],
)
def test_what_is_no_json_is_refused(client, request_dict, kind):
    with pytest.raises(kind):
        client.call_json(SERVICE, "Echo", request_dict)
    with pytest.raises(kind):
        client.stream_json(SERVICE, "Repeat", request_dict)


def test_a_list_is_no_request_of_a_method_that_takes_one(client):
    with pytest.raises(InvalidUsage, match="takes one request: pass it itself, without an iterator"):
        client.call_json(SERVICE, "Echo", [])
    with pytest.raises(InvalidType, match="must be a dict"):
        client.call_json(SERVICE, "Echo", "text")


def test_json_over_grpc_needs_a_descriptor_and_says_so(host, drive):
    client = drive(host.url("grpc"))
    with pytest.raises(InvalidUsage, match=r"_pb2.*raw|raw.*_pb2"):
        client.call_json(RAW, "Unary", {})


def test_a_client_over_grpc_may_be_given_an_http_url(host, drive):
    url = f"http://{host.server.grpc_address}"
    client = drive(url, protocol="grpc")
    assert client.call(SERVICE, "Echo", b"\n\x01a") == b"\n\x01a"
    assert "protocol='grpc'" in repr(client.client)
