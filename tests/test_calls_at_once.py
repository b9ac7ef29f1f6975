"""Hundreds of calls that run at once: none is lost, each gets its own reply, nothing is left.

The short form of benchmarks/calls_at_once.py, and what those over a limit are told.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import quill
from support.probe import SERVICE, Answer, Ask, serving

ROOT = Path(quill.__file__).parent.parent
CALLS = 600
THREADS = 50


@pytest.mark.parametrize(
    "way", ["grpc", "connect", "grpc_web", "connect_http2_host", "h2c", "grpc_threads", "connect_threads"]
)
def test_no_call_is_lost(way):
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/calls_at_once.py", "--json"),
            *("--calls", str(CALLS), "--threads", str(THREADS), "--ways", way),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=110,
        check=True,
    )
    figures = json.loads(done.stdout)
    for kind in ("unary", "stream"):
        figure = figures[f"{way}_{kind}"]
        assert (figure["right"], figure["wrong"], figure["lost"]) == (CALLS, 0, 0), figure
        assert figure["at_once"] == (THREADS if way.endswith("threads") else CALLS)
        assert (figure["running_left"], figure["tasks_left"], figure["descriptors_left"]) == (0, 0, 0), figure


@pytest.mark.parametrize(
    ("protocol", "limits", "refusal"),
    [
        ("grpc", {"max_concurrent_calls": 50}, quill.ResourceExhausted),
        ("connect", {"max_concurrent_calls": 50}, quill.ResourceExhausted),
        ("grpc-web", {"max_concurrent_calls": 50}, quill.ResourceExhausted),
        ("connect", {"max_connections": 50}, quill.Unavailable),
        ("grpc-web", {"max_connections": 50}, quill.Unavailable),
    ],
)
async def test_calls_over_a_limit_are_told_so_and_none_is_lost(protocol, limits, refusal):
    go = asyncio.Event()

    async def unary(request, context):
        await go.wait()
        return Answer(text=request.text)

    async def call(client, number):
        """The reply, or the refusal."""
        try:
            return await client.call(SERVICE, "Unary", Ask(text=f"call {number}"))
        except quill.RpcError as error:
            return error

    async with serving(limits=quill.Limits(**limits), unary=unary) as server:
        url = f"grpc://{server.grpc_address}" if protocol == "grpc" else server.http_url
        async with quill.AsyncQuillClient(url, protocol=protocol) as client:
            calls = [asyncio.create_task(call(client, number)) for number in range(200)]
            async with asyncio.timeout(60):
                while sum(task.done() for task in calls) < 150:
                    await asyncio.sleep(0.01)
                go.set()
                ended = await asyncio.gather(*calls)
    served = [(number, reply) for number, reply in enumerate(ended) if isinstance(reply, Answer)]
    assert len(served) == 50
    assert [(number, reply.text) for number, reply in served] == [(number, f"call {number}") for number, _ in served]
    refused = [reply for reply in ended if not isinstance(reply, Answer)]
    assert {type(error) for error in refused} == {refusal}
    if "max_concurrent_calls" in limits:  # the text of an HTTP status that is none of the protocol's is not shown
        assert all("max_concurrent_calls is 50" in error.message for error in refused)
