"""client.llm.session() of both clients against the real service."""

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from client.harness import LIMIT_S
from llm.scripted import MODEL, ScriptedBackend, finished, tokens, until
from quill import (
    AsyncQuillClient,
    InvalidArgument,
    InvalidUsage,
    NotFound,
    QuillClient,
    StreamInterrupted,
    Unimplemented,
)
from quill.adapters.ngram.backend import NgramBackend
from quill.errors import Cancelled, Code
from quill.llm.backend import Candidate, Reasoning
from quill.llm.servicer import LLMServicer
from quill.proto import add_LLMServiceServicer_to_server
from quill.server.server import Server
from quill.testing.chaos import ChaosProxy
from quill.testing.faults import Faults, Way

RICH = replace(MODEL, options=frozenset({"logprobs", "n", "seed"}), context_length=0)
EURO = "€".encode()


@asynccontextmanager
async def serving(backend, **settings):
    """A server of the backend: (server, servicer)."""
    server, servicer = Server("127.0.0.1:0", "127.0.0.1:0", **settings), LLMServicer(backend)
    add_LLMServiceServicer_to_server(servicer, server)
    await server.start()
    try:
        yield server, servicer
    finally:
        await servicer.aclose()
        await server.stop(0)


@asynccontextmanager
async def connected(backend, protocol="grpc"):
    """A client of a server of the backend that can have sessions."""
    async with serving(backend, http2=protocol == "h2c") as (server, _):
        url = server.http_url if protocol == "h2c" else f"grpc://{server.grpc_address}"
        async with AsyncQuillClient(url, http2=protocol == "h2c") as client, asyncio.timeout(LIMIT_S):
            yield client


@pytest.mark.parametrize("protocol", ["grpc", "h2c"])
async def test_a_session_delivers_what_streams_of_their_own_deliver(protocol):
    async with connected(NgramBackend(), protocol) as client:
        asked = [
            {"max_tokens": 40, "seed": 1},
            {"max_tokens": 300, "seed": 2, "ignore_eos": True},
            {"max_tokens": 20, "seed": 3, "logprobs": 0},
            {"max_tokens": 20, "seed": 4, "logprobs": 3, "n": 2},
            {"max_tokens": 60, "seed": 5, "stop": ["the", ", "]},
            {"max_tokens": 10, "seed": 6, "echo": True, "prompt_logprobs": 1},
        ]
        alone = [await client.llm.stream("Alice was", **options).result() for options in asked]
        async with client.llm.session() as session:
            streams = [session.stream("Alice was", **options) for options in asked]
            together = await asyncio.gather(*(stream.result() for stream in streams))
        for one, other in zip(together, alone, strict=True):
            assert one.choices == other.choices
            assert (one.usage, one.seed, one.prompt_tokens) == (other.usage, other.seed, other.prompt_tokens)


async def test_every_kind_of_token_arrives_as_by_a_stream():
    """Split characters, bytes that are no UTF-8, control tokens, candidates, sequences in turns, stops over borders."""
    script = [
        tokens("a", EURO[:1], EURO[1:2], EURO[2:], ids=[1, 2, 3, 4]),
        tokens(EURO[:2], sequence=1, ids=[9]),
        tokens("b", ids=[5]),
        tokens(EURO[2:], b"\xff", "x", sequence=1, ids=[7, 8, 9]),
        Reasoning("hm"),
        tokens("<s>", "c", special=[True, False], ids=[0, 6]),
        tokens("d", "e", logprobs=[-0.5, None], ids=[1, 2]),
        tokens("f", logprobs=[-1.0], top_logprobs=[[Candidate(1, b"f", -1.0)]], ids=[3]),
        tokens(EURO[:1]),
        tokens(EURO[1:], "s", "to", "p", "never", ids=[1, 2, 3, 4, 5]),
        tokens(EURO[:2], sequence=1),
        finished(sequence=1),
    ]
    backend = ScriptedBackend(script, models=[RICH])
    async with connected(backend) as client:
        options = {"n": 2, "logprobs": 1, "stop": "stop", "max_tokens": 100, "seed": 1}
        for chosen in (options, {**options, "stop": None}, {**options, "logprobs": None}):
            alone = await client.llm.stream("x", **chosen).result()
            async with client.llm.session() as session:
                together = await session.stream("x", **chosen).result()
            assert together.choices == alone.choices
            assert "€" in together.text


async def test_pieces_come_as_they_are_made():
    gate = asyncio.Event()
    async with connected(ScriptedBackend([tokens("a"), gate, tokens("b")])) as client, client.llm.session() as session:
        stream = session.stream("x")
        assert (await anext(stream)).text == "a"
        assert (stream.text, stream.finish, stream.model) == ("a", None, "scripted-1")
        gate.set()
        assert [delta.text async for delta in stream] == ["b"]
        assert (await stream.result()).text == "ab"
        assert stream.usage.completion_tokens == 2


async def test_a_refusal_is_what_the_server_says_and_the_others_go_on():
    async with connected(ScriptedBackend([tokens("a")])) as client, client.llm.session() as session:
        refused, unknown, well = (
            session.stream("x", temperature=-1.0),
            session.stream("x", model="m"),
            session.stream("x"),
        )
        assert (await well.result()).text == "a"
        with pytest.raises(InvalidArgument, match="temperature") as caught:
            await refused.result()
        assert not isinstance(caught.value, StreamInterrupted)
        with pytest.raises(NotFound, match="'m'"):
            await anext(unknown)
        assert (await session.stream("x").result()).text == "a"
        with pytest.raises(InvalidUsage, match="max_tokns"):
            session.stream("x", max_tokns=1)


async def test_acknowledgements_let_long_generations_go_on():
    async with connected(ScriptedBackend(lambda _: (tokens("x") for _ in range(3000)), models=[RICH])) as client:
        async with client.llm.session() as session:
            results = await asyncio.gather(*(session.stream("x", max_tokens=3000).result() for _ in range(5)))
        assert [len(result.tokens) for result in results] == [3000] * 5


@pytest.mark.parametrize(("token_bytes", "resume_ttl_ms"), [(32 * 1024, 0), (1024, 60_000)])
async def test_large_tokens_are_acknowledged_before_they_fill_the_journal(token_bytes, resume_ttl_ms):
    text = "x" * token_bytes
    backend = ScriptedBackend(lambda _: (tokens(text) for _ in range(100)), models=[RICH])
    async with connected(backend) as client, client.llm.session() as session:
        stream = session.stream("x", max_tokens=100, resume_ttl_ms=resume_ttl_ms)
        async with asyncio.timeout(30):
            assert (await stream.result()).text == text * 100


async def test_a_stream_that_is_not_read_waits_at_its_window_beside_one_that_is():
    backend = ScriptedBackend(lambda _: (tokens("x") for _ in range(2000)), models=[RICH])
    async with connected(backend) as client, client.llm.session() as session:
        slow, fast = session.stream("x", max_tokens=3000), session.stream("x", max_tokens=3000)
        assert len((await fast.result()).tokens) == 2000
        assert backend.told <= 2000 + 256
        assert len((await slow.result()).tokens) == 2000


@pytest.mark.parametrize("end", ["cancel", "close", "before"])
async def test_ending_a_generation_ends_its_run_once_and_no_other(end):
    backend = ScriptedBackend([tokens("a"), asyncio.Event()])
    async with connected(backend) as client, client.llm.session() as session:
        stays, goes = session.stream("x"), session.stream("x")
        if end == "before":
            assert session.cancel(goes)
            with pytest.raises(Cancelled):
                await goes.result()
            assert (await anext(stays)).text == "a"
            assert backend.starts == 1
            return
        await asyncio.gather(anext(stays), anext(goes))
        if end == "cancel":
            assert session.cancel(goes, "enough")
        else:
            await goes.aclose()
        with pytest.raises(StreamInterrupted) as caught:
            await goes.result()
        assert (caught.value.code, caught.value.text) == (Code.CANCELLED, "a")
        await until(lambda: backend.aborts == 1)
        assert backend.running == 1
        assert not session.cancel(goes)
        assert (stays.text, stays.finish) == ("a", None)


async def test_leaving_the_session_ends_every_generation():
    backend = ScriptedBackend([tokens("a"), asyncio.Event()])
    async with connected(backend) as client:
        async with client.llm.session() as session:
            streams = [session.stream("x") for _ in range(10)]
            await asyncio.gather(*map(anext, streams))
        for stream in streams:
            with pytest.raises(StreamInterrupted, match="the session was closed") as caught:
                await stream.result()
            assert (caught.value.code, caught.value.text) == (Code.CANCELLED, "a")
        with pytest.raises(InvalidUsage, match="the session is closed"):
            session.stream("x")
        await until(lambda: backend.running == 0)
        assert backend.aborts == 10


async def test_a_session_that_breaks_interrupts_every_stream_with_what_came():
    backend = ScriptedBackend(lambda request: [tokens(request.prompt), asyncio.Event()])
    async with serving(backend) as (server, servicer):
        async with AsyncQuillClient(f"grpc://{server.grpc_address}") as client, client.llm.session() as session:
            streams = [session.stream(letter) for letter in "abc"]
            await asyncio.gather(*map(anext, streams))
            await servicer.aclose()
            for stream, letter in zip(streams, "abc", strict=True):
                with pytest.raises(StreamInterrupted, match="shutting down") as caught:
                    await stream.result()
                assert (caught.value.code, caught.value.text, caught.value.position) == (Code.UNAVAILABLE, letter, 2)
        assert backend.aborts == 3


async def test_one_iterator_reads_all():
    async with connected(NgramBackend()) as client, client.llm.session() as session:
        streams = [session.stream("Alice", seed=seed, max_tokens=30) for seed in range(40)]
        bad = session.stream("x", temperature=-1.0)
        texts, ended = dict.fromkeys(streams, ""), []
        async for stream, delta in session.deltas():
            if delta is None:
                ended.append(stream)
            else:
                texts[stream] += delta.text
        assert set(ended) == {*streams, bad}
        for seed, stream in enumerate(streams):
            alone = await client.llm.generate("Alice", seed=seed, max_tokens=30)
            assert texts[stream] == (await stream.result()).text == alone.text
        with pytest.raises(InvalidArgument):
            await bad.result()


async def test_an_iterator_ends_when_the_last_generation_is_read_by_somebody_else():
    gate = asyncio.Event()
    backend = ScriptedBackend(lambda request: [tokens("a"), *([gate] if request.prompt == "slow" else []), tokens("b")])
    async with connected(backend) as client, client.llm.session() as session:
        slow, quick = session.stream("slow"), session.stream("quick")
        assert (await anext(slow)).text == "a"
        reading = asyncio.create_task(slow.result())
        seen = []
        async for stream, delta in session.deltas():
            seen.append((stream, delta and delta.text))
            if delta is None:
                gate.set()
        assert {stream for stream, _ in seen} == {quick}
        assert (await reading).text == "ab"


async def test_five_hundred_generations_at_once():
    async with connected(ScriptedBackend(lambda request: [tokens("a"), tokens(request.prompt)])) as client:
        async with client.llm.session() as session:
            results = await asyncio.gather(*(session.stream(f"{number}").result() for number in range(500)))
        assert [result.text for result in results] == [f"a{number}" for number in range(500)]


@pytest.mark.parametrize("make", [QuillClient, AsyncQuillClient])
async def test_where_both_sides_cannot_take_turns_the_address_for_grpc_is_named(make):
    async with serving(ScriptedBackend()) as (server, _):

        def blocking():
            with QuillClient(server.http_url) as client, client.llm.session() as session:
                session.stream("x").result()

        async def awaited():
            async with AsyncQuillClient(server.http_url) as client, client.llm.session() as session:
                await session.stream("x").result()

        with pytest.raises(Unimplemented, match=f"call it over gRPC at {server.grpc_address}"):
            await (asyncio.to_thread(blocking) if make is QuillClient else awaited())


@pytest.mark.parametrize("make", [QuillClient, AsyncQuillClient])
async def test_a_session_that_has_ended_still_gives_streams_which_tell_so_where_they_are_read(make):
    async with serving(ScriptedBackend()) as (server, _):

        def blocking():
            with QuillClient(server.http_url) as client, client.llm.session() as session:
                for _ in range(2):
                    stream = session.stream("x")
                    with pytest.raises(Unimplemented, match="call it over gRPC"):
                        stream.result()
                last = session.stream("x")
                assert (last, None) in list(session.deltas())

        async def awaited():
            async with AsyncQuillClient(server.http_url) as client, client.llm.session() as session:
                for _ in range(2):
                    stream = session.stream("x")
                    with pytest.raises(Unimplemented, match="call it over gRPC"):
                        await stream.result()
                last = session.stream("x")
                assert (last, None) in [ended async for ended in session.deltas()]

        await (asyncio.to_thread(blocking) if make is QuillClient else awaited())


async def test_the_blocking_client_may_be_driven_from_many_threads():
    backend = NgramBackend()
    async with serving(backend) as (server, _):

        def drive():
            with QuillClient(f"grpc://{server.grpc_address}") as client, client.llm.session() as session:
                results = {}

                def one(seed):
                    results[seed] = session.stream("Alice was", seed=seed, max_tokens=60).result()

                threads = [threading.Thread(target=one, args=(seed,)) for seed in range(24)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(LIMIT_S)
                alone = {seed: client.llm.generate("Alice was", seed=seed, max_tokens=60) for seed in results}
                streams = [session.stream("Alice", seed=seed, max_tokens=20) for seed in range(5)]
                pieces = "".join(delta.text for _, delta in session.deltas() if delta)
                return results, alone, pieces, "".join(stream.text for stream in streams)

        results, alone, pieces, texts = await asyncio.to_thread(drive)
        assert len(results) == 24
        assert all(results[seed].choices == alone[seed].choices for seed in results)
        assert sorted(pieces) == sorted(texts)


async def test_the_blocking_client_cancels_closes_and_leaves():
    backend = ScriptedBackend([tokens("a"), asyncio.Event()])
    async with serving(backend) as (server, _):

        def read_on(stream):
            with pytest.raises(StreamInterrupted, match="the session was closed"):
                stream.result()

        def drive():
            with QuillClient(f"grpc://{server.grpc_address}") as client:
                with client.llm.session() as session:
                    cancelled, closed, left = (session.stream("x") for _ in range(3))
                    for stream in (cancelled, closed, left):
                        assert next(stream).text == "a"
                    waiting = threading.Thread(target=read_on, args=(left,))
                    waiting.start()
                    assert session.cancel(cancelled, "enough")
                    with pytest.raises(StreamInterrupted, match="cancelled by its session: enough"):
                        cancelled.result()
                    closed.close()
                    assert list(closed) == []
                waiting.join(LIMIT_S)
                assert not waiting.is_alive()
                with pytest.raises(InvalidUsage, match="the session is closed"):
                    session.stream("x")

        await asyncio.to_thread(drive)
        await until(lambda: backend.running == 0)
        assert (backend.starts, backend.aborts) == (3, 3)


@pytest.mark.parametrize("kind", ["blocking", "awaited"])
async def test_a_session_that_was_cut_is_resumed_with_all_its_generations(kind):
    """The runs go on at the server, once each, and every piece arrives once."""
    gate = asyncio.Event()
    backend = ScriptedBackend(
        lambda request: [tokens(request.prompt), gate, tokens("1", EURO[:1], EURO[1:]), tokens("2")], models=[RICH]
    )
    loop = asyncio.get_running_loop()
    async with serving(backend) as (server, _), ChaosProxy(f"grpc://{server.grpc_address}") as proxy:

        def blocking():
            with QuillClient(proxy.url) as client, client.llm.session() as session:
                streams = [session.stream(letter, resume_ttl_ms=20_000) for letter in "abc"]
                mortal = session.stream("d")
                firsts = [next(stream).text for stream in (*streams, mortal)]
                proxy.cut()
                loop.call_soon_threadsafe(gate.set)
                results = [stream.result().text for stream in streams]
                with pytest.raises(StreamInterrupted) as caught:
                    mortal.result()
                return firsts, results, caught.value

        async def awaited():
            async with AsyncQuillClient(proxy.url) as client, client.llm.session() as session:
                streams = [session.stream(letter, resume_ttl_ms=20_000) for letter in "abc"]
                mortal = session.stream("d")
                firsts = [(await anext(stream)).text for stream in (*streams, mortal)]
                proxy.cut()
                gate.set()
                results = [(await stream.result()).text for stream in streams]
                with pytest.raises(StreamInterrupted) as caught:
                    await mortal.result()
                return firsts, results, caught.value

        async with asyncio.timeout(LIMIT_S):
            firsts, results, lost = await (asyncio.to_thread(blocking) if kind == "blocking" else awaited())
        assert firsts == ["a", "b", "c", "d"]
        assert results == ["a1€2", "b1€2", "c1€2"]
        assert (lost.code, lost.text) == (Code.UNAVAILABLE, "d")
        assert backend.starts == 4


@pytest.mark.parametrize("kind", ["blocking", "awaited"])
async def test_a_session_whose_call_did_not_run_is_opened_again(kind):
    """As any call: it was not begun with, so that generations need no TTL for it."""
    backend = ScriptedBackend(lambda request: [tokens(request.prompt)], models=[RICH])
    dropped = Faults(down=Way(cut_after_bytes=0))
    async with (
        serving(backend) as (server, _),
        ChaosProxy(
            f"grpc://{server.grpc_address}", per_connection=lambda number: dropped if number < 2 else None
        ) as proxy,
    ):

        def blocking():
            with QuillClient(proxy.url) as client, client.llm.session() as session:
                return [stream.result().text for stream in [session.stream(letter) for letter in "abc"]]

        async def awaited():
            async with AsyncQuillClient(proxy.url) as client, client.llm.session() as session:
                return [(await stream.result()).text for stream in [session.stream(letter) for letter in "abc"]]

        async with asyncio.timeout(LIMIT_S):
            texts = await (asyncio.to_thread(blocking) if kind == "blocking" else awaited())
        assert texts == ["a", "b", "c"]
        assert (backend.starts, proxy.counts.connections) == (3, 3)
