"""Sidecars that mean harm, over real sockets: nothing they send may cost more than its bound, or reach another caller.

The sidecar for development does none of this; the peers here are raw.
"""

import asyncio
import contextlib
import gc
import gzip
import json
import os
import time
from contextlib import aclosing, asynccontextmanager

import pytest
from websockets.asyncio.server import serve

from quill.errors import AlreadyExists, Code, InvalidUsage, RpcError
from quill.shard import ShardDistributedModel
from quill.shard.config import SidecarConfig
from quill.shard.messages import Malformed, parse_health, parse_pop_result, shown
from quill.shard.sidecar import ShardRequest, Sidecar
from support.generating import generate
from support.raw_sidecar import NOTHING, json_reply, raw_sidecar, reply

LIMITS = {"dialect": "A", "request_timeout_s": 1.0, "retry_budget_s": 0.2, "first_token_timeout_ms": 5_000}
ID = "x" * 1_000_000
DEEP = b'{"result":{"error":' + b"[" * 900 + b"]" * 900 + b"}}"
REPLIES = {
    "gzip": (reply(gzip.compress(b" " * 10**7), headers=["content-encoding: gzip"]), Code.INTERNAL, "content-encoding"),
    "a declared length of a terabyte": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n" + b" " * 2_000_000,
        Code.RESOURCE_EXHAUSTED,
        "max_body_bytes",
    ),
    "an endless body": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + (b"ffff\r\n" + b" " * 0xFFFF + b"\r\n") * 40,
        Code.RESOURCE_EXHAUSTED,
        "max_body_bytes",
    ),
    "an endless body of an error": (
        b"HTTP/1.1 403 No\r\ntransfer-encoding: chunked\r\n\r\n" + (b"ffff\r\n" + b"n" * 0xFFFF + b"\r\n") * 40,
        Code.PERMISSION_DENIED,
        "HTTP 403",
    ),
    "chunks of one byte": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 200_000,
        Code.UNAVAILABLE,
        "lost",
    ),
    "a flood of headers": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000, Code.UNAVAILABLE, "lost"),
    "a header without an end": (b"HTTP/1.1 200 OK\r\na: " + b"b" * 1_000_000, Code.UNAVAILABLE, "lost"),
    "a flood of 100 Continue": (b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000, Code.UNAVAILABLE, "lost"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", Code.UNAVAILABLE, "lost"),
    "two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}", Code.UNAVAILABLE, "lost"),
    "a redirect with a password": (
        reply(status=302, headers=["location: http://user:hunter2@127.0.0.1:1/"]),
        Code.FAILED_PRECONDITION,
        "redirect",
    ),
    "JSON that is too deep": (reply(b'{"result":' + b"[" * 200_000), Code.INTERNAL, "no JSON"),
    "an error that is deep": (reply(DEEP), Code.UNAVAILABLE, "error"),
    "an error of a megabyte": (
        json_reply({"result": {"error": "\x00 " * 100_000 + "secret=hunter2"}}),
        Code.UNAVAILABLE,
        "error",
    ),
    "a number as a token": (json_reply({"result": {"token": 5}}), Code.INTERNAL, "token is no text"),
    "NaN as a token": (reply(b'{"result":{"token":NaN}}'), Code.INTERNAL, "token is no text"),
    "a number as an id": (json_reply({"result": {"token": "a", "request_id": 5}}), Code.INTERNAL, "request_id"),
    "a number of 5000 digits": (reply(b'{"result":{"seq":' + b"9" * 5000 + b"}}"), Code.INTERNAL, "no JSON"),
}


@pytest.mark.parametrize("what", REPLIES)
async def test_what_a_sidecar_replies_costs_no_more_than_its_bound(what):
    answer, code, words = REPLIES[what]
    async with (
        raw_sidecar(pop=answer) as raw,
        Sidecar(SidecarConfig(base_url=raw.url, **LIMITS)) as sidecar,
    ):
        outcome = await generate(sidecar)
    assert outcome.code is code, outcome
    assert words in str(outcome.error)
    assert "hunter2" not in str(outcome.error)
    assert len(str(outcome.error)) < 500
    assert outcome.seconds < 25


@pytest.mark.parametrize("what", REPLIES)
async def test_the_same_for_the_reply_to_a_prompt(what):
    answer, _, _ = REPLIES[what]
    async with raw_sidecar(broadcast=answer) as raw, Sidecar(SidecarConfig(base_url=raw.url, **LIMITS)) as sidecar:
        outcome = await generate(sidecar, first_token_timeout_ms=500)
        assert isinstance(outcome.error, RpcError)
        assert "hunter2" not in str(outcome.error)
        assert len(raw.started) == 1  # it may have been taken, and is never sent twice


async def test_bytes_behind_a_reply_are_not_the_next_reply():
    behind = json_reply({"result": {"token": "smuggled", "done": True}})

    def pop(_):
        return NOTHING + behind if raw.requests["pop"] < 5 else json_reply({"result": {"token": "own", "done": True}})

    async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, **LIMITS)) as sidecar:
        assert (await generate(sidecar)).text == "own"


async def test_half_a_surrogate_pair_and_an_id_of_a_megabyte_reach_nobody():
    items = [{"token": "\ud83d"}, {"token": "no", "request_id": ID}, {"token": "b", "done": True}]

    def pop(_):
        return json_reply({"result": items.pop(0)}) if items else NOTHING

    config = LIMITS | {"max_body_bytes": 4_000_000}
    async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, **config)) as sidecar:
        outcome = await generate(sidecar)
        assert outcome.text.encode() == "\N{REPLACEMENT CHARACTER}b".encode()
        assert sidecar.stats.foreign == 1


@pytest.mark.parametrize("result", [{"token": "no", "request_id": "theirs"}, {"token": ""}, {"draft_tokens": []}])
async def test_results_of_no_use_without_end_are_polled_for_within_the_budget(result):
    """At once for as many as B's queue holds, and then no faster than when nothing is there."""
    config = LIMITS | {"first_token_timeout_ms": 1500, "idle_polls_per_s": 20}
    async with (
        raw_sidecar(pop=json_reply({"result": result})) as raw,
        Sidecar(SidecarConfig(base_url=raw.url, **config)) as sidecar,
    ):
        outcome = await generate(sidecar)
        assert outcome.code is Code.DEADLINE_EXCEEDED
        assert sidecar.stats.polls < 128 + 1.5 * 20 * 5


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-5", "1e308", "9" * 400, '"x"', "[]", "null", "true", '{"a":' * 900 + "1" + "}" * 900]
)
async def test_a_health_of_nonsense_says_nothing_and_stops_no_watch(value):
    body = f'{{"uptime_ms":{value},"connected_peers":{value},"peer_id":{value},"status":{value}}}'.encode()
    health = parse_health(body)
    assert (health.uptime_ms, health.connected_peers) == (None, None)
    config = LIMITS | {"health_interval_s": 0.02, "first_token_timeout_ms": 1000}
    async with raw_sidecar(health=reply(body)) as raw, Sidecar(SidecarConfig(base_url=raw.url, **config)) as sidecar:
        assert (await generate(sidecar)).code is Code.DEADLINE_EXCEEDED
        assert raw.requests["health"] >= 2
        assert sidecar.stats.restarts == 0


def test_no_depth_breaks_what_is_shown():
    read = 0
    for depth in range(100, 2000, 50):
        with contextlib.suppress(Malformed):
            assert parse_pop_result(b'{"result":{"error":' + b"[" * depth + b"]" * depth + b"}}").error
            read += 1
    assert 0 < read < 38


def test_what_is_shown_is_cut_before_it_is_looked_at():
    begun_s = time.process_time()
    for _ in range(100):
        assert len(shown("ab " * 1_000_000)) < 100
    assert time.process_time() - begun_s < 5  # a hundredth of that, and minutes without the cut


async def test_an_id_that_is_in_use_is_refused_and_the_one_that_uses_it_goes_on():
    """The loser must not take the winner's place in the demultiplexer with it."""
    go = asyncio.Event()

    def pop(request_id):
        return json_reply({"result": {"token": "x", "done": True}}) if go.is_set() else NOTHING

    async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, **LIMITS)) as sidecar:
        first = asyncio.create_task(generate(sidecar, request_id="mine"))
        async with asyncio.timeout(30):
            while not raw.started:
                await asyncio.sleep(0.01)
        with pytest.raises(AlreadyExists):
            await anext(sidecar.generate(ShardRequest(prompt="x", request_id="mine")))
        go.set()
        assert (await first).text == "x"


# WebSockets


@asynccontextmanager
async def socket_peer(talk, **options):
    async def handler(socket):
        await socket.recv()
        await talk(socket)

    async with serve(
        handler, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=1, **options
    ) as server:
        port = server.sockets[0].getsockname()[1]
        config = SidecarConfig(base_url=f"http://127.0.0.1:{port}", **LIMITS | {"max_body_bytes": 65536})
        async with Sidecar(config) as sidecar:
            yield sidecar


def frame(opcode, payload, *, rsv=0, length=None):
    size = len(payload) if length is None else length
    head = bytes([0x80 | rsv | opcode])
    if size < 126:
        return head + bytes([size]) + payload
    return head + bytes([127]) + size.to_bytes(8, "big") + payload


RAW_FRAMES = {
    "a frame of 100 MB": (frame(1, b"a" * 100_000, length=100_000_000), Code.RESOURCE_EXHAUSTED),
    "a frame of 2^62 bytes": (frame(1, b"a", length=2**62), Code.RESOURCE_EXHAUSTED),
    "fragments without end": (b"\x01\x7d" + b"a" * 125 + (b"\x00\x7d" + b"a" * 125) * 2000, Code.RESOURCE_EXHAUSTED),
    "a compressed frame": (frame(1, gzip.compress(b"a" * 1000), rsv=0x40), Code.UNAVAILABLE),
    "text that is no UTF-8": (frame(1, b"\xff\xfe"), Code.UNAVAILABLE),
    "a masked frame": (b"\x81\x82aaaaaa", Code.UNAVAILABLE),
}


@pytest.mark.parametrize("what", RAW_FRAMES)
async def test_frames_that_break_the_rules_end_the_stream(what):
    data, code = RAW_FRAMES[what]

    async def talk(socket):
        socket.transport.write(data)
        await socket.wait_closed()

    async with socket_peer(talk) as sidecar:
        outcome = await generate(sidecar, transport="websocket")
        assert outcome.code is code, outcome
        assert outcome.seconds < 25


async def test_a_flood_of_pings_from_one_that_does_not_read_is_bounded():
    ping = frame(9, b"p" * 125) * 1000

    async def talk(socket):
        socket.transport.pause_reading()
        try:
            async with asyncio.timeout(20):
                while not socket.transport.is_closing():
                    socket.transport.write(ping)
                    while socket.transport.get_write_buffer_size() > 10**6 and not socket.transport.is_closing():
                        await asyncio.sleep(0.001)
                    await asyncio.sleep(0)
        finally:
            socket.transport.abort()

    async with socket_peer(talk) as sidecar:
        outcome = await generate(sidecar, transport="websocket", first_token_timeout_ms=15_000)
        assert outcome.code is Code.UNAVAILABLE
        assert "before its end" in str(outcome.error)


async def test_frames_without_end_that_say_nothing_meet_the_deadline():
    async def talk(socket):
        while True:
            await socket.send('{"token":""}')
            await asyncio.sleep(0)  # the client lives in the same loop

    async with socket_peer(talk) as sidecar:
        outcome = await generate(sidecar, transport="websocket", first_token_timeout_ms=300)
        assert outcome.code is Code.DEADLINE_EXCEEDED
        assert outcome.seconds < 15


# Callers


@pytest.mark.parametrize("transport", ["http_poll", "websocket"])
async def test_a_caller_may_be_cancelled_at_every_moment(transport, sidecar_of):
    process = sidecar_of("A")
    process.behave(tokens_per_s=400)
    async with Sidecar(SidecarConfig(base_url=process.url, dialect="A", tombstone_s=0.2)) as sidecar:
        for turns in range(0, 60, 2):
            running = asyncio.create_task(generate(sidecar, max_tokens=1000, transport=transport))
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns % 8 == 0:
                await asyncio.sleep(turns / 1000)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert not sidecar._reach.everything
        assert len((await generate(sidecar, max_tokens=20, transport=transport)).pieces) == 20
        async with asyncio.timeout(30):
            while sidecar._reach.demultiplexer._dead or sidecar._reach._tasks:
                await asyncio.sleep(0.02)
                sidecar._reach.demultiplexer._expire()


@pytest.mark.parametrize("transport", ["http_poll", "websocket"])
async def test_closing_the_model_ends_a_stream_with_its_text(transport, sidecar_of):
    process = sidecar_of("A")
    process.behave(tokens_per_s=50)
    model = ShardDistributedModel.from_pretrained("m", router_url=process.url, transport=transport)
    async with aclosing(model.stream_generate("Alice", max_new_tokens=1000)) as pieces:
        text = await anext(pieces)
        await model.aclose()
        with pytest.raises(RpcError) as caught:
            text += "".join([piece async for piece in pieces])
    assert caught.value.code is Code.CANCELLED
    assert caught.value.text == text


async def test_a_model_in_use_is_refused_to_another_thread(sidecar_of):
    process = sidecar_of("A")
    process.behave(tokens_per_s=50)
    async with (
        ShardDistributedModel.from_pretrained("m", router_url=process.url) as model,
        aclosing(model.stream_generate("Alice", max_new_tokens=1000)) as pieces,
    ):
        await anext(pieces)
        with pytest.raises(InvalidUsage, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(model.generate("Alice", max_new_tokens=1)))
        assert await anext(pieces)


async def test_descriptors_and_generations_are_flat():
    """Two thousand here; of what a generation leaves behind, nothing may grow with their number."""

    def pop(_):
        return json_reply({"result": {"token": "x", "done": True}})

    async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, dialect="A")) as sidecar:
        counts = []
        for _ in range(3):
            for _ in range(20):
                await asyncio.gather(*(generate(sidecar) for _ in range(20)))
            gc.collect()
            reach = sidecar._reach
            kept = (
                reach.demultiplexer._lives,
                reach.demultiplexer._dead,
                reach.demultiplexer._pollers,
                reach.everything,
            )
            assert [len(one) for one in kept] == [0, 0, 0, 0]
            counts.append((len(os.listdir("/proc/self/fd")), len(gc.get_objects())))
        assert counts[2][0] <= counts[0][0] + 4
        assert counts[2][1] <= counts[0][1] + 2000


async def test_a_long_prompt_does_not_hold_up_the_loop():
    sent = []

    def broadcast(body):
        sent.append(json.loads(body))
        return json_reply({"ok": True, "result": "x"})

    async with (
        raw_sidecar(broadcast=broadcast) as raw,
        ShardDistributedModel.from_pretrained("m", router_url=raw.url) as model,
    ):
        assert await model.generate("é" * 100_000) == "x"
    assert len(sent[0]["input_token_ids"]) == 200_000


@pytest.mark.parametrize("dialect", ["A", "B"])
async def test_a_model_with_auto_uses_the_websocket_where_there_is_one(dialect, sidecar_of):
    process = sidecar_of(dialect)
    before = process.report()["requests"].get("broadcast", 0)
    async with ShardDistributedModel.from_pretrained("m", router_url=process.url, transport="auto") as model:
        pieces = [piece async for piece in model.stream_generate("Alice", max_new_tokens=5)]
    assert len(pieces) == 5
    assert process.report()["requests"].get("broadcast", 0) - before == (0 if dialect == "A" else 1)
