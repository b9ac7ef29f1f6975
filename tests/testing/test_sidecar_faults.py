"""Faults of the sidecar, one by one, as plain clients see them."""

import json
import time

import httpx
import pytest
import websockets.exceptions
from websockets.sync.client import connect

from quill.testing.sidecar.faults import Fault, Faults

POINTS = {
    "broadcast": ("POST", "/broadcast-work"),
    "pop": ("GET", "/pop-result?request_id=sdk-1"),
    "health": ("GET", "/health"),
    "topology": ("GET", "/topology"),
    "peers": ("GET", "/peers"),
    "latency-profile": ("GET", "/metrics/latency-profile"),
}
WORK = {"request_id": "sdk-1", "prompt_context": "Alice was", "min_tokens": 4, "max_new_tokens": 4}
ASKED = {"request_id": "sdk-1", "prompt": "Alice was", "max_new_tokens": 4}


def call(peer, point, **options):
    method, path = POINTS[point]
    return peer.http.request(method, path, json=WORK if method == "POST" else None, **options)


def fault(peer, on, kind, **details):
    peer.process.set_faults({"on": on, "kind": kind, **details})


def stream(peer, asked=ASKED):
    """The raw messages of a WebSocket, and what closed it: a code, or None without a close frame."""
    with connect(peer.process.websocket_url, proxy=None, open_timeout=30) as websocket:
        websocket.send(json.dumps(asked))
        messages = []
        try:
            while True:
                messages.append(websocket.recv(timeout=60))
        except websockets.exceptions.ConnectionClosed as closed:
            return messages, None if closed.rcvd is None else closed.rcvd.code


def tokens(peer):
    """The text of the tokens of a WebSocket without faults."""
    peer.process.set_faults()
    return [json.loads(one) for one in stream(peer)[0]]


@pytest.mark.parametrize("point", ["broadcast", "pop", "health"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429, 500, 503])
def test_a_status(b, point, status):
    fault(b, point, "status", status=status, next=1, retry_after_s=7 if status == 429 else None)
    reply = call(b, point)
    assert reply.status_code == status
    assert reply.headers.get("retry-after") == ("7" if status == 429 else None)
    assert call(b, point).status_code == 200


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("html", lambda reply: reply.headers["content-type"].startswith("text/html")),
        ("list", lambda reply: reply.json() == []),
        ("missing_result", lambda reply: reply.json() == {}),
        ("empty", lambda reply: reply.content == b""),
        ("redirect", lambda reply: reply.is_redirect and reply.headers["location"] == "/elsewhere"),
    ],
)
@pytest.mark.parametrize("point", ["broadcast", "pop", "health"])
def test_another_body(a, point, kind, check):
    fault(a, point, kind, next=1)
    assert check(call(a, point))
    assert not check(call(a, point))


def test_malformed_json(a):
    fault(a, "pop", "malformed")
    with pytest.raises(json.JSONDecodeError):
        call(a, "pop").json()


def test_a_body_of_any_size(a):
    fault(a, "pop", "huge", size_bytes=3_000_000)
    assert 3_000_000 <= len(call(a, "pop").content) < 3_001_000


def test_a_redirect_goes_where_it_is_sent(a):
    fault(a, "pop", "redirect", location="http://127.0.0.1:1/there")
    assert call(a, "pop").headers["location"] == "http://127.0.0.1:1/there"


def test_a_delay_and_another_fault_come_together(a):
    a.process.set_faults(
        {"on": "pop", "kind": "delay", "delay_ms": 100},
        {"on": "pop", "kind": "delay", "delay_ms": 100},
        {"on": "pop", "kind": "status", "status": 503},
        {"on": "pop", "kind": "html"},
    )
    begun_s = time.monotonic()
    assert call(a, "pop").status_code == 503
    assert time.monotonic() - begun_s >= 0.2
    assert a.process.report()["faults"][3]["seen"] == 0


def test_a_slow_drip_is_the_right_reply_byte_by_byte(a):
    fault(a, "health", "drip", delay_ms=1)
    begun_s = time.monotonic()
    with a.http.stream("GET", "/health") as reply:
        chunks = list(reply.iter_raw())
    assert json.loads(b"".join(chunks))["status"] == "ok"
    assert time.monotonic() - begun_s >= 0.001 * len(b"".join(chunks))


def test_a_reply_that_is_cut(a):
    fault(a, "health", "truncate", next=1)
    with pytest.raises(httpx.RemoteProtocolError):
        call(a, "health")
    assert call(a, "health").status_code == 200


@pytest.mark.parametrize("point", POINTS)
def test_a_connection_that_closes_without_a_reply(b, point):
    fault(b, point, "close", next=1)
    with pytest.raises(httpx.TransportError):
        call(b, point)
    assert call(b, point).status_code == 200


def test_a_lost_reply_loses_a_token_only_where_it_was_handled(a):
    a.broadcast(max_new_tokens=4)
    a.until(lambda report: report["results"] == 5)
    for handled, left in ((False, 5), (True, 4)):
        fault(a, "pop", "close", next=1, handled=handled)
        with pytest.raises(httpx.TransportError):
            call(a, "pop")
        assert a.process.report()["results"] == left
    for kind in ("status", "malformed", "html"):
        fault(a, "pop", kind, next=1, handled=True)
        call(a, "pop")
        left -= 1
        assert a.process.report()["results"] == left


def test_a_prompt_is_queued_only_where_it_was_handled(a):
    for handled in (False, True):
        fault(a, "broadcast", "status", next=1, handled=handled)
        assert a.broadcast(f"sdk-handled-{handled}").status_code == 500
        assert (f"sdk-handled-{handled}" in a.process.report()["request_ids"]) is handled


def test_only_polls_that_find_something_count(a):
    fault(a, "pop", "status", hits=True, next=1)
    for _ in range(3):
        assert call(a, "pop").status_code == 200
    a.broadcast(max_new_tokens=1)
    a.until(lambda report: report["results"] == 2)
    assert call(a, "pop").status_code == 500
    assert len(a.results(2)) == 2


def test_a_foreign_result_in_a_reply(c):
    fault(c, "pop", "foreign", next=1)
    assert call(c, "pop").json()["result"]["request_id"].startswith("foreign")
    assert call(c, "pop").json() == {"result": None}


@pytest.mark.parametrize("seq", [False, True])
@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("drop", [0, 2, 3]),
        ("duplicate", [0, 1, 1, 2, 3]),
        ("reorder", [0, 2, 1, 3]),
        ("foreign", [0, "stranger", 1, 2, 3]),
    ],
)
def test_a_token_on_both_transports(a, kind, order, seq):
    a.process.behave(number_field="seq" if seq else "none")
    clean = tokens(a)
    expected = [{"request_id": "foreign-1", "token": " stray"} if at == "stranger" else clean[at] for at in order]
    fault(a, "frame", kind, after=1, next=1)
    assert [json.loads(one) for one in stream(a)[0]] == [*expected, {"event": "done"}]
    fault(a, "item", kind, after=1, next=1)
    call(a, "broadcast")
    assert a.results(len(order) + 1) == [*expected, {"event": "done"}]


@pytest.mark.parametrize("switches", [{}, {"end": "none"}, {"end_with_token": True}])
def test_the_last_token_that_is_held_back_still_comes(a, switches):
    a.process.behave(**switches)
    clean = tokens(a)
    fault(a, "frame", "reorder", after=3)
    assert [json.loads(one) for one in stream(a)[0]] == clean
    fault(a, "item", "reorder", after=3)
    call(a, "broadcast")
    assert a.results(len(clean)) == clean


def test_drafts_are_swapped_lost_and_joined_by_strangers(b):
    def ids(count):
        for name in ("one", "two"):
            b.broadcast(name)
            b.until(lambda report: report["running"] == report["backlog"] == 0)
        return [item["request_id"] for item in b.results(count)]

    fault(b, "item", "reorder", next=1)
    assert ids(2) == ["two", "one"]
    fault(b, "item", "drop", next=1)
    assert ids(1) == ["two"]
    fault(b, "item", "foreign", next=1)
    assert ids(3) == ["foreign-1", "one", "two"]
    fault(b, "item", "duplicate", next=1)
    assert ids(3) == ["one", "one", "two"]


def test_an_empty_draft(b):
    fault(b, "item", "empty_draft", next=1)
    b.broadcast()
    (item,) = b.results(1)
    assert item["draft_tokens"] == []


@pytest.mark.parametrize("done", [True, False])
def test_an_error_frame(c, done):
    fault(c, "frame", "error", after=2, message="the engine stopped", done=done)
    messages, code = stream(c)
    assert len(messages) == 3
    assert json.loads(messages[-1]) == {"error": "the engine stopped"} | ({"event": "done"} if done else {})
    assert code == (1000 if done else None)


@pytest.mark.parametrize("code", [None, 1000, 1011])
def test_a_close_without_done(a, code):
    fault(a, "frame", "close", after=2, code=code)
    messages, closed = stream(a)
    assert [set(json.loads(one)) for one in messages] == [{"token"}] * 2
    assert closed == code


@pytest.mark.parametrize(("kind", "sent"), [("malformed", '{"token": " bro'), ("list", "[]"), ("text", "hello")])
def test_a_frame_that_is_no_object(a, kind, sent):
    fault(a, "frame", kind, after=1, next=1)
    messages, code = stream(a)
    assert messages[1] == sent
    assert (len(messages), code) == (5, 1000)


def test_a_binary_and_a_huge_frame(a):
    fault(a, "frame", "binary", next=1)
    assert isinstance(stream(a)[0][0], bytes)
    fault(a, "frame", "huge", next=1, size_bytes=100_000)
    assert len(stream(a)[0][0]) > 100_000


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_a_refused_upgrade(a, status):
    fault(a, "upgrade", "status", status=status, next=1)
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        connect(a.process.websocket_url, proxy=None)
    assert refused.value.response.status_code == status
    assert len(stream(a)[0]) == 5


def test_an_upgrade_without_an_answer(a):
    fault(a, "upgrade", "close", next=1)
    with pytest.raises((EOFError, OSError, websockets.exceptions.InvalidHandshake)):
        connect(a.process.websocket_url, proxy=None)
    assert len(stream(a)[0]) == 5


def test_a_restart_in_the_middle_of_a_stream(a):
    before = a.http.get("/health").json()
    fault(a, "frame", "restart", after=2, next=1)
    messages, code = stream(a)
    assert [set(json.loads(one)) for one in messages] == [{"token"}] * 2
    assert code is None
    after = a.http.get("/health").json()
    assert after["peer_id"] != before["peer_id"]
    assert a.process.report()["restarts"] >= 1


def test_a_restart_at_a_request_and_at_a_result(b):
    def restarts():
        return b.process.report()["restarts"]

    b.broadcast("sdk-lost")
    b.until(lambda report: report["results"] == 1)
    before = restarts()
    fault(b, "pop", "restart", next=1)
    with pytest.raises(httpx.TransportError):
        b.pop()
    assert restarts() == before + 1
    assert b.pop() is None
    fault(b, "item", "restart", next=1)
    b.broadcast("sdk-lost-too")
    b.until(lambda report: report["restarts"] == before + 2)
    assert b.pop() is None
    b.broadcast("sdk-2")
    assert b.results(1)[0]["request_id"] == "sdk-2"


def test_the_same_seed_hits_the_same_occasions():
    def hits(seed):
        faults = Faults(seed)
        faults.switch([Fault(on="pop", kind="close", probability=0.3), Fault(on="pop", kind="html", probability=0.5)])
        return [found and found.kind for _, found in (faults.draw("pop") for _ in range(500))]

    assert hits(7) == hits(7) != hits(8)
    assert 100 < hits(7).count("close") < 200


def test_one_fault_draws_the_same_with_others_beside_it():
    def hits(*others):
        faults = Faults(1)
        faults.switch([Fault(on="pop", kind="close", probability=0.3), *others])
        found = [faults.draw(point)[1] for _ in range(200) for point in ("pop", "health")]
        return [one is not None and one.on == "pop" for one in found]

    assert hits() == hits(Fault(on="health", kind="html", probability=0.5))


def test_next_and_after_count_occasions():
    faults = Faults()
    faults.switch([Fault(on="pop", kind="close", after=2, next=3)])
    assert [faults.draw("pop")[1] is not None for _ in range(7)] == [False, False, True, True, True, False, False]
    assert faults.draw("health") == (0.0, None)
    assert faults.report()[0]["fired"] == faults.fired["close"] == 3
