"""The clients under test, each in a process of its own.

usage: python benchmarks/drive.py bare-grpc | bare-connect | quill

Reads orders from standard input, one JSON object a line (`Order`), and answers each with the wall time that it took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from contract import (
    GENERATE_DICT,
    LLM_SERVICE,
    RAW_METHOD,
    RAW_PATH,
    RAW_SERVICE,
    REPLY_BYTES,
    REQUEST_BYTES,
    TIMEOUT_MS,
    TOKENIZE_DICT,
    TOKENIZE_REPLY,
    TOKENIZE_REQUEST,
    TOKENS,
    Work,
    tokenize_method,
)

Call = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Order:
    """So many calls of one kind to one server, so many of them at a time."""

    url: str
    work: Work
    calls: int
    in_flight: int


def bare_grpc(url: str, work: Work) -> Call:
    """A grpc.aio stub, made once."""
    import grpc.aio
    from google.protobuf import json_format

    from quill import proto

    channel = grpc.aio.insecure_channel(url.removeprefix("grpc://"))
    stub: Any = proto.LLMServiceStub(channel)
    raw: Any = channel.unary_unary(RAW_PATH)
    timeout_s = TIMEOUT_MS / 1000

    async def json_dict() -> dict[str, Any]:
        request = json_format.ParseDict(GENERATE_DICT, proto.GenerateRequest())
        return json_format.MessageToDict(await stub.Generate(request, timeout=timeout_s))

    match work:
        case "bytes":
            return lambda: raw(REQUEST_BYTES, timeout=timeout_s)
        case "message":
            return lambda: stub.Tokenize(TOKENIZE_REQUEST, timeout=timeout_s)
        case "json_512_tokens":
            return json_dict
    raise ValueError(work)


def bare_connect(url: str, work: Work) -> Call:
    """The client of connectrpc, without compression."""
    from connectrpc.client import ConnectClient
    from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec

    method = tokenize_method()
    client = ConnectClient(
        url,
        codec=google_protobuf_json_codec() if work == "json" else google_protobuf_binary_codec(),
        accept_compression=[],
        send_compression=None,
        timeout_ms=TIMEOUT_MS,
    )
    return lambda: client.execute_unary(request=TOKENIZE_REQUEST, method=method)


def quill_client(url: str, work: Work) -> Call:
    """AsyncQuillClient, with its defaults."""
    from quill import AsyncQuillClient

    client = AsyncQuillClient(url)
    match work:
        case "bytes":
            return lambda: client.call(RAW_SERVICE, RAW_METHOD, REQUEST_BYTES)
        case "message":
            return lambda: client.call(LLM_SERVICE, "Tokenize", TOKENIZE_REQUEST)
        case "json":
            return lambda: client.call_json(LLM_SERVICE, "Tokenize", TOKENIZE_DICT)
        case "json_512_tokens":
            return lambda: client.call_json(LLM_SERVICE, "Generate", GENERATE_DICT)


CLIENTS = {"bare-grpc": bare_grpc, "bare-connect": bare_connect, "quill": quill_client}


async def run(call: Call, order: Order) -> None:
    """Make the calls of an order."""
    if order.in_flight == 1:
        for _ in range(order.calls):
            await call()
        return
    left = iter(range(order.calls))

    async def caller() -> None:
        for _ in left:
            await call()

    async with asyncio.TaskGroup() as group:
        for _ in range(order.in_flight):
            group.create_task(caller())


def check(work: Work, reply: Any) -> None:
    """A benchmark of wrong answers measures nothing.

    Raises:
        ValueError: The reply is not what was asked for.
    """
    match work:
        case "bytes":
            good = reply == REPLY_BYTES
        case "message":
            good = reply == TOKENIZE_REPLY
        case "json":
            good = reply == TOKENIZE_REPLY or len(reply["tokens"]["tokens"]) == len(TOKENIZE_REPLY.tokens.tokens)
        case "json_512_tokens":
            good = len(reply["choices"][0]["tokens"]["tokens"]) == TOKENS
    if not good:
        raise ValueError(f"{work}: a wrong reply")


async def main(kind: str) -> None:
    """Take orders until there are no more."""
    connect = CLIENTS[kind]
    calls: dict[tuple[str, Work], Call] = {}
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = Order(**json.loads(line))
        key = order.url, order.work
        if key not in calls:
            calls[key] = connect(*key)
            check(order.work, await calls[key]())
        start_s = time.perf_counter()
        await run(calls[key], order)
        print(json.dumps({"wall_s": time.perf_counter() - start_s}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
