"""What `make conformance` makes of the runner's words, and what it writes into the README."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2] / "interop" / "conformance"

# As connectconformance v1.0.7 printed them.
OUTPUT = """\
Computed 672 config case permutations.
Loaded 4 known failing test case pattern(s) that match 8 test case permutation(s).
Loaded 2 known flaky test case pattern(s) that match 2 test case permutation(s).
Running 568 tests with reference-client for server config #1 {HTTP_VERSION_1, PROTOCOL_CONNECT, TLS:false}...
Running 6 tests with reference-client for server config #3 {HTTP_VERSION_1, PROTOCOL_CONNECT, TLS:true (with client certs)}...
Running 456 tests with reference-client for server config #4 {HTTP_VERSION_1, PROTOCOL_GRPC_WEB, TLS:false}...
Running 170 tests with reference-client (grpc) for server config #11 {HTTP_VERSION_2, PROTOCOL_GRPC, TLS:false}...
INFO: gRPC Unexpected Requests/HTTPVersion:2/TLS:true/unexpected-codec failed (as expected):
\texpecting an error but received none
FAILED: Errors/HTTPVersion:2/Protocol:PROTOCOL_GRPC_WEB/Codec:CODEC_PROTO/Compression:COMPRESSION_GZIP/TLS:false/unary/internal:
\tactual error {code: 13 (internal), message: "x"} does not match expected message "internal"
FAILED: Connect with GET/HTTPVersion:1/Codec:CODEC_PROTO/TLS:false/success was expected to fail but did not

Total cases: 1200
"""  # noqa: E501 - as they are


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    spec = importlib.util.spec_from_file_location("conformance_run", HERE / "run.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_cases_are_counted_by_protocol(run):
    tally = run.Tally()
    tally.add(OUTPUT, 1)
    assert tally.row() == ["573 of 574", "160 of 170", "455 of 456", "1,188 of 1,200"]
    assert not tally.is_ok


def test_a_number_of_cases_that_the_runner_does_not_confirm_is_no_success(run):
    for output, is_ok in ((OUTPUT, True), (OUTPUT.replace("cases: 1200", "cases: 1199"), False), ("", False)):
        tally = run.Tally()
        tally.add(output, 0)
        assert tally.is_ok is is_ok


def test_the_readme_says_what_the_table_says_and_keeps_the_rest(run, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "README", tmp_path / "README.md")
    run.README.write_text(f"before\n{run.BEGIN}old\n{run.END}after\n")
    tally = run.Tally()
    tally.add(OUTPUT, 0)
    for _ in range(2):
        run.write_readme(run.table({"server": tally}), 5)
        before, table, after = run.README.read_text().partition("| `quill.Server` | 573 of 574 | 160 of 170 |")
        assert (before.startswith("before\n"), bool(table), after.endswith("after\n")) == (True, True, True)
        assert "old" not in before + after


def test_what_is_known_to_fail_is_short_and_has_its_reason(run):
    known = tomllib.loads((HERE / "known.toml").read_text())["known"]
    assert len(known) <= 5
    for entry in known:
        assert entry["reason"]
        assert entry["upstream"].startswith("https://github.com/")
        assert {"server", "client", "client_flaky"} & set(entry)
