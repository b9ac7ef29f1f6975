"""Clients and servers that die by SIGKILL in the middle of a transfer, by each lane: what they leave, who goes on.

usage: python benchmarks/lane_kills.py [--cycles 500] [--seed 0] [--json]

Half of the cycles kill a client, half a server, at a random moment of its transfers of 16 MiB both ways; lanes and
protocols take turns. After each, the survivor calls, or is called, by the same lane, and gets what it sent. At the end
the survivors have no more regions of shared memory, descriptors and threads than before, and /dev/shm has no new name.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

import quill
from quill.lanes.lane import LaneChoice
from quill.tensors import TensorServicer, add_to_server
from quill.tensors.builtin import builtin_models

LANES: tuple[LaneChoice, ...] = ("shm", "socket", "chunks")
PROTOCOLS = ("grpc", "connect")
SIZE_BYTES = 16 * 1024 * 1024
LONGEST_S = 0.12
"""A moment up to here after its first transfer is when a process dies: some transfers."""
WARM_CYCLES = 12
"""Kills of clients that come before what is counted."""
_AT_ONCE = 6
"""Calls that overlap before what is counted; later those do that outlive their client, and the next."""
SETTLED_S = 15.0
"""How long a survivor may take to let go of what the dead had: a second, or five where nobody came for a region."""

_context = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Held:
    """What a process has of what can leak."""

    regions: int
    descriptors: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> Held:
        """What this process has now."""
        shared = {line.split()[-2] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/quill-" in line}
        return cls(len(shared), len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")))

    def exceeds(self, other: Held) -> bool:
        """Whether it has more of anything."""
        return self.regions > other.regions or self.descriptors > other.descriptors or self.threads > other.threads


NOTHING_SHARED = Held(0, 2**31, 2**31)
"""Of a server whose clients are gone."""


def be_server(tell: Connection, ports: tuple[int, int]) -> None:
    """Serve on these ports until killed; 0 for any."""

    async def serve() -> None:
        server = quill.Server(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
        add_to_server(TensorServicer(builtin_models(), socket_host="127.0.0.1"), server)
        await server.start()
        tell.send({"grpc": f"grpc://{server.grpc_address}", "connect": server.http_url})
        await asyncio.Event().wait()

    asyncio.run(serve())


def be_client(tell: Connection, url: str, lane: LaneChoice) -> None:
    """Call until killed."""
    with quill.QuillClient(url) as client:
        while True:
            transfer(client, lane)
            tell.send(None)


def transfer(client: quill.QuillClient, lane: LaneChoice) -> None:
    """Send a tensor and get it back.

    Raises:
        ValueError: Another came back.
        RpcError: The call failed.
    """
    sent = np.full(SIZE_BYTES, time.monotonic_ns() % 251, np.uint8)
    got = client.tensors.infer("identity", {"x": sent}, lane=lane)["x"]
    if got[0] != sent[0] or not np.array_equal(got, sent):
        raise ValueError("another tensor came back than was sent")


def at_once(client: quill.QuillClient) -> None:
    """Transfers that overlap, more than there will be: pools of threads grow with calls at once, which is no leak."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(lambda _: transfer(client, "socket"), range(4 * _AT_ONCE)))


@contextlib.contextmanager
def running(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process, and what it tells; killed at the end."""
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def kill_clients(cycles: int, chance: random.Random) -> tuple[Held, Held]:
    """What the server has before and after, each time when nobody is connected."""
    with running(be_server, (0, 0)) as (server, told):
        where, pid = told.recv(), server.pid or 0
        seen: list[Held] = []
        for count in (WARM_CYCLES, cycles):
            with contextlib.ExitStack() as stack:
                clients = {name: stack.enter_context(quill.QuillClient(where[name])) for name in PROTOCOLS}
                for number in range(count):
                    lane, protocol = LANES[number % 3], PROTOCOLS[number % 2]
                    with running(be_client, where[protocol], lane) as (_, heard):
                        heard.recv()
                        time.sleep(chance.uniform(0, LONGEST_S))
                    transfer(clients[protocol], lane)
                if not seen:
                    at_once(clients["grpc"])
            seen.append(settled(pid, seen[0] if seen else NOTHING_SHARED))
        return seen[0], seen[1]


def kill_servers(cycles: int, chance: random.Random) -> tuple[Held, Held]:
    """What the client has before and after."""
    with contextlib.ExitStack() as stack:
        first, told = stack.enter_context(running(be_server, (0, 0)))
        where = told.recv()
        ports = int(where["grpc"].rpartition(":")[2]), int(where["connect"].rpartition(":")[2])
        first.kill()
        clients = {name: stack.enter_context(quill.QuillClient(where[name])) for name in PROTOCOLS}
        before = served_by_another(ports, clients)
        for number in range(cycles):
            lane, client = LANES[number % 3], clients[PROTOCOLS[number % 2]]
            with running(be_server, ports) as (server, heard):
                heard.recv()
                until(client.health_check)
                transfer(client, lane)
                killer = threading.Timer(chance.uniform(0, LONGEST_S), server.kill)
                killer.start()
                try:
                    interrupted(client, lane)
                finally:
                    killer.join()
        return before, served_by_another(ports, clients, before)


def served_by_another(
    ports: tuple[int, int], clients: dict[str, quill.QuillClient], before: Held | None = None
) -> Held:
    """What this process has when a new server has served all its clients by all lanes."""
    with running(be_server, ports) as (_, heard):
        heard.recv()
        for client in clients.values():
            until(client.health_check)
            for lane in LANES:
                transfer(client, lane)
        return settled(os.getpid(), before) if before else Held.by(os.getpid())


def interrupted(client: quill.QuillClient, lane: LaneChoice) -> None:
    """Call until the server has died. A transfer that came through was whole; any other ends with a status."""
    try:
        while True:
            transfer(client, lane)
    except quill.RpcError:
        pass


def until(condition: Callable[[], bool]) -> None:
    """Wait for it.

    Raises:
        TimeoutError: It takes too long.
    """
    deadline_s = time.monotonic() + SETTLED_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("it took too long")
        time.sleep(0.01)


def settled(pid: int, before: Held) -> Held:
    """What a process has when it has let go of what the dead left: no more than before, for a second. Or at last."""
    deadline_s, held = time.monotonic() + SETTLED_S, Held.by(pid)
    while time.monotonic() < deadline_s:
        time.sleep(1)
        last, held = held, Held.by(pid)
        if held == last and not held.exceeds(before):
            break
    return held


def names_left() -> int:
    """Names of regions in /dev/shm."""
    return sum(name.startswith("quill-") for name in os.listdir("/dev/shm"))  # noqa: S108 - where regions are


def run(cycles: int, seed: int) -> dict[str, int]:
    """Both halves, and what was left."""
    chance = random.Random(seed)  # noqa: S311 - chance that can be repeated
    names_before = names_left()
    halves = {
        "server": kill_clients(cycles // 2, chance),
        "client": kill_servers(cycles - cycles // 2, chance),
    }
    seen = {"client_kills": cycles // 2, "server_kills": cycles - cycles // 2}
    for survivor, (before, after) in halves.items():
        for what in ("regions", "descriptors", "threads"):
            seen[f"{what}_leaked_by_{survivor}"] = max(0, getattr(after, what) - getattr(before, what))
    return seen | {"names_left": max(0, names_left() - names_before)}


def main() -> int:
    """Print what came of it; the exit status says whether nothing is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    _context.set_forkserver_preload(
        ["quill", "quill.server.server", "quill.tensors", "quill.client.sync_client", "numpy"]
    )
    seen = run(given.cycles, given.seed)
    print(json.dumps(seen) if given.json else "\n".join(f"{name}: {value}" for name, value in seen.items()))
    return 1 if any(count for name, count in seen.items() if "left" in name or "leaked" in name) else 0


if __name__ == "__main__":
    sys.exit(main())
