"""Small unary calls: CPU time through Quill against bare grpc.aio, and against bare uvicorn with connectrpc.

usage: python benchmarks/unary.py [--json] [--rounds N] [--calls N] [--only grpc|http]
"""

from __future__ import annotations

import report
from contract import Work
from rounds import Bench, Pairing, Workload, measure

BOUND = 1.25
CALLS = 250

_KINDS: list[tuple[str, Work]] = [("grpc", "bytes"), ("grpc", "message"), ("http", "message"), ("http", "json")]
WORKLOADS = [Workload(port, work, in_flight) for port, work in _KINDS for in_flight in (1, 32)]
BARE = {"grpc": "bare-grpc", "http": "bare-connect"}
NAMES = {"grpc": "grpc", "http": "connect"}


def compare(on: Bench, workload: Workload, options: report.Options) -> report.Comparison:
    """One workload: both ends bare, both ends Quill's, and each of Quill's with the other end bare."""
    bare = BARE[workload.port]
    both_bare, both_quill = Pairing(bare, bare), Pairing("quill", "quill")
    only_server, only_client = Pairing(bare, "quill"), Pairing("quill", bare)
    pairings = [both_bare, only_server, only_client, both_quill]
    seen = measure(on, workload, pairings, calls=options.calls or CALLS, rounds=options.rounds)
    name = f"{NAMES[workload.port]}_{workload.work}_{workload.in_flight}_in_flight"
    return report.Comparison(
        name=name,
        bound=BOUND,
        ratio=seen.ratio(both_quill, both_bare),
        parts={
            "client": seen.ratio(both_quill, both_bare, "client_s"),
            "server": seen.ratio(both_quill, both_bare, "server_s"),
            "client_alone": seen.ratio(only_client, both_bare, "client_s"),
            "server_alone": seen.ratio(only_server, both_bare, "server_s"),
        },
        bare_us=seen.us_per_call(both_bare),
        quill_us=seen.us_per_call(both_quill),
    )


def run(options: report.Options) -> list[report.Comparison]:
    """All workloads."""
    return report.run_all(options, WORKLOADS, compare)


if __name__ == "__main__":
    given = report.options(__doc__)
    report.show(given, run(given))
