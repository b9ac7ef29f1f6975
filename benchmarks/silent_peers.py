"""A peer that falls silent, as a machine without power: how long until the other end knows?

usage: python benchmarks/silent_peers.py [--json]

Between both is a proxy whose kernel drops every segment that comes. The server has to tell its backend, in all ways.
The client has to end its generation over gRPC, where keepalive is its own; over HTTP its ``idle_timeout_ms`` bounds
every silence.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from told import Backend, tell, until
from ways import WAYS, Way, served

import quill
from quill.limits import Limits
from quill.testing import ChaosProxy

INTERVAL_S, TIMEOUT_S = 2.0, 1.0
BOUND_S = INTERVAL_S + TIMEOUT_S + 1.0
LIMITS = Limits(keepalive_interval_s=INTERVAL_S, keepalive_timeout_s=TIMEOUT_S, min_ping_interval_s=0.5)
GIVEN_UP_S = 60.0


async def noticed(name: str, way: Way) -> dict[str, float]:
    """The seconds from the silence to both ends that know.

    Raises:
        TimeoutError: One never did.
        ValueError: The client was told something else than UNAVAILABLE with what it had.
    """
    backend = Backend(gap_s=3600)
    has_keepalive = way.protocol == "grpc"
    keepalive = (
        {"keepalive_ms": int(INTERVAL_S * 1000), "keepalive_timeout_ms": int(TIMEOUT_S * 1000)} if has_keepalive else {}
    )
    async with (
        served(backend, http2=way.http2, limits=LIMITS) as where,
        ChaosProxy(where[way.protocol]) as proxy,
        way.client(proxy.url, **keepalive) as client,
        way.streams(client) as start,
        start("paced", request_id=name) as stream,
    ):
        text = (await anext(stream)).text
        reading = asyncio.create_task(told(stream))
        await asyncio.to_thread(proxy.set, deaf=True)
        silent_s = time.monotonic()
        await until(lambda: backend.starts[name].ends, GIVEN_UP_S)
        seen = {f"server_noticed_{name}_s": backend.starts[name].told_s - silent_s}
        if has_keepalive:
            async with asyncio.timeout(GIVEN_UP_S):
                error, told_s = await reading
            if error.code is not quill.Code.UNAVAILABLE or error.text != text:
                raise ValueError(f"{name}: {error!r} with {error.text!r}")
            seen[f"client_noticed_{name}_s"] = told_s - silent_s
        reading.cancel()
        await asyncio.wait({reading})
        await asyncio.to_thread(proxy.cut)
    return seen


async def told(stream: quill.AsyncGenerationStream) -> tuple[quill.StreamInterrupted, float]:
    """What the generation ends with, and when.

    Raises:
        ValueError: It ended without an error.
    """
    try:
        async for _ in stream:
            pass
    except quill.StreamInterrupted as error:
        return error, time.monotonic()
    raise ValueError("a generation ended without an error")


async def measure() -> dict[str, float]:
    """All ways at once."""
    seen = {"bound_s": BOUND_S}
    for figures in await asyncio.gather(*(noticed(name, way) for name, way in WAYS.items())):
        seen |= figures
    return seen


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="How long a silent peer goes unnoticed.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seen = asyncio.run(measure())
    tell(seen, as_json=options.json)


if __name__ == "__main__":
    main()
