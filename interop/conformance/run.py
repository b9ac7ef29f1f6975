"""Run the official Connect conformance suite against Quill's server and both of its clients.

usage: python interop/conformance/run.py [server | client-async | client-sync ...]

Prints how many cases passed, by protocol, and where all three ran writes it into README.md. What is known to fail is in
known.toml. Exits with 1 where anything else fails, or something there does not.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from prepare import HERE, RUNNER, VERSION

README = HERE.parent.parent / "README.md"
BEGIN, END = "<!-- conformance: written by make conformance -->\n", "<!-- end of conformance -->\n"
PROTOCOLS = {"CONNECT": "Connect", "GRPC": "gRPC", "GRPC_WEB": "gRPC-Web"}
PROGRAMS = {
    "server": ("quill.Server", "server", "server.py"),
    "client-async": ("AsyncQuillClient", "client", "client_async.py"),
    "client-sync": ("QuillClient", "client", "client_sync.py"),
}
TIMEOUT_S = 480
_STARTED = re.compile(r"^Running (\d+) tests with .*\{\w+, PROTOCOL_(\w+), ", re.M)
_TOTAL = re.compile(r"^Total cases: (\d+)$", re.M)
_KNOWN = re.compile(r"^Loaded \d+ known (?:failing|flaky) .* that match (\d+) test case", re.M)
_FAILED = re.compile(r"^FAILED: (.+?)(?::$| was expected to fail but did not$)", re.M)


@dataclass
class Tally:
    """How many cases there were, by protocol, how many are known to fail at times, and failed besides."""

    cases: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    is_ok: bool = True

    def add(self, output: str, status: int) -> None:
        """Count what the runner has printed."""
        started = Counter({PROTOCOLS[protocol]: 0 for protocol in PROTOCOLS})
        for count, protocol in _STARTED.findall(output):
            started[PROTOCOLS[protocol]] += int(count)
        self.cases += started
        self.is_ok &= [str(started.total())] == _TOTAL.findall(output)
        self.known["gRPC"] += sum(map(int, _KNOWN.findall(output)))  # all that is known is C-core's
        self.failed.update(_protocol(name) for name in _FAILED.findall(output))
        self.is_ok &= status == 0

    def row(self) -> list[str]:
        """Passed and all cases, by protocol and together."""
        by_protocol = [self._cell([protocol]) for protocol in PROTOCOLS.values()]
        return [*by_protocol, self._cell(list(PROTOCOLS.values()))]

    def _cell(self, protocols: list[str]) -> str:
        cases = sum(self.cases[protocol] for protocol in protocols)
        failed = sum(self.known[protocol] + self.failed[protocol] for protocol in protocols)
        return f"{cases - failed:,} of {cases:,}"


def _protocol(name: str) -> str:
    """The protocol of a case. A suite for one protocol begins with its name, and its cases do not repeat it."""
    if found := re.search(r"/Protocol:PROTOCOL_(\w+)/", name):
        return PROTOCOLS[found[1]]
    suite = name.partition("/")[0]
    return next(protocol for protocol in ("gRPC-Web", "gRPC", "Connect") if protocol in suite)


def run(name: str, known: list[dict[str, Any]]) -> Tally:
    """Run the suite against one program: first all cases but those that spoil others, then these."""
    tally = Tally()
    mode = PROGRAMS[name][1]
    apart = [case for entry in known if entry.get("apart") for case in entry.get(mode, ())]
    together = [entry for entry in known if not entry.get("apart")]
    failing = [case for entry in together for case in entry.get(mode, ())]
    flaky = [case for entry in together for case in entry.get(f"{mode}_flaky", ())]
    _run(name, [*_each("--known-failing", failing), *_each("--known-flaky", flaky), *_each("--skip", apart)], tally)
    if apart:
        _run(name, [*_each("--run", apart), *_each("--known-failing", apart)], tally)
    return tally


def _each(flag: str, cases: list[str]) -> list[str]:
    return [part for case in cases for part in (flag, case)]


def _run(name: str, flags: list[str], tally: Tally) -> None:
    """Run the runner once."""
    _, mode, program = PROGRAMS[name]
    command = [str(RUNNER), "--conf", str(HERE / f"{name}.yaml"), "--mode", mode, "-v", *flags]
    # A server has ten seconds to start, and half a second to tell how much of a deadline is left: on a busy machine
    # several at once, or too many calls at once, would be late.
    command += ["--max-servers", "1", "--parallel", "4"] if mode == "server" else []
    command += ["--", sys.executable, str(HERE / program)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_S, check=False)
    output = done.stdout.decode(errors="replace")
    tally.add(output, done.returncode)
    if done.returncode:
        print(output)


def table(tallies: dict[str, Tally]) -> str:
    """What passed, in Markdown."""
    lines = [["", *PROTOCOLS.values(), "together"], ["---"] * (len(PROTOCOLS) + 2)]
    lines += [[f"`{PROGRAMS[name][0]}`", *tally.row()] for name, tally in tallies.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_readme(text: str, known: int) -> None:
    """Put the table into README.md, between its two marks."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    note = (
        f"Cases of `connectconformance` {VERSION} that passed. The others are known: {known} ways of gRPC's C-core,\n"
        "each with its reason in [known.toml](interop/conformance/known.toml).\n"
    )
    README.write_text(f"{before}{BEGIN}{text}\n{note}{END}{after}")


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("programs", nargs="*", choices=[[], *PROGRAMS], help="without any, all of them")
    names = parser.parse_args().programs or list(PROGRAMS)
    known = tomllib.loads((HERE / "known.toml").read_text())["known"]
    tallies = {name: run(name, known) for name in names}
    print(table(tallies))
    if len(tallies) == len(PROGRAMS):
        write_readme(table(tallies), len(known))
    return 0 if all(tally.is_ok for tally in tallies.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
