"""Fifty callers start the same run at once: how often does the engine start, and does everybody get the same?

    python benchmarks/starts.py --rounds 200 --json

Each round is a new request id. Half of the callers stream, half wait for the whole reply; half speak gRPC, half
Connect. Meanwhile another principal tries to resume the run, to cancel it, and starts one of its own under the id, and
somebody starts it with another prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc

import quill
from quill import proto
from quill.llm import LLMServicer, ModelInfo, Tokens
from quill.principal import Principal, current_principal

TOKENS = 20
TTL_MS = 30_000
SERVICE = "inference.v1.LLMService"


class Draws:
    """An engine that says something else at each start, and counts its starts by prompt."""

    name = "draws"

    def __init__(self) -> None:
        self.starts: Counter[str] = Counter()

    def models(self) -> list[ModelInfo]:
        """One model."""
        return [ModelInfo(name="draws", weights_origin="none")]

    async def generate(self, request: proto.GenerateRequest, *, model: ModelInfo) -> AsyncIterator[Tokens]:
        """Tokens that name the start."""
        self.starts[request.prompt] += 1
        start = sum(self.starts.values())
        for number in range(TOKENS):
            yield Tokens(data=[b"%d.%d " % (start, number)], ids=[number])
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Nothing is held."""


class Named(grpc.aio.ServerInterceptor):
    """Takes callers for whom they say they are."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Set the principal of the call."""
        metadata = dict(details.invocation_metadata)
        current_principal.set(Principal(metadata.get("x-name", "first")))
        return await continuation(details)


async def streamed(client: quill.AsyncQuillClient, name: str) -> str:
    """The text, piece by piece."""
    async with client.llm.stream(name, request_id=name, max_tokens=TOKENS, resume_ttl_ms=TTL_MS) as stream:
        return "".join([delta.text async for delta in stream])


async def whole(client: quill.AsyncQuillClient, name: str) -> str:
    """The text of the reply."""
    request = asked(name)
    reply: proto.GenerateResponse = await client.call(SERVICE, "Generate", request)
    return reply.text


def asked(name: str) -> proto.GenerateRequest:
    """The request of a round."""
    options = proto.StreamOptions(resume_ttl_ms=TTL_MS)
    return proto.GenerateRequest(prompt=name, request_id=name, max_tokens=TOKENS, stream_options=options)


async def refusal(client: quill.AsyncQuillClient, request: proto.GenerateRequest, who: str) -> str:
    """The code that a stream ends with."""
    try:
        async with client.stream(SERVICE, "StreamGenerate", request, headers={"x-name": who}) as stream:
            async for _ in stream:
                pass
    except quill.RpcError as error:
        return error.code.name
    return "OK"


async def epoch_of(client: quill.AsyncQuillClient, name: str) -> str:
    """What Started tells of a run that is there."""
    async with client.stream(SERVICE, "StreamGenerate", asked(name)) as stream:
        async for message in stream:
            return str(message.started.epoch)
    return ""


async def one_round(clients: list[quill.AsyncQuillClient], name: str, callers: int, counts: Counter[str]) -> None:
    """One id: all callers at once, then those who may not have it."""
    reads = [
        (streamed if caller % 2 else whole)(clients[caller // 2 % len(clients)], name) for caller in range(callers)
    ]
    texts = await asyncio.gather(*reads)
    counts["readers"] += len(texts)
    counts["readers_unlike_the_first"] += sum(text != texts[0] for text in texts)
    client = clients[0]
    resume = asked(name)
    resume.stream_options.resume.epoch = await epoch_of(client, name)
    other = asked(name)
    other.prompt = "other"
    counts[f"other_principal_resumes_{await refusal(client, resume, 'second')}"] += 1
    counts[f"other_parameters_{await refusal(client, other, 'first')}"] += 1
    cancelled = await client.llm.cancel(name, headers={"x-name": "second"})
    counts[f"other_principal_cancels_{'found' if cancelled else 'not_found'}"] += 1


async def measure(rounds: int, callers: int) -> dict[str, object]:
    """All rounds, on one server."""
    backend = Draws()
    servicer = LLMServicer(backend)
    server = quill.Server(grpc="127.0.0.1:0", http="127.0.0.1:0", interceptors=[Named()])
    proto.add_LLMServiceServicer_to_server(servicer, server)
    counts: Counter[str] = Counter()
    own_runs = 0
    began = time.perf_counter()
    async with (
        server,
        quill.AsyncQuillClient(f"grpc://{server.grpc_address}") as by_grpc,
        quill.AsyncQuillClient(str(server.http_url)) as by_connect,
    ):
        for number in range(rounds):
            name = f"round-{number}"
            await one_round([by_grpc, by_connect], name, callers, counts)
            starts = backend.starts[name]
            counts["starts"] += starts
            counts["rounds_with_one_start"] += starts == 1
            own = await refusal(by_grpc, asked(name), "second")
            own_runs += own == "OK" and backend.starts[name] == starts + 1
        seconds = time.perf_counter() - began
        await servicer.aclose()
    return {
        "rounds": rounds,
        "callers": callers,
        "starts": counts.pop("starts"),
        **counts,
        "other_principal_has_its_own_run": own_runs,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="how many ids")
    parser.add_argument("--callers", type=int, default=50, help="how many start each of them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    figures = {
        "python": platform.python_version(),
        **asyncio.run(measure(arguments.rounds, arguments.callers)),
    }
    print(json.dumps(figures, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
