"""The JSON of the three dialects, against what the page says of it and against arbitrary bytes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import Code, InvalidArgument, InvalidType, InvalidUsage
from quill.shard import faults
from quill.shard.config import SidecarConfig
from quill.shard.messages import (
    Item,
    Malformed,
    broadcast_body,
    excerpt,
    parse_broadcast_reply,
    parse_frame,
    parse_health,
    parse_pop_result,
    websocket_request,
)
from quill.shard.request import ShardRequest, check_polled, check_streamed

TEXTS = ["token", "text", "delta", "draft_text"]
ENDS = [{"done": True}, {"eos": 1}, {"completed": "yes"}, *({"event": name} for name in ("done", "eos", "completed"))]
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    [*TEXTS, "draft_tokens", "done", "eos", "completed", "event", "error", "request_id", "peer_id", "seq", "index"]
)
almost_items = st.dictionaries(fields, anything | st.sampled_from(["done", "error", " next"]), max_size=5)


@given(words, st.sampled_from(TEXTS), st.sampled_from([{}, *ENDS]))
@settings(max_examples=100)
def test_a_token_and_an_end_may_share_an_object(text, name, end):
    expected = Item(texts=(text,), ended=bool(end))
    assert parse_pop_result(json.dumps({"result": {name: text} | end}).encode()) == expected
    assert parse_frame(json.dumps({name: text} | end, ensure_ascii=False)) == expected


@pytest.mark.parametrize("end", ENDS)
def test_every_word_for_the_end_is_one(end):
    assert parse_frame(json.dumps(end)).ended
    assert parse_pop_result(json.dumps({"result": end}).encode()).ended


@pytest.mark.parametrize("no_end", [{"done": False}, {"eos": 0}, {"completed": None}, {"event": "started"}])
def test_what_is_not_truthy_is_no_end(no_end):
    assert not parse_frame(json.dumps({"token": "x"} | no_end)).ended


def test_null_is_nothing_yet():
    assert parse_pop_result(b'{"result": null}') is None


def test_a_draft_is_read_whole():
    item = {"request_id": "sdk-1", "peer_id": "p", "draft_tokens": ["a", "", " b"], "latency_ms": 3, "created_at_ms": 9}
    assert parse_pop_result(json.dumps({"result": item}).encode()) == Item(
        texts=("a", " b"), request_id="sdk-1", peer_id="p", is_draft=True
    )


def read(parse, body):
    """What is read, or why not."""
    try:
        return parse(body)
    except Malformed as error:
        why = str(error)
    assert why.isprintable()
    assert len(why) < 200
    return why


@given(almost_items)
@settings(max_examples=300)
def test_a_result_is_read_or_refused_and_never_breaks(result):
    for parse, body in ((parse_pop_result, {"result": result}), (parse_frame, result), (parse_pop_result, result)):
        item = read(parse, json.dumps(body).encode())
        assert isinstance(item, str | None) or all(text and text.encode() for text in item.texts)


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
@settings(max_examples=300)
def test_arbitrary_bytes_are_read_or_refused(body):
    for parse in (parse_pop_result, parse_frame, parse_broadcast_reply, parse_health):
        read(parse, body)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"result": []}', b'{"result": {}}', b'{"result": {"token": 5}}'])
def test_what_is_no_result_is_refused(body):
    with pytest.raises(Malformed):
        parse_pop_result(body)


def test_deep_nesting_is_refused():
    with pytest.raises(Malformed):
        parse_pop_result(b'{"result":' + b"[" * 100_000)


def test_half_a_surrogate_pair_becomes_text():
    assert parse_frame('{"token": "\\ud83d"}').texts == ("\ufffd",)
    assert parse_frame('{"token": "\\ud83d\\ude00"}').texts == ("\U0001f600",)


@pytest.mark.parametrize("number", [True, -1, 1.5, "1"])
def test_a_number_that_is_none_is_refused(number):
    with pytest.raises(Malformed):
        parse_frame(json.dumps({"token": "x", "seq": number}))


@given(words, st.integers(1, 5000), st.lists(st.integers(0, 10**6), max_size=4))
@settings(max_examples=60)
def test_requests_are_as_the_page_has_them(prompt, max_tokens, ids):
    request = ShardRequest(prompt=prompt, max_tokens=max_tokens, token_ids=ids, model="m", extra={"temperature": 0.5})
    documented = json.loads(broadcast_body(request, "sdk-1", "A"))
    assert documented == {
        "request_id": "sdk-1",
        "prompt_context": prompt,
        "input_token_ids": ids,
        "min_tokens": 1,
        "max_new_tokens": max_tokens,
        "model": "m",
        "temperature": 0.5,
    }
    released = json.loads(broadcast_body(request, "sdk-1", "B"))
    assert released["min_tokens"] == min(512, max_tokens)
    assert "temperature" not in released
    assert json.loads(websocket_request(request, "sdk-1", "A")) == {
        "request_id": "sdk-1",
        "prompt": prompt,
        "input_token_ids": ids,
        "max_new_tokens": max_tokens,
        "stream": True,
        "model": "m",
        "temperature": 0.5,
    }


def test_the_reply_to_a_prompt_is_read():
    assert parse_broadcast_reply(b"").accepted
    assert parse_broadcast_reply(b'{"ok": true, "detail": "queued for gossipsub publish"}').accepted
    refusal = parse_broadcast_reply(b'{"ok": false, "detail": "prompt_context must not be blank"}')
    assert not refusal.accepted
    assert refusal.detail == "prompt_context must not be blank"
    text = parse_broadcast_reply(b'{"ok": true, "result": "So", "fallback": true, "reason": "no peers"}')
    assert text.result == Item(texts=("So",), ended=True)
    assert text.fallback_reason == "no peers"
    draft = parse_broadcast_reply(b'{"ok": true, "result": {"draft_tokens": ["a", "b"], "request_id": "x"}}')
    assert draft.result is not None
    assert draft.result.texts == ("a", "b")


@pytest.mark.parametrize(
    ("detail", "code"),
    [
        ("request_id must have 1 to 128 bytes", Code.INVALID_ARGUMENT),
        ("prompt_context exceeds 16000 bytes", Code.INVALID_ARGUMENT),
        ("prompt_context is empty", Code.INVALID_ARGUMENT),
        ("min_tokens out of range", Code.INVALID_ARGUMENT),
        ("work queue is full", Code.UNAVAILABLE),
        ("failed to queue work: channel closed", Code.UNAVAILABLE),
        ("no", Code.INVALID_ARGUMENT),
    ],
)
def test_refusals_are_told_apart_by_their_words(detail, code):
    assert faults.refused("x", detail).code is code


def test_health_leaves_out_what_it_does_not_understand():
    health = parse_health(b'{"status": "ok", "peer_id": "p", "uptime_ms": 12, "connected_peers": "many", "version": 3}')
    assert (health.status, health.peer_id, health.uptime_ms) == ("ok", "p", 12)
    assert (health.connected_peers, health.version) == (None, None)


def test_an_excerpt_is_one_short_line_without_secrets():
    line = excerpt(b'{"a": 1,\n\x1b[31m "api_key": "hunter2hunter2", "authorization": "Bearer abc.def"' + b"x" * 500)
    assert line.isprintable()
    assert len(line) < 100
    assert "hunter2" not in line
    assert "abc.def" not in line


@pytest.mark.parametrize("size", [16_000, 16_001])
@pytest.mark.parametrize("dialect", ["auto", "A", "B", "C"])
def test_a_prompt_that_is_too_long_is_not_sent(size, dialect):
    request = ShardRequest(prompt="é" * (size // 2) + "x" * (size % 2))
    body = broadcast_body(request, "sdk-1", dialect)
    if size > 16_000 and dialect in "BC":
        with pytest.raises(InvalidArgument, match=r"16001 bytes.*16000"):
            check_polled(request, dialect, body)
    else:
        check_polled(request, dialect, body)


def test_other_sizes_are_checked_as_well():
    with pytest.raises(InvalidArgument, match="blank"):
        check_polled(ShardRequest(prompt=" \n"), "B", b"")
    with pytest.raises(InvalidArgument, match=r"2049.*2048"):
        check_streamed(ShardRequest(prompt="x", max_tokens=2049), "C", b"")
    check_streamed(ShardRequest(prompt="x", max_tokens=2048), "C", b"")
    with pytest.raises(InvalidArgument, match="2097153 bytes"):
        check_polled(ShardRequest(prompt="x"), "A", b"x" * 2_097_153)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"prompt": 5}, InvalidType),
        ({"prompt": "\ud800"}, InvalidUsage),
        ({"max_tokens": 0}, InvalidUsage),
        ({"max_tokens": 1.5}, InvalidType),
        ({"transport": "pigeon"}, InvalidUsage),
        ({"request_id": ""}, InvalidUsage),
        ({"request_id": "é" * 65}, InvalidUsage),
        ({"timeout_ms": 0}, InvalidUsage),
        ({"timeout_ms": float("nan")}, InvalidUsage),
        ({"token_ids": [1, -1]}, InvalidType),
        ({"extra": {"prompt": "y"}}, InvalidUsage),
        ({"extra": {"x": object()}}, InvalidUsage),
        ({"extra": []}, InvalidType),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(values, kind):
    with pytest.raises(kind):
        ShardRequest(**{"prompt": "x", **values})
    ShardRequest(prompt="x", request_id="é" * 64, extra={"temperature": 1})


@pytest.mark.parametrize(
    "values",
    [
        {"base_url": "http://user:secret@127.0.0.1:9091"},
        {"websocket_url": "ws://user:secret@127.0.0.1:9091"},
        {"base_url": "ftp://127.0.0.1"},
        {"base_url": "http://"},
        {"base_url": "http://127.0.0.1:99999"},
        {"base_url": "http://127.0.0.1:9091?x=1"},
        {"websocket_url": "http://127.0.0.1"},
        {"dialect": "D"},
        {"pop_result_endpoint": "pop"},
        {"poll_interval_s": 0},
        {"max_body_bytes": 0},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_without_secrets(values):
    with pytest.raises(InvalidUsage) as raised:
        SidecarConfig(**values)
    assert "secret" not in str(raised.value)


def test_the_websocket_is_derived():
    assert SidecarConfig(base_url="http://h:1/").generate_url == "ws://h:1/ws/generate"
    assert SidecarConfig(base_url="https://h/a").generate_url == "wss://h/a/ws/generate"
    assert SidecarConfig(websocket_url="ws://other:2/x").generate_url == "ws://other:2/x"
