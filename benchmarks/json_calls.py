"""call_json over gRPC with a reply of 512 tokens: CPU time against a stub with protobuf's own json_format.

usage: python benchmarks/json_calls.py [--json] [--rounds N] [--calls N]
"""

from __future__ import annotations

import report
from rounds import Bench, Pairing, Workload, measure

BOUND = 0.5
CALLS = 60

WORKLOADS = [Workload("grpc", "json_512_tokens", in_flight) for in_flight in (1, 32)]


def compare(on: Bench, workload: Workload, options: report.Options) -> report.Comparison:
    """call_json and quill.Server against ParseDict, a grpc.aio stub, MessageToDict and a grpc.aio server."""
    bare, quill = Pairing("bare-grpc", "bare-grpc"), Pairing("quill", "quill")
    seen = measure(on, workload, [bare, quill], calls=options.calls or CALLS, rounds=options.rounds)
    return report.Comparison(
        name=f"grpc_{workload.work}_{workload.in_flight}_in_flight",
        bound=BOUND,
        ratio=seen.ratio(quill, bare),
        parts={
            "client": seen.ratio(quill, bare, "client_s"),
            "server": seen.ratio(quill, bare, "server_s"),
        },
        bare_us=seen.us_per_call(bare),
        quill_us=seen.us_per_call(quill),
    )


def run(options: report.Options) -> list[report.Comparison]:
    """All workloads."""
    return report.run_all(options, WORKLOADS, compare)


if __name__ == "__main__":
    given = report.options(__doc__)
    report.show(given, run(given))
