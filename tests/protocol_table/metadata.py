"""Metadata: requests carry it, replies have it at both ends, values of -bin keys are bytes."""

import quill
from protocol_table.table import for_each, for_each_kind

INITIAL = [("x-initial", "here"), ("x-initial-bin", b"\x00\xfe")]
HEADERS = {"x-in-text": "v", "x-in-bin": b"\x00\xff"}


def _own(pairs):
    return [pair for pair in pairs if pair[0].startswith("x-")]


@for_each_kind
def metadata_goes_both_ways(row, kind):
    response = quill.ResponseMetadata()
    _, error = row.caller.run(kind, {"text": "a", "count": 1}, headers=HEADERS, response=response)
    assert error is None
    assert _own(response.headers) == INITIAL
    assert _own(response.trailers)[:3] == [
        ("x-trailer", "there"),
        ("x-seen", "x-in-bin,x-in-text"),
        ("x-data-bin", b"\x00\xff"),
    ]


@for_each("stream", "chat")
def initial_metadata_is_there_with_the_first_message_and_trailers_are_not(row, kind):
    """The handler then hangs: what is there came before the end of the call."""
    asks = [{"text": "hang", "count": 1}] if kind == "stream" else [{"text": "a"}, {"text": "hang"}]
    _, headers, trailers = row.caller.first(kind, *asks, response=quill.ResponseMetadata())
    assert _own(headers) == INITIAL
    assert trailers == ()
    row.idle()


@for_each_kind
def a_call_that_fails_has_its_initial_metadata(row, kind):
    response = quill.ResponseMetadata()
    _, error = row.caller.run(kind, {"text": "fail"}, response=response)
    assert error is not None
    assert _own(response.headers) == INITIAL
    assert _own(response.trailers) == _own(error.trailers)


@for_each("stream", "chat")
def a_stream_without_messages_has_its_metadata(row, kind):
    assert a_stream_without_messages_has_its_trailers(row, kind) == INITIAL


def a_stream_without_messages_has_its_trailers(row, kind):
    """Instead of its headers, which may be lost; returns what there is of them."""
    asks = [{"text": "a", "count": 0}] if kind == "stream" else []
    response = quill.ResponseMetadata()
    replies, error = row.caller.run(kind, *asks, response=response)
    assert (replies, error) == ([], None)
    assert _own(response.trailers)[0] == ("x-trailer", "there")
    return _own(response.headers)
