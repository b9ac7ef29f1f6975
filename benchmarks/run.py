"""All benchmarks, in one table or one JSON object.

usage: python benchmarks/run.py [--json] [--rounds N] [--calls N] [--only grpc|http]
"""

from __future__ import annotations

import json_calls
import report
import unary

if __name__ == "__main__":
    given = report.options(__doc__)
    report.show(given, [*unary.run(given), *json_calls.run(given)])
