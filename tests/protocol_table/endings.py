"""How calls end when they do not end well."""

import socket

import pytest
from google.rpc import error_details_pb2

import quill
from protocol_table.service import UNICODE
from protocol_table.table import case, for_each, for_each_kind
from support.probe import CANARY, SERVICE


def _check(error):
    assert type(error) is quill.FailedPrecondition
    assert error.message == "told to fail"
    (detail,) = error.details
    assert detail.type_name == "google.rpc.BadRequest"
    violation = error_details_pb2.BadRequest.FromString(detail.value).field_violations[0]
    assert (violation.field, violation.description) == ("text", "says fail")
    own = [pair for pair in error.trailers if pair[0].startswith("x-")]
    assert own == [("x-trailer", "there"), ("x-data-bin", b"\x01\xff")]
    assert "grpc-status-details-bin" not in dict(error.trailers)


@for_each_kind
def an_error_before_the_first_message_has_details_and_trailers(row, kind):
    seen, error = row.caller.run(kind, {"text": "fail"})
    assert seen == []
    _check(error)


@case
def an_error_of_a_server_stream_keeps_what_came_before(row):
    seen, error = row.caller.run("stream", {"text": "fail", "count": 2})
    assert [message.get("count", 0) for message in seen] == [0, 1]
    _check(error)


@case
def an_error_of_a_bidirectional_stream_keeps_what_came_before(row):
    seen, error = row.caller.run("chat", {"text": "a"}, {"text": "b"}, {"text": "fail"})
    assert seen == [{"text": "A"}, {"text": "B"}]
    _check(error)


@case
def an_error_amid_the_requests_of_a_client_stream(row):
    seen, error = row.caller.run("collect", {"text": "a"}, {"text": "fail"}, {"text": "b"})
    assert seen == []
    _check(error)


@for_each_kind
def a_status_text_beyond_ascii_comes_as_it_was(row, kind):
    _, error = row.caller.run(kind, {"text": "odd"})
    assert type(error) is quill.Aborted
    assert error.message == UNICODE


@for_each_kind
def a_denying_interceptor_denies(row, kind):
    before = row.service.seen
    seen, error = row.caller.run(kind, {"text": "a", "count": 2}, headers={"x-in-deny": "1"})
    assert seen == []
    assert type(error) is quill.PermissionDenied
    assert error.message == "not for you"
    assert row.service.seen == before


@for_each_kind
def an_exception_in_a_handler_leaks_nothing(row, kind):
    _, error = row.caller.run(kind, {"text": "crash"})
    assert type(error) is quill.Internal
    assert error.message.startswith("internal error; reference ")
    assert CANARY not in repr(error) + str(error) + repr(error.trailers) + repr(error.details)


@for_each((SERVICE, "Nope"), ("no.such.Service", "Unary"))
def what_is_not_there_is_named(row, where):
    with pytest.raises(quill.Unimplemented, match=where[0] if where[0] != SERVICE else where[1]):
        row.caller.bytes(*where, b"")


@case
def a_large_request_that_is_refused_at_once_has_its_status(row):
    """The server answers before it has the request, of which it takes some 256 KiB more over HTTP/1.1."""
    size = 200_000 if row.cell.carrier == "http1" else 5_000_000
    with pytest.raises(quill.Unimplemented, match="Nope"):
        row.caller.bytes(SERVICE, "Nope", bytes(size))


@for_each("collect", "chat")
def a_client_stream_that_is_refused_amid_its_requests_has_its_status(row, kind):
    _, error = row.caller.run(kind, {"text": "fail"}, *[{"text": "a" * 100_000}] * 50)
    _check(error)


@case
def health_is_told(row):
    assert row.caller.health() is True


@case
def a_server_that_is_not_there_is_unreachable(row):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    caller = row.another(f"{row.url.partition(':')[0]}://127.0.0.1:{port}")
    with pytest.raises(quill.Unavailable, match=f"127.0.0.1:{port}") as caught:
        caller.json("inference.v1.LLMService", "ListModels", {}, timeout_ms=5000)
    assert isinstance(caught.value, ConnectionError)
