"""Hostile calls of TensorService over sockets, against a `quill serve` process.

usage: python benchmarks/tensor_attacks.py [--inputs 100000] [--seed 0] [--json]

Half are whole messages that are wrong in one thing (``tensor_attack_cases.py``), half have hostile bytes
(``hostile.py``); unary and in chunks, over gRPC and Connect. Each must end with the right status, which names both
numbers where there are two; an honest call in between must be answered; memory must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from hostile import Source
from tensor_attack_cases import Attack, bad_infer, bad_stream

from quill import AsyncQuillClient, proto
from quill.errors import Code, InvalidUsage, RpcError

SERVICE = "inference.v1.TensorService"
IN_FLIGHT = 16
HANG_MS = 20_000
BOTH = 2
"""Numbers in a message: what is, and what may be."""
PART = 0.1
"""After what part of the inputs memory is looked at, again and again. Growth is that of the second half."""
SHOWN = 10
HOSTILE_ENDS = frozenset({Code.OK, Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND})
"""How a call of hostile bytes may end: they may happen to be a call."""
_NUMBER = re.compile(r"-?\d+")


def hostile(source: Source) -> Attack:
    """A call of hostile bytes."""
    if source.chance.randrange(2):
        return Attack("infer: bytes", "Infer", [source.message(proto.InferRequest)], HOSTILE_ENDS, names_numbers=False)
    messages = [source.message(proto.StreamInferRequest) for _ in range(source.chance.randint(1, 4))]
    return Attack("stream: bytes", "StreamInfer", messages, HOSTILE_ENDS, names_numbers=False)


def draw(source: Source) -> Attack:
    """The next call."""
    make = source.chance.choice((hostile, lambda from_: source.chance.choice((bad_infer, bad_stream))(from_.chance)))
    return make(source)


class Victim:
    """The server process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "quill", "serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None  # noqa: S101  # it is a pipe
        self.ready = json.loads(self.process.stdout.readline())

    def memory_mib(self) -> float:
        """Its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        found = re.search(r"VmRSS:\s+(\d+)", status)
        return int(found[1]) / 1024 if found else 0.0

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


class Campaign:
    """Calls, and what came of them."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.counts: Counter[str] = Counter()
        self.shown: list[str] = []

    async def attack(self, client: AsyncQuillClient, attack: Attack) -> None:
        """One call."""
        code, message = await self._outcome(client, attack)
        self.counts["inputs"] += 1
        if code is Code.DEADLINE_EXCEEDED:
            self._count("hangs", attack, message)
        elif code not in attack.expected:
            self._count("wrong", attack, f"{code.name}: {message}")
        elif attack.names_numbers and len(_NUMBER.findall(message)) < BOTH:
            self._count("unexplained", attack, message)

    async def check(self, client: AsyncQuillClient) -> None:
        """An honest call."""
        import numpy as np

        try:
            result = await client.tensors.infer("identity", {"x": np.arange(5)}, timeout_ms=HANG_MS)
            if result["x"].tolist() != [0, 1, 2, 3, 4]:
                self.counts["unanswered"] += 1
        except RpcError as error:
            self.counts["unanswered"] += 1
            self.shown.append(f"an honest call ended with {error}")

    async def _outcome(self, client: AsyncQuillClient, attack: Attack) -> tuple[Code, str]:
        try:
            if attack.method == "Infer":
                await client.call(SERVICE, "Infer", attack.messages[0], codec="proto", timeout_ms=HANG_MS)
            else:
                requests = iter(attack.messages)
                async with client.stream(
                    SERVICE, "StreamInfer", requests, codec="proto", timeout_ms=HANG_MS
                ) as replies:
                    async for _ in replies:
                        pass
        except RpcError as error:
            return error.code, error.message
        except InvalidUsage as error:
            return Code.UNKNOWN, str(error)
        return Code.OK, ""

    def _count(self, what: str, attack: Attack, said: str) -> None:
        self.counts[what] += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{what}: {attack.name}: {said}")


async def run(inputs: int, seed: int) -> tuple[Campaign, list[float], float]:
    """Make so many calls, some at a time."""
    victim = Victim()
    campaign = Campaign(victim)
    source = Source(random.Random(seed))  # noqa: S311  # chance that can be repeated
    began_s = time.monotonic()
    memory_mib: list[float] = []
    try:
        async with (
            AsyncQuillClient("grpc://" + victim.ready["grpc"], max_attempts=1) as grpc,
            AsyncQuillClient(victim.ready["http"], max_attempts=1) as http,
        ):
            clients = (grpc, http)
            for start in range(0, inputs, IN_FLIGHT):
                count = min(IN_FLIGHT, inputs - start)
                await asyncio.gather(*(campaign.attack(clients[n % 2], draw(source)) for n in range(count)))
                if start // IN_FLIGHT % 64 == 0:
                    await asyncio.gather(*map(campaign.check, clients))
                if start >= inputs * PART * (len(memory_mib) + 1):
                    memory_mib.append(victim.memory_mib())
        memory_mib.append(victim.memory_mib())
        crashed = victim.process.poll() is not None
    finally:
        victim.end()
    campaign.counts["crashes"] += crashed
    return campaign, memory_mib, time.monotonic() - began_s


def main() -> None:
    """Attack, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    campaign, memory_mib, seconds = asyncio.run(run(options.inputs, options.seed))
    counts = campaign.counts
    result = {
        "inputs": counts["inputs"],
        "crashes": counts["crashes"],
        "hangs": counts["hangs"],
        "wrong_statuses": counts["wrong"],
        "without_numbers": counts["unexplained"],
        "honest_calls_unanswered": counts["unanswered"],
        "memory_growth_mib": round(memory_mib[-1] - memory_mib[len(memory_mib) // 2], 1),
        "memory_mib": [round(one, 1) for one in memory_mib],
        "seconds": round(seconds, 1),
    }
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<24} {value}")
    for line in campaign.shown:
        print(line, file=sys.stderr)
    failed = ("crashes", "hangs", "wrong_statuses", "without_numbers", "honest_calls_unanswered")
    sys.exit(1 if any(result[name] for name in failed) else 0)


if __name__ == "__main__":
    main()
