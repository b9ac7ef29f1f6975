"""Callers that leave: the handler ends, is not taken for complete, and nothing is left behind."""

import gc

from protocol_table.table import case, for_each, for_each_kind


@for_each_kind
def cancelling_while_waiting_ends_the_handler(row, kind):
    seen, completed = row.service.seen, row.service.completed
    ask = {"text": "hang"}
    requests = ask if kind in {"unary", "stream"} else [ask]
    _cancel(row, kind, requests, lambda: row.service.seen > seen)
    assert row.service.completed == completed


@for_each("collect", "chat")
def cancelling_amid_the_requests_is_no_end_of_them(row, kind):
    seen, completed = row.service.seen, row.service.completed
    requests, release = row.another().held({"text": "a"})
    _cancel(row, kind, requests, lambda: row.service.seen > seen, release)
    assert row.service.completed == completed


def ends_the_handler_in_some_way(row, kind):
    """Instead of no end of the requests: the handler may take it for one, and nobody has its reply."""
    seen = row.service.seen
    requests, release = row.another().held({"text": "a"})
    _cancel(row, kind, requests, lambda: row.service.seen > seen, release)


def _cancel(row, kind, requests, when, release=lambda: None):
    caller = row.another()
    steps = caller.cancel(kind, requests, lambda: row.host.until(when))
    next(steps)
    row.idle()
    release()
    assert isinstance(next(steps), caller.cancelled)


@for_each(1, 2)
def closing_a_server_stream_ends_the_handler(row, take):
    completed = row.service.completed
    seen, error = row.caller.run("stream", {"text": "hang", "count": 2}, take=take)
    assert (len(seen), error) == (take, None)
    row.idle()
    assert row.service.completed == completed


@case
def closing_a_bidirectional_stream_ends_the_handler(row):
    seen, error = row.caller.run("chat", {"text": "a"}, {"text": "hang"}, take=1)
    assert (seen, error) == ([{"text": "A"}], None)
    row.idle()


@case
def calls_go_on_after_one_was_cancelled(row):
    """Also where both would have shared a connection."""
    for _ in range(3):
        row.caller.run("stream", {"text": "hang", "count": 1}, take=1)
        assert row.caller.run("unary", {"text": "a"}) == ([{"text": "a"}], None)


@case
def nothing_is_left_behind(row):
    row.caller.close()
    _all_sorts(row)  # what is made once and kept, as C-core's own threads, is made now
    row.idle()
    gc.collect()
    baseline = row.host.counts()
    for _ in range(2):
        _all_sorts(row)
    row.idle()
    gc.collect()
    row.host.until(lambda: all(count <= baseline[name] for name, count in row.host.counts().items()))


def _all_sorts(row):
    caller = type(row.caller)(row.url, **row.cell.options)
    for kind in ("unary", "stream", "collect", "chat"):
        for text in ("a", "fail", "crash"):
            caller.run(kind, {"text": text, "count": 2})
        caller.run(kind, {"text": "hang", "count": 2}, timeout_ms=50)
    caller.run("stream", {"text": "hang", "count": 2}, take=1)
    caller.close()
