"""Deadlines: the client's own, and what the server knows and says of them."""

import quill
from protocol_table.table import for_each, for_each_kind


@for_each_kind
def a_deadline_ends_the_call_and_its_handler(row, kind):
    seen, error = row.caller.run(kind, {"text": "hang", "count": 2}, timeout_ms=1000)
    assert len(seen) == (2 if kind == "stream" else 0)
    assert type(error) is quill.DeadlineExceeded
    assert isinstance(error, TimeoutError)
    assert "1000 ms" in error.message
    row.idle()


@for_each_kind
def the_server_knows_the_deadline(row, kind):
    response = quill.ResponseMetadata()
    row.caller.run(kind, {"text": "a", "count": 1}, timeout_ms=60_000, response=response)
    assert 0 < int(dict(response.trailers)["x-left-ms"]) < 61_000  # C-core rounds up


@for_each("stream", "collect", "chat")
def a_stream_has_no_deadline_unless_it_is_given_one(row, kind):
    response = quill.ResponseMetadata()
    row.caller.run(kind, {"text": "a", "count": 1}, response=response)
    assert dict(response.trailers)["x-left-ms"] == "none"


@for_each_kind
def a_deadline_of_the_servers_own_is_told_in_its_words(row, kind):
    _, error = row.caller.run(kind, {"text": "late"}, timeout_ms=60_000)
    assert type(error) is quill.DeadlineExceeded
    assert error.message == "the engine was too slow"


@for_each("stream", "chat")
def a_gap_that_is_too_long_ends_the_stream(row, kind):
    caller = row.another(idle_timeout_ms=300)
    asks = [{"text": "hang", "count": 1}] if kind == "stream" else [{"text": "a"}, {"text": "hang"}]
    seen, error = caller.run(kind, *asks)
    assert len(seen) == 1
    assert type(error) is quill.DeadlineExceeded
    assert "idle_timeout_ms" in error.message
    row.idle()
