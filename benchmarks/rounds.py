"""How it is measured: peers side by side, forwards and backwards, and the CPU time of the processes at both ends."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from contract import Work
from drive import Order

HERE = Path(__file__).resolve().parent
_PROCESS_CPU_CLOCK = 2


def cpu_s(pid: int) -> float:
    """User and system time of a process and all its threads: clock_getcpuclockid(3), which Python does not offer."""
    return time.clock_gettime(~pid << 3 | _PROCESS_CPU_CLOCK)


class Peer:
    """A server or a client under test, in a process of its own."""

    def __init__(self, program: str, kind: str) -> None:
        self._name = f"{program} {kind}"
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / program), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def cpu_s(self) -> float:
        """The CPU time that it has used."""
        return cpu_s(self._process.pid)

    def say(self, line: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, str | float]:
        """Its next line, which is a JSON object.

        Raises:
            RuntimeError: It has ended instead.
        """
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with status {self._process.wait()}; what it wrote stands above")
        heard: dict[str, str | float] = json.loads(line)
        return heard

    def end(self) -> None:
        """Close its standard input, on which it ends."""
        self._process.communicate(timeout=30)


class Bench:
    """The processes of a run, started when they are first needed, and kept until its end."""

    def __init__(self) -> None:
        self._clients: dict[str, Peer] = {}
        self._servers: dict[str, tuple[Peer, dict[str, str | float]]] = {}

    def client(self, kind: str) -> Peer:
        """The client of this kind."""
        if kind not in self._clients:
            self._clients[kind] = Peer("drive.py", kind)
        return self._clients[kind]

    def server(self, kind: str) -> tuple[Peer, dict[str, str | float]]:
        """The server of this kind, and its URLs by port."""
        if kind not in self._servers:
            peer = Peer("serve.py", kind)
            self._servers[kind] = peer, peer.hear()
        return self._servers[kind]

    def close(self) -> None:
        """End all processes, clients first."""
        for peer in [*self._clients.values(), *(peer for peer, _ in self._servers.values())]:
            peer.end()


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """A bench that is closed at the end."""
    made = Bench()
    try:
        yield made
    finally:
        made.close()


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which client calls which server."""

    client: str
    server: str


@dataclass(frozen=True, slots=True)
class Workload:
    """What is called, over which port of the server, and how many calls at a time."""

    port: str
    """``"grpc"`` or ``"http"``."""
    work: Work
    in_flight: int


@dataclass(slots=True)
class Sample:
    """CPU and wall time of the calls of one round."""

    calls: int = 0
    client_s: float = 0.0
    server_s: float = 0.0
    wall_s: float = 0.0

    @property
    def both_s(self) -> float:
        """Client and server together."""
        return self.client_s + self.server_s


@dataclass(frozen=True, slots=True)
class Rounds:
    """The samples of each pairing, one per round."""

    samples: dict[Pairing, list[Sample]] = field(default_factory=dict)

    def us_per_call(self, pairing: Pairing, side: str = "both_s") -> float:
        """The median of the rounds."""
        return statistics.median([float(getattr(one, side)) / one.calls * 1e6 for one in self.samples[pairing]])

    def ratio(self, pairing: Pairing, against: Pairing, side: str = "both_s") -> Spread:
        """A pairing against another, round by round."""
        pairs = zip(self.samples[pairing], self.samples[against], strict=True)
        return Spread.of([getattr(mine, side) / getattr(its, side) for mine, its in pairs])


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several ratios, and their quartiles."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of values; of a single one there is none."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.q1:.2f}-{self.q3:.2f})"


def measure(on: Bench, workload: Workload, pairings: Sequence[Pairing], *, calls: int, rounds: int) -> Rounds:
    """Run a workload with all pairings in turn, forwards and backwards in each round: A B B A.

    What drifts during a round, the clock of the processor or the load of neighbours, meets all of them alike.
    """
    result = Rounds({pairing: [] for pairing in pairings})
    for pairing in pairings:  # warm: connections, caches, the compiled forms of descriptors
        _block(on, workload, pairing, calls, Sample())
    for _ in range(rounds):
        samples = {pairing: Sample() for pairing in pairings}
        for pairing in [*pairings, *reversed(pairings)]:
            _block(on, workload, pairing, calls, samples[pairing])
        for pairing, sample in samples.items():
            result.samples[pairing].append(sample)
    return result


def _block(on: Bench, workload: Workload, pairing: Pairing, calls: int, into: Sample) -> None:
    """Make calls, and add what they took."""
    client = on.client(pairing.client)
    server, urls = on.server(pairing.server)
    order = Order(str(urls[workload.port]), workload.work, calls, workload.in_flight)
    client_s, server_s = client.cpu_s(), server.cpu_s()
    client.say(json.dumps(asdict(order)))
    wall_s = float(client.hear()["wall_s"])
    into.client_s += client.cpu_s() - client_s
    into.server_s += server.cpu_s() - server_s
    into.wall_s += wall_s
    into.calls += calls
