"""Dialect B of the sidecar, a released daemon: one queue for all, drafts without order or end, refusals with 200."""

import socket
import threading
import time

import httpx
import pytest
import websockets.exceptions
from websockets.sync.client import connect

QUEUED = {"ok": True, "detail": "queued for gossipsub publish"}
ITEM = {"request_id", "peer_id", "draft_tokens", "latency_ms", "created_at_ms"}


def declined(reply):
    assert reply.status_code == 200
    assert set(reply.json()) == {"ok", "detail"}
    assert reply.json()["ok"] is False
    return reply.json()["detail"]


def refused(reply):
    assert reply.headers["content-type"].startswith("text/plain")
    assert reply.text
    return reply.status_code


def settled(b, results):
    """Wait until everything is written and so many results wait."""
    b.until(lambda report: report["results"] == results and report["running"] == report["backlog"] == 0)


def test_a_draft_is_one_item_with_all_its_tokens(b):
    before_ms = time.time_ns() // 1_000_000
    reply = b.broadcast(min_tokens=5, max_new_tokens=99, input_token_ids={}, model=7)
    assert reply.json() == QUEUED
    (item,) = b.results(1)
    assert set(item) == ITEM
    assert item["request_id"] == "sdk-1"
    assert len(item["draft_tokens"]) == 5
    assert all(isinstance(token, str) and token for token in item["draft_tokens"])
    assert isinstance(item["peer_id"], str)
    assert 0 <= item["latency_ms"] < 600_000
    assert before_ms <= item["created_at_ms"] <= time.time_ns() // 1_000_000
    assert b.pop() is None


def test_the_filter_is_ignored_and_a_pop_destroys(b):
    b.broadcast("sdk-one")
    settled(b, 1)
    b.broadcast("sdk-two")
    settled(b, 2)
    assert b.pop("sdk-two")["request_id"] == "sdk-one"
    assert b.http.get("/pop-result").json()["result"]["request_id"] == "sdk-two"
    assert b.pop("sdk-one") is None


def test_of_129_results_the_oldest_is_gone(b):
    for n in range(129):
        b.broadcast(f"sdk-{n}", min_tokens=1)
        b.until(lambda report, n=n: report["results"] == min(n + 1, 128) and report["running"] == 0)
    assert [b.pop()["request_id"] for _ in range(128)] == [f"sdk-{n}" for n in range(1, 129)]
    assert b.pop() is None


def test_several_peers_answer_one_request_with_competing_drafts(b):
    b.process.behave(peers=3)
    b.broadcast(min_tokens=20)
    items = b.results(3)
    assert {item["request_id"] for item in items} == {"sdk-1"}
    assert len({item["peer_id"] for item in items}) == 3
    assert len({"".join(item["draft_tokens"]) for item in items}) == 3


def test_success_is_told_when_nobody_listens(b):
    b.process.behave(peers=0)
    assert b.broadcast().json() == QUEUED
    settled(b, 0)
    assert b.pop() is None
    assert b.http.get("/health").json()["connected_peers"] == 0


@pytest.mark.parametrize("request_id", ["x", "x" * 128, "é" * 64])
def test_request_ids_of_1_to_128_bytes_are_taken(b, request_id):
    assert b.broadcast(request_id).json() == QUEUED


@pytest.mark.parametrize(("request_id", "size"), [("", "0"), ("x" * 129, "129"), ("é" * 64 + "x", "129")])
def test_other_request_ids_are_declined_with_200(b, request_id, size):
    detail = declined(b.broadcast(request_id))
    assert "request_id" in detail
    assert size in detail


@pytest.mark.parametrize("prompt", ["x", "x" * 16_000, "é" * 8_000])
def test_prompts_up_to_16000_bytes_are_taken(b, prompt):
    assert b.broadcast(prompt=prompt).json() == QUEUED


@pytest.mark.parametrize("prompt", ["", " ", "\n\t ", "x" * 16_001, "é" * 8_000 + "x"])
def test_blank_and_long_prompts_are_declined_with_200(b, prompt):
    assert "prompt_context" in declined(b.broadcast(prompt=prompt))


def test_1_and_512_tokens_are_taken(b):
    for count in (1, 512):
        assert b.broadcast(min_tokens=count).json() == QUEUED
        (item,) = b.results(1)
        assert len(item["draft_tokens"]) == count


@pytest.mark.parametrize("count", [0, 513, 2**32 - 1])
def test_other_counts_of_tokens_are_declined_with_200(b, count):
    detail = declined(b.broadcast(min_tokens=count))
    assert "min_tokens" in detail
    assert str(count) in detail


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"request_id": "x"',
        b"\xff\xfe",
        b'{"min_tokens": NaN}',
        b'{"a": Infinity}',
        b"{'a': 1}",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        rb'{"request_id": "\ud800", "prompt_context": "x", "min_tokens": 1}',
    ],
    ids=["empty", "cut", "open", "bytes", "nan", "infinity", "quotes", "deep", "long-number", "surrogate"],
)
def test_malformed_json_is_400(b, body):
    assert refused(b.http.post("/broadcast-work", content=body, headers={"content-type": "application/json"})) == 400


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_another_content_type_is_415(b, content_type):
    body = b'{"request_id": "x", "prompt_context": "y", "min_tokens": 1}'
    assert refused(b.http.post("/broadcast-work", content=body, headers={"content-type": content_type})) == 415


def test_a_content_type_may_have_parameters(b):
    body = b'{"request_id": "x", "prompt_context": "y", "min_tokens": 1}'
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert b.http.post("/broadcast-work", content=body, headers=headers).json() == QUEUED


@pytest.mark.parametrize(
    "body",
    [
        [],
        "text",
        {},
        {"request_id": "x", "prompt_context": "y"},
        {"request_id": "x", "min_tokens": 1},
        {"prompt_context": "y", "min_tokens": 1},
        {"request_id": 1, "prompt_context": "y", "min_tokens": 1},
        {"request_id": "x", "prompt_context": None, "min_tokens": 1},
        {"request_id": "x", "prompt_context": "y", "min_tokens": "1"},
        {"request_id": "x", "prompt_context": "y", "min_tokens": 1.0},
        {"request_id": "x", "prompt_context": "y", "min_tokens": True},
        {"request_id": "x", "prompt_context": "y", "min_tokens": -1},
        {"request_id": "x", "prompt_context": "y", "min_tokens": 2**32},
    ],
)
def test_a_wrong_field_is_422(b, body):
    assert refused(b.http.post("/broadcast-work", json=body)) == 422


def test_a_body_of_2_mib_is_read_and_one_more_byte_is_413(b):
    limit = 2 * 1024 * 1024
    body = b'{"request_id": "x", "prompt_context": "y", "min_tokens": 1}'.ljust(limit)
    headers = {"content-type": "application/json"}
    assert b.http.post("/broadcast-work", content=body, headers=headers).json() == QUEUED
    assert refused(b.http.post("/broadcast-work", content=body + b" ", headers=headers)) == 413


def test_the_257th_request_waits_until_the_queue_has_room(b):
    b.process.behave(stalled=True)
    for n in range(256):
        assert b.broadcast(f"sdk-{n}", min_tokens=1).json() == QUEUED
    replies = []
    waiting = threading.Thread(target=lambda: replies.append(b.broadcast("sdk-256", min_tokens=1)))
    waiting.start()
    b.until(lambda report: report["serving"] == 1)
    report = b.process.report()
    assert (report["backlog"], report["serving"], replies) == (256, 1, [])
    b.process.behave()
    waiting.join(60)
    assert replies[0].json() == QUEUED
    settled(b, 128)


def test_a_client_that_gives_up_while_it_waits_is_forgotten(b):
    b.process.behave(stalled=True)
    for n in range(256):
        b.broadcast(f"sdk-{n}", min_tokens=1)
    with pytest.raises(httpx.TimeoutException):
        b.http.post("/broadcast-work", json={"request_id": "late", "prompt_context": "x", "min_tokens": 1}, timeout=0.3)
    b.until(lambda report: report["serving"] == 0)
    b.process.behave()
    settled(b, 128)
    assert "late" not in b.process.report()["request_ids"]


def test_the_upgrade_gets_404(b):
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        connect(b.process.websocket_url, proxy=None)
    assert refused.value.response.status_code == 404


def test_the_upgrade_gets_404_in_bytes(b):
    host, port = b.process.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(
            b"GET /ws/generate HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert raw.makefile("rb").readline().split()[1] == b"404"


def test_health_and_what_else_there_is(b):
    health = b.http.get("/health").json()
    assert health["status"] == "ok"
    assert isinstance(health["version"], str)
    assert isinstance(health["peer_id"], str)
    assert health["connected_peers"] == 1
    assert isinstance(health["uptime_ms"], int)
    assert b.http.get("/topology").json()["peer_id"] == health["peer_id"]
    assert len(b.http.get("/peers").json()["peers"]) == 1
    b.broadcast()
    b.results(1)
    assert b.http.get("/metrics/latency-profile").json()["samples"] == 1


def test_uptime_rises_and_a_restart_loses_everything(b):
    b.broadcast("sdk-lost")
    settled(b, 1)
    before = b.http.get("/health").json()
    while (later := b.http.get("/health").json())["uptime_ms"] < before["uptime_ms"] + 20:
        pass
    assert later["peer_id"] == before["peer_id"]
    b.process.restart()
    after = b.http.get("/health").json()
    assert after["peer_id"] != before["peer_id"]
    assert after["uptime_ms"] < later["uptime_ms"]
    assert b.pop("sdk-lost") is None
    b.broadcast()
    assert b.results(1)[0]["request_id"] == "sdk-1"


def test_a_restart_drops_who_waits(b):
    b.process.behave(stalled=True)
    for n in range(256):
        b.broadcast(f"sdk-{n}", min_tokens=1)
    errors = []

    def wait():
        with pytest.raises(httpx.TransportError) as error:
            b.broadcast("sdk-256", min_tokens=1)
        errors.append(error.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    b.until(lambda report: report["serving"] == 1)
    b.process.restart()
    waiting.join(60)
    assert len(errors) == 1
    assert b.process.report()["backlog"] == 0


def test_a_restart_closes_connections_that_are_kept(b):
    host, port = b.process.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw, raw.makefile("rb") as stream:
        raw.sendall(b"GET /pop-result HTTP/1.1\r\nhost: x\r\n\r\n")
        while stream.readline() != b"\r\n":
            pass
        assert stream.read(len('{"result": null}')) == b'{"result": null}'
        b.process.restart()
        assert stream.read() == b""
