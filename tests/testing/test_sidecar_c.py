"""Dialect C of the sidecar, a later daemon: filtered polls, a WebSocket with a limit, answers in the reply."""

import json

import pytest
import websockets.exceptions
from websockets.sync.client import connect

from quill.testing.sidecar.behaviour import Behaviour


def frames(sidecar, asked):
    with connect(sidecar.websocket_url, proxy=None, open_timeout=30) as websocket:
        websocket.send(json.dumps(asked))
        return [json.loads(message) for message in websocket]


def test_polls_are_filtered(c):
    for name in ("sdk-one", "sdk-two"):
        c.broadcast(name)
    c.until(lambda report: report["results"] == 2)
    assert c.pop("sdk-three") is None
    two = c.pop("sdk-two")
    assert two["request_id"] == "sdk-two"
    assert len(two["draft_tokens"]) == 5
    assert c.pop("sdk-two") is None
    assert c.http.get("/pop-result").json()["result"]["request_id"] == "sdk-one"


def test_refusals_are_those_of_b(c):
    assert c.broadcast(min_tokens=513).json()["ok"] is False
    assert c.http.post("/broadcast-work", json={}).status_code == 422


@pytest.mark.parametrize("name", ["prompt", "prompt_context"])
def test_a_prompt_alone_is_enough(c, name):
    *tokens, end = frames(c.process, {name: "Alice was"})
    assert len(tokens) == 128
    assert all(set(one) == {"token"} for one in tokens)
    assert end == {"event": "done"}


def test_frames_have_no_ids(c):
    answer = frames(c.process, {"request_id": "sdk-1", "prompt": "Alice was", "max_new_tokens": 3})
    assert [set(one) for one in answer] == [{"token"}, {"token"}, {"token"}, {"event"}]


@pytest.mark.parametrize("count", [1, 2048])
def test_1_and_2048_tokens_are_taken(c, count):
    assert len(frames(c.process, {"prompt": "Alice was", "max_new_tokens": count})) == count + 1


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "x", "max_new_tokens": 0},
        {"prompt": "x", "max_new_tokens": 2049},
        {"prompt": "x", "max_new_tokens": "5"},
        {"prompt": " "},
        {},
        [],
    ],
)
def test_an_error_comes_with_done(c, asked):
    (only,) = frames(c.process, asked)
    assert only == {"error": only["error"], "event": "done"}
    assert isinstance(only["error"], str)


def test_an_error_can_come_with_a_dropped_socket(c):
    with connect(c.process.websocket_url, proxy=None) as websocket:
        websocket.send("{")
        assert set(json.loads(websocket.recv(timeout=30))) == {"error"}
        with pytest.raises(websockets.exceptions.ConnectionClosedError) as dropped:
            websocket.recv(timeout=30)
    assert dropped.value.rcvd is None


def test_at_the_limit_it_says_done_with_part_of_the_tokens(c):
    c.process.behave(websocket_limit_s=0.5, tokens_per_s=20)
    *tokens, end = frames(c.process, {"prompt": "Alice was", "max_new_tokens": 2048})
    assert 0 < len(tokens) < 2048
    assert end == {"event": "done"}


def test_at_the_limit_it_says_done_with_none_of_the_tokens(c):
    c.process.behave(websocket_limit_s=0.1, first_token_delay_ms=600_000)
    assert frames(c.process, {"prompt": "Alice was"}) == [{"event": "done"}]


def test_a_network_where_nobody_listens_is_done_at_the_limit(c):
    c.process.behave(websocket_limit_s=0.1, peers=0)
    assert frames(c.process, {"prompt": "Alice was"}) == [{"event": "done"}]


def test_the_limit_is_30_s_unless_it_is_switched():
    assert Behaviour().websocket_limit_s == 30.0


def test_a_broadcast_may_be_answered_inline_with_a_draft(c):
    c.process.behave(fallback="draft")
    reply = c.broadcast(min_tokens=3).json()
    assert set(reply) == {"ok", "result", "fallback", "reason"}
    assert reply["ok"] is reply["fallback"] is True
    assert len(reply["result"]["draft_tokens"]) == 3
    assert c.pop() is None


def test_a_broadcast_may_be_answered_inline_with_text(c):
    c.process.behave(fallback="text")
    text = c.broadcast(min_tokens=3).json()["result"]
    c.process.behave()
    c.broadcast(min_tokens=3)
    assert "".join(c.results(1)[0]["draft_tokens"]) == text
