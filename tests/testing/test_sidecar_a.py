"""Dialect A of the sidecar, the documented contract: HTTP by httpx, WebSocket by websockets."""

import json
import time

import httpx
import pytest
import websockets.exceptions
from websockets.sync.client import connect

DOCUMENTED = {
    "request_id": "sdk-1",
    "prompt_context": "Alice was",
    "input_token_ids": [65, 108],
    "min_tokens": 1,
    "max_new_tokens": 4,
    "model": "shard/network-default",
}
ASKED = {"request_id": "sdk-1", "prompt": "Alice was", "input_token_ids": [65], "max_new_tokens": 4, "stream": True}
ENDS = ["event:done", "event:eos", "event:completed", "done", "eos", "completed"]


def end_object(end):
    return {"event": end[6:]} if end.startswith("event:") else {end: True}


def frames(sidecar, asked=ASKED):
    """What a WebSocket says until it closes, and how it closes."""
    with connect(sidecar.websocket_url, proxy=None, open_timeout=30) as websocket:
        websocket.send(json.dumps(asked))
        return [json.loads(message) for message in websocket], websocket.close_code


def text_of(objects, field="token"):
    return "".join(one.get(field, "") for one in objects)


def test_the_documented_request_is_answered_token_by_token(a):
    assert a.http.post("/broadcast-work", json=DOCUMENTED).status_code == 200
    *tokens, end = a.results(5)
    assert all(set(one) == {"token"} and one["token"] for one in tokens)
    assert end == {"event": "done"}
    assert a.pop() is None


def test_there_is_null_before_the_first_token_and_for_a_stranger(a):
    a.process.behave(first_token_delay_ms=600_000)
    a.broadcast(max_new_tokens=3)
    assert a.pop() is None
    assert a.pop("sdk-other") is None


def test_each_request_gets_its_own_tokens(a):
    for name, prompt in (("one", "Alice was"), ("two", "The Queen of Hearts")):
        a.broadcast(name, prompt, max_new_tokens=6)
    mixed = [(name, a.results(1, name)[0]) for _ in range(6) for name in ("one", "two")]
    texts = {name: text_of(one for owner, one in mixed if owner == name) for name in ("one", "two")}
    a.process.restart()
    for name, prompt in (("one", "Alice was"), ("two", "The Queen of Hearts")):
        a.broadcast(name, prompt, max_new_tokens=6)
        assert text_of(a.results(6, name)) == texts[name]
    assert texts["one"] != texts["two"]


def test_the_websocket_tells_the_same_text_and_closes(a):
    a.broadcast(max_new_tokens=4)
    polled = a.results(5)
    streamed, code = frames(a.process, ASKED | {"model": "shard/network-default"})
    assert (streamed, code) == (polled, 1000)


@pytest.mark.parametrize("field", ["token", "text", "delta", "draft_text"])
@pytest.mark.parametrize("end", ENDS)
def test_every_spelling_of_text_and_end_on_both_transports(a, field, end):
    a.process.behave(text_field=field, end=end)
    a.broadcast(max_new_tokens=4)
    polled = a.results(5)
    assert [set(one) for one in polled[:-1]] == [{field}] * 4
    assert polled[-1] == end_object(end)
    assert frames(a.process)[0] == polled


@pytest.mark.parametrize("end", ENDS)
def test_the_last_token_and_the_end_can_share_an_object(a, end):
    a.process.behave(end=end, end_with_token=True)
    a.broadcast(max_new_tokens=4)
    polled = a.results(4)
    assert polled[-1] == {"token": polled[-1]["token"]} | end_object(end)
    assert frames(a.process)[0] == polled
    assert a.pop() is None


@pytest.mark.parametrize("field", ["seq", "index"])
def test_tokens_can_be_numbered_and_named(a, field):
    a.process.behave(number_field=field, with_request_id=True)
    a.broadcast(max_new_tokens=4)
    *tokens, end = a.results(5)
    assert [one[field] for one in tokens] == [0, 1, 2, 3]
    assert {one["request_id"] for one in (*tokens, end)} == {"sdk-1"}


def test_no_end_at_all(a):
    a.process.behave(end="none")
    a.broadcast(max_new_tokens=4)
    assert all("token" in one for one in a.results(4))
    a.until(lambda report: report["running"] == 0)
    assert a.pop() is None
    assert len(frames(a.process)[0]) == 4


@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_model_may_write_less_or_more_than_was_asked(a, count):
    a.process.behave(tokens=count)
    a.broadcast(max_new_tokens=4)
    assert len(a.results(count + 1)) == count + 1
    assert a.pop() is None
    assert len(frames(a.process)[0]) == count + 1


def test_tokens_can_be_paced(a):
    a.process.behave(tokens_per_s=20, first_token_delay_ms=50)
    begun_s = time.monotonic()
    assert len(frames(a.process, ASKED | {"max_new_tokens": 6})[0]) == 7
    assert time.monotonic() - begun_s >= 0.05 + 5 / 20
    begun_s = time.monotonic()
    a.broadcast(max_new_tokens=6)
    a.results(7)
    assert time.monotonic() - begun_s >= 0.05 + 5 / 20


def test_an_unfiltered_poll_is_refused_and_counted(a):
    assert a.http.get("/pop-result").status_code == 400
    assert a.process.report()["requests"]["pop-unfiltered"] >= 1


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": ""},
        {"request_id": "x" * 129},
        {"request_id": 5},
        {"prompt_context": 5},
        {"input_token_ids": "no"},
        {"input_token_ids": [1, "2"]},
        {"input_token_ids": [True]},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2049},
        {"max_new_tokens": 1.5},
        {"prompt_context": "", "input_token_ids": []},
    ],
)
def test_what_is_not_in_the_contract_is_refused(a, change):
    reply = a.http.post("/broadcast-work", json=DOCUMENTED | change)
    assert reply.status_code == 422
    assert reply.headers["content-type"].startswith("text/plain")
    renamed = {{"prompt_context": "prompt"}.get(key, key): value for key, value in change.items()}
    (only,), code = frames(a.process, ASKED | renamed)
    assert set(only) == {"error", "event"}
    assert code == 1000


def test_token_ids_alone_are_a_prompt(a):
    assert a.http.post("/broadcast-work", json=DOCUMENTED | {"prompt_context": ""}).status_code == 200
    assert len(a.results(5)) == 5


def test_the_limit_is_2048_tokens(a):
    a.broadcast(max_new_tokens=2048)
    tokens = a.results(2049)
    assert tokens[-1] == {"event": "done"}


def test_results_that_nobody_pops_expire(a):
    a.process.behave(result_ttl_s=0.05)
    for n in range(20):
        a.broadcast(f"sdk-{n}", max_new_tokens=5)
    a.until(lambda report: report["running"] == 0 and report["results"] == 0)
    assert a.pop("sdk-0") is None


def test_results_of_more_than_512_requests_are_not_kept(a):
    for n in range(514):
        a.broadcast(f"sdk-{n}", max_new_tokens=1)
    a.until(lambda report: report["running"] == 0 and report["backlog"] == 0)
    kept = a.process.report()["results"]
    assert kept == 512 * 2
    assert a.pop("sdk-0") is a.pop("sdk-1") is None
    assert a.pop("sdk-513") is not None


def test_a_client_that_leaves_ends_its_stream(a):
    a.process.behave(tokens_per_s=5)
    with connect(a.process.websocket_url, proxy=None) as websocket:
        websocket.send(json.dumps(ASKED | {"max_new_tokens": 2048}))
        assert "token" in websocket.recv(timeout=30)
        assert a.process.report()["serving"] == 1
    a.until(lambda report: report["serving"] == 0)


@pytest.mark.parametrize("message", ["{", "[]", '"text"', "null"])
def test_a_message_that_is_no_object_is_an_error_frame(a, message):
    with connect(a.process.websocket_url, proxy=None) as websocket:
        websocket.send(message)
        error = json.loads(websocket.recv(timeout=30))
        assert isinstance(error["error"], str)
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            websocket.recv(timeout=30)


def test_a_binary_message_is_not_taken(a):
    with connect(a.process.websocket_url, proxy=None) as websocket:
        websocket.send(b"{}")
        with pytest.raises(websockets.exceptions.ConnectionClosedError) as closed:
            websocket.recv(timeout=30)
    assert closed.value.rcvd.code == 1003


@pytest.mark.parametrize("path", ["/", "/ws", "/ws/generate/"])
def test_elsewhere_there_is_no_websocket(a, path):
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        connect("ws" + a.process.url.removeprefix("http") + path, proxy=None)
    assert refused.value.response.status_code == 404


def test_other_paths_and_methods(a):
    assert a.http.get("/nothing").status_code == 404
    for method, path, allowed in (("GET", "/broadcast-work", "POST"), ("POST", "/pop-result", "GET")):
        reply = a.http.request(method, path)
        assert (reply.status_code, reply.headers["allow"]) == (405, allowed)


def test_the_model_says_that_it_is_an_n_gram(a):
    assert "not an LLM" in a.http.get("/health").json()["model_origin"]


def test_http_client_errors_do_not_disturb(a):
    with httpx.Client(base_url=a.process.url, trust_env=False, timeout=0.2) as impatient:
        a.process.set_faults({"on": "pop", "kind": "delay", "delay_ms": 60_000, "next": 1})
        with pytest.raises(httpx.TimeoutException):
            impatient.get("/pop-result", params={"request_id": "sdk-1"})
    a.broadcast(max_new_tokens=1)
    assert len(a.results(2)) == 2
