"""Many generations through one sidecar: each gets what is its own, and nothing of it is left for the next one."""

import asyncio
import json
from contextlib import aclosing

import pytest

from quill.errors import AlreadyExists, Cancelled, Code, InvalidUsage
from quill.generation import FinishReason
from quill.shard.config import SidecarConfig
from quill.shard.sidecar import Piece, ShardRequest, Sidecar
from quill.testing.sidecar.writer import Writer
from support.generating import generate
from support.raw_sidecar import NOTHING, json_reply, raw_sidecar

WAYS = [
    ("A", "http_poll"),
    ("A", "websocket"),
    ("B", "http_poll"),
    ("C", "http_poll"),
    ("C", "websocket"),
]


async def written(prompt, count):
    """What the model of the sidecar for development writes."""
    writer = Writer()
    try:
        async with aclosing(writer.tokens(prompt)) as tokens:
            return [await anext(tokens) for _ in range(count)]
    finally:
        await writer.aclose()


def started(process, before):
    """The ids of the requests that were taken since."""
    known = set(before["request_ids"])
    return [one for one in process.report()["request_ids"] if one not in known]


def count(process, endpoint):
    return process.report()["requests"].get(endpoint, 0)


@pytest.mark.parametrize("configured", ["told", "auto"])
@pytest.mark.parametrize(("dialect", "transport"), WAYS)
async def test_32_generations_at_once_each_receive_their_own_tokens(dialect, transport, configured, sidecar_of):
    process = sidecar_of(dialect)
    if dialect == "B":
        process.set_faults({"on": "item", "kind": "foreign", "probability": 0.3})
    before = process.report()
    prompts = [f"Alice was number {number} of all" for number in range(32)]
    expected = await asyncio.gather(*(written(prompt, 12) for prompt in prompts))
    config = SidecarConfig(base_url=process.url, dialect=dialect if configured == "told" else "auto")
    async with Sidecar(config) as sidecar:
        outcomes = await asyncio.gather(
            *(generate(sidecar, prompt, max_tokens=12, transport=transport) for prompt in prompts)
        )
        assert [outcome.pieces for outcome in outcomes] == expected
        assert {outcome.end.reason for outcome in outcomes} == {FinishReason.LENGTH}
        starts = started(process, before)
        assert len(starts) == len(set(starts)) == (0 if transport == "websocket" else 32)
        if dialect == "B":
            assert sidecar.stats.foreign > 0


async def test_two_clients_of_one_sidecar_give_each_other_what_they_polled(sidecar_of):
    process = sidecar_of("B")
    config = SidecarConfig(base_url=process.url, dialect="B")
    prompts = [f"Alice was number {number}" for number in range(8)]
    async with Sidecar(config) as one, Sidecar(config) as other:
        outcomes = await asyncio.gather(
            *(generate(client, prompt, max_tokens=5) for prompt in prompts for client in (one, other))
        )
        assert [outcome.code for outcome in outcomes] == [None] * 16
        assert one.stats.foreign == other.stats.foreign == 0


@pytest.mark.parametrize(("dialect", "transport"), WAYS)
async def test_the_next_generation_receives_nothing_of_a_cancelled_one(dialect, transport, sidecar_of):
    process = sidecar_of(dialect)
    process.behave(first_token_delay_ms=100, tokens_per_s=200)
    before = process.report()
    async with Sidecar(SidecarConfig(base_url=process.url, dialect=dialect, tombstone_s=60)) as sidecar:
        first = asyncio.create_task(generate(sidecar, "The first", max_tokens=20, transport=transport))
        async with asyncio.timeout(30):
            while transport == "http_poll" and not started(process, before):
                await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = await generate(sidecar, "The second", max_tokens=20, transport=transport)
        assert second.pieces == await written("The second", 20)
        if transport == "http_poll":
            async with asyncio.timeout(30):  # what is left of the first one is fetched, so that it clogs nothing
                while not sidecar.stats.drained or process.report()["results"]:
                    await asyncio.sleep(0.05)


async def test_closing_the_iterator_closes_the_websocket(sidecar_of):
    process = sidecar_of("C")
    process.behave(tokens_per_s=20)
    async with Sidecar(SidecarConfig(base_url=process.url)) as sidecar:
        events = sidecar.generate(ShardRequest(prompt="Alice", max_tokens=2000, transport="websocket"))
        assert isinstance(await anext(events), Piece)
        await events.aclose()
        assert not sidecar._reach._tasks


async def test_competing_drafts_of_other_peers_are_dropped(sidecar_of):
    process = sidecar_of("B")
    process.behave(peers=4)
    async with Sidecar(SidecarConfig(base_url=process.url, dialect="B")) as sidecar:
        outcomes = await asyncio.gather(*(generate(sidecar, f"Alice {n}", max_tokens=6) for n in range(8)))
        assert [len(outcome.pieces) for outcome in outcomes] == [6] * 8
        assert {outcome.end.metadata["draft"] for outcome in outcomes} == {"unverified"}
        assert all(outcome.end.metadata["peer_id"] for outcome in outcomes)
        async with asyncio.timeout(30):
            while sidecar.stats.drained + sidecar.stats.foreign < 24:
                await asyncio.sleep(0.05)


async def test_a_draft_holds_at_most_512_tokens_and_says_so(sidecar_of):
    process = sidecar_of("B")
    async with Sidecar(SidecarConfig(base_url=process.url, dialect="B")) as sidecar:
        outcome = await generate(sidecar, max_tokens=600)
    assert len(outcome.pieces) == 512
    assert outcome.end.reason is FinishReason.LENGTH


async def test_tokens_beyond_the_cap_are_cut(sidecar_of):
    for dialect, transport in WAYS:
        process = sidecar_of(dialect)
        process.behave(tokens=20)
        async with Sidecar(SidecarConfig(base_url=process.url, dialect=dialect)) as sidecar:
            outcome = await generate(sidecar, max_tokens=7, transport=transport)
        assert len(outcome.pieces) == 7
        assert outcome.end.reason is FinishReason.LENGTH


@pytest.mark.parametrize("fallback", ["draft", "text"])
async def test_an_answer_in_the_reply_is_whole(fallback, sidecar_of):
    process = sidecar_of("C")
    process.behave(fallback=fallback)
    async with Sidecar(SidecarConfig(base_url=process.url, dialect="C")) as sidecar:
        outcome = await generate(sidecar, max_tokens=5)
        assert outcome.text == "".join(await written("Alice was", 5))
        assert outcome.end.metadata["fallback"] == "true"
        assert "no peer is subscribed" in outcome.end.warnings[0]
        assert sidecar.stats.polls == 0


async def test_a_foreign_id_from_a_filtered_poll_is_dialect_b_for_good():
    waiting = [{"request_id": "someone", "peer_id": "p", "draft_tokens": ["no"]}]

    def pop(request_id):
        if waiting:
            return json_reply({"result": waiting.pop()})
        return json_reply({"result": {"request_id": request_id, "peer_id": "p", "draft_tokens": ["yes"]}})

    async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, dialect="C")) as sidecar:
        outcome = await generate(sidecar)
        assert outcome.text == "yes"
        assert sidecar.stats.foreign == 1
        assert sidecar.dialect == "B"


@pytest.mark.parametrize("dialect", ["auto", "B"])
async def test_results_without_ids_of_a_sidecar_that_does_not_filter_are_never_mixed(dialect):
    """One queue for all callers, and no result says whose it is: no dialect does that, and it would be the worst."""
    waiting = []

    def broadcast(body):
        prompt = json.loads(body)["prompt_context"]
        waiting.extend([*({"token": f"{prompt}{number} "} for number in range(6)), {"event": "done"}])
        return json_reply({"ok": True})

    def pop(_):
        return json_reply({"result": waiting.pop(0)}) if waiting else NOTHING

    async with (
        raw_sidecar(broadcast=broadcast, pop=pop) as raw,
        Sidecar(SidecarConfig(base_url=raw.url, dialect=dialect, first_token_timeout_ms=20_000)) as sidecar,
    ):
        if dialect == "B":
            await generate(sidecar, "z")  # shows that results have no id
        outcomes = await asyncio.gather(*(generate(sidecar, prompt) for prompt in "abcd"))
        assert [one.text for one in outcomes] == [
            "".join(f"{prompt}{number} " for number in range(6)) for prompt in "abcd"
        ]


async def test_results_that_could_be_of_several_fail_them_and_reach_none():
    answers = [json_reply({"result": {"token": "whose?"}})]

    def pop(_):
        return answers.pop() if answers and len(raw.started) == 3 else NOTHING

    async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, dialect="B")) as sidecar:
        outcomes = await asyncio.gather(*(generate(sidecar, prompt) for prompt in "abc"))
        assert [one.code for one in outcomes] == [Code.INTERNAL] * 3
        assert sidecar.stats.unattributed == 1


async def test_numbers_from_one_are_in_order():
    items = [{"token": "b", "seq": 2}, {"token": "a", "seq": 1}, {"event": "done", "seq": 3}]

    def pop(_):
        return json_reply({"result": items.pop(0)}) if items else NOTHING

    config = {"dialect": "A", "reorder_wait_s": 0.2}
    async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, **config)) as sidecar:
        outcome = await generate(sidecar)
        assert outcome.pieces == ["a", "b"]


async def test_equal_tokens_are_not_taken_for_duplicates():
    items = [{"token": " ha"}] * 5 + [{"event": "done"}]

    def pop(_):
        return json_reply({"result": items.pop(0)}) if items else NOTHING

    async with raw_sidecar(pop=pop) as raw, Sidecar(SidecarConfig(base_url=raw.url, dialect="A")) as sidecar:
        assert (await generate(sidecar)).text == " ha" * 5


async def test_a_full_queue_is_unavailable():
    full = json_reply({"ok": False, "detail": "work queue is full"})
    async with raw_sidecar(broadcast=full) as raw, Sidecar(SidecarConfig(base_url=raw.url)) as sidecar:
        outcome = await generate(sidecar)
        assert outcome.code is Code.UNAVAILABLE
        assert "work queue is full" in str(outcome.error)


async def test_429_says_when_to_try_again(sidecar_of):
    process = sidecar_of("A")
    for point, transport in (("broadcast", "http_poll"), ("pop", "http_poll"), ("upgrade", "websocket")):
        process.set_faults({"on": point, "kind": "status", "status": 429, "retry_after_s": 7})
        async with Sidecar(SidecarConfig(base_url=process.url, dialect="A")) as sidecar:
            outcome = await generate(sidecar, transport=transport)
        assert outcome.code is Code.RESOURCE_EXHAUSTED
        assert ("retry-after", "7") in outcome.error.trailers


async def test_a_post_that_was_sent_is_never_sent_again(sidecar_of):
    process = sidecar_of("A")
    for handled in (False, True):
        process.set_faults({"on": "broadcast", "kind": "close", "handled": handled})
        before = count(process, "broadcast")
        async with Sidecar(SidecarConfig(base_url=process.url, dialect="A")) as sidecar:
            outcome = await generate(sidecar)
        assert outcome.code is Code.UNAVAILABLE
        assert count(process, "broadcast") == before + 1


async def test_a_lost_reply_makes_the_text_incomplete_and_never_fine(sidecar_of):
    process = sidecar_of("A")
    for kind in ("close", "malformed", "truncate"):
        process.behave(tokens=8)
        process.set_faults({"on": "pop", "kind": kind, "hits": True, "handled": True, "after": 3, "next": 1})
        async with Sidecar(SidecarConfig(base_url=process.url, dialect="A")) as sidecar:
            outcome = await generate(sidecar)
        assert len(outcome.pieces) == 7
        assert outcome.end.reason is FinishReason.OTHER
        assert outcome.end.incomplete
        assert "incomplete" in outcome.end.warnings[0]


async def test_a_lost_reply_of_numbered_tokens_is_data_loss(sidecar_of):
    process = sidecar_of("A")
    process.behave(number_field="seq", tokens=8)
    process.set_faults({"on": "pop", "kind": "close", "hits": True, "handled": True, "after": 3, "next": 1})
    async with Sidecar(SidecarConfig(base_url=process.url, dialect="A", reorder_wait_s=0.3)) as sidecar:
        outcome = await generate(sidecar)
    assert outcome.code is Code.DATA_LOSS
    assert len(outcome.pieces) == 3


async def test_the_websocket_falls_back_only_where_the_upgrade_is_404(sidecar_of):
    process = sidecar_of("B")
    upgrades = count(process, "upgrade")
    async with Sidecar(SidecarConfig(base_url=process.url)) as sidecar:
        assert (await generate(sidecar, transport="websocket")).code is Code.UNIMPLEMENTED
        assert len((await generate(sidecar, transport="auto", max_tokens=4)).pieces) == 4
        assert len((await generate(sidecar, transport="auto", max_tokens=4)).pieces) == 4
        assert sidecar.dialect == "B"
        assert count(process, "upgrade") == upgrades + 1
    process = sidecar_of("C")
    broadcasts = count(process, "broadcast")
    process.set_faults({"on": "upgrade", "kind": "status", "status": 403})
    async with Sidecar(SidecarConfig(base_url=process.url)) as sidecar:
        assert (await generate(sidecar, transport="auto")).code is Code.PERMISSION_DENIED
        process.set_faults({"on": "frame", "kind": "close", "after": 2})
        outcome = await generate(sidecar, transport="auto")
        assert (outcome.code, len(outcome.pieces)) == (Code.UNAVAILABLE, 2)
        assert count(process, "broadcast") == broadcasts


async def test_options_reach_dialect_a_and_are_told_of_where_they_are_not_taken(sidecar_of):
    bodies = []

    def broadcast(body):
        bodies.append(json.loads(body))
        return json_reply({"ok": True, "result": "x"})

    async with raw_sidecar(broadcast=broadcast) as raw:
        for dialect in "AB":
            async with Sidecar(SidecarConfig(base_url=raw.url, dialect=dialect)) as sidecar:
                outcome = await generate(sidecar, extra={"temperature": 0.5})
            assert ("temperature" in bodies[-1]) == (dialect == "A")
            assert ("temperature" in " ".join(outcome.end.warnings)) == (dialect == "B")


async def test_an_id_is_used_once(sidecar_of):
    process = sidecar_of("A")
    process.behave(tokens_per_s=20)
    async with Sidecar(SidecarConfig(base_url=process.url, dialect="A")) as sidecar:
        events = sidecar.generate(ShardRequest(prompt="x", request_id="mine"))
        await anext(events)
        with pytest.raises(AlreadyExists):
            await anext(sidecar.generate(ShardRequest(prompt="x", request_id="mine")))
        await events.aclose()
        assert process.report()["request_ids"].count("mine") == 1


@pytest.mark.parametrize(("dialect", "transport"), WAYS)
async def test_closing_the_client_ends_what_runs(dialect, transport, sidecar_of):
    process = sidecar_of(dialect)
    process.behave(first_token_delay_ms=60_000)
    sidecar = Sidecar(SidecarConfig(base_url=process.url, dialect=dialect))
    running = [asyncio.create_task(generate(sidecar, transport=transport)) for _ in range(3)]
    async with asyncio.timeout(30):
        while sidecar.stats.started < 3:
            await asyncio.sleep(0.01)
    await sidecar.aclose()
    await sidecar.aclose()
    assert [outcome.code for outcome in await asyncio.gather(*running)] == [Code.CANCELLED] * 3
    with pytest.raises(InvalidUsage, match="closed"):
        await anext(sidecar.generate(ShardRequest(prompt="x")))


async def test_closing_the_client_ends_a_request_that_is_on_its_way():
    async def never(_):
        await asyncio.sleep(60)

    async with raw_sidecar(broadcast=never) as raw:
        sidecar = Sidecar(SidecarConfig(base_url=raw.url))
        running = asyncio.create_task(anext(sidecar.generate(ShardRequest(prompt="x"))))
        async with asyncio.timeout(30):
            while not raw.started:
                await asyncio.sleep(0.01)
        await sidecar.aclose()
        with pytest.raises(Cancelled):
            await running


def test_a_client_serves_one_loop_after_the_other(sidecar_of):
    process = sidecar_of("A")
    sidecar = Sidecar(SidecarConfig(base_url=process.url))

    async def once():
        outcome = await generate(sidecar, max_tokens=3)
        await sidecar._reach.aclose()  # a loop that is closed under its connections would warn of them
        return outcome

    assert len(asyncio.run(once()).pieces) == 3
    assert len(asyncio.run(once()).pieces) == 3
