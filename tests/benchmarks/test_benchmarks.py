"""The benchmarks run, say what their README says they say, and would notice a gross regression."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SMALL = [f"{kind}_{n}_in_flight" for kind in ("grpc_bytes", "grpc_message") for n in (1, 32)]
OVER_HTTP = [f"{kind}_{n}_in_flight" for kind in ("connect_message", "connect_json") for n in (1, 32)]
TOKENS = [f"grpc_json_512_tokens_{n}_in_flight" for n in (1, 32)]
EVERY = {"cpu_ratio", "cpu_ratio_q1", "cpu_ratio_q3", "client_cpu_ratio", "server_cpu_ratio"} | {
    "bare_cpu_us",
    "quill_cpu_us",
}
ALONE = {"client_alone_cpu_ratio", "server_alone_cpu_ratio"}


def bench(program, *arguments):
    """What a short run prints."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", BENCHMARKS / program, "--rounds", "1", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    ("program", "arguments", "names", "parts", "bound"),
    [
        ("unary.py", ("--only", "grpc", "--calls", "64"), SMALL, EVERY | ALONE, 1.25),
        ("unary.py", ("--only", "http", "--calls", "64"), OVER_HTTP, EVERY | ALONE, 1.25),
        ("json_calls.py", ("--calls", "8"), TOKENS, EVERY, 0.5),
    ],
    ids=["grpc", "connect", "json"],
)
def test_a_short_run_prints_the_documented_keys_and_no_gross_regression(program, arguments, names, parts, bound):
    values = json.loads(bench(program, "--json", *arguments))
    assert set(values) == {f"{name}_{part}" for name in names for part in parts}
    assert all(value > 0 for value in values.values())
    for name in names:
        assert values[f"{name}_cpu_ratio"] < 5 * bound


def test_all_of_them_make_one_table():
    lines = bench("run.py", "--only", "grpc", "--calls", "4").splitlines()
    assert "grpcio" in lines[0]
    assert [line.split("  ")[0] for line in lines[3:]] == [name.replace("_", " ") for name in SMALL + TOKENS]


def test_the_readme_names_every_comparison():
    text = (BENCHMARKS / "README.md").read_text()
    for name in SMALL + OVER_HTTP + TOKENS:
        assert f"`{name.rpartition('_in_flight')[0].rpartition('_')[0]}`" in text


@pytest.fixture
def rounds(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import rounds

    return rounds


def test_the_cpu_clock_is_that_of_the_other_process_with_its_threads(rounds):
    work = "\n".join(
        [
            "import hashlib, threading, time",
            "burn = lambda: hashlib.pbkdf2_hmac('sha256', b'', b'', 400_000)",
            "threads = [threading.Thread(target=burn) for _ in range(2)]",
            "for thread in threads: thread.start()",
            "for thread in threads: thread.join()",
            "print(time.process_time(), flush=True)",
            "input()",
        ]
    )
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        told_s = float(process.stdout.readline())
        assert rounds.cpu_s(process.pid) == pytest.approx(told_s, abs=0.05)
        process.communicate("\n", timeout=30)


def test_the_spread_is_median_and_quartiles(rounds):
    assert rounds.Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == rounds.Spread(3.0, 2.0, 4.0)
    assert rounds.Spread.of([1.5]) == rounds.Spread(1.5, 1.5, 1.5)


def test_peers_take_turns_forwards_and_backwards(rounds, monkeypatch):
    turns = []

    def block(on, workload, pairing, calls, into):
        turns.append(pairing.client)
        into.calls, into.client_s, into.server_s = into.calls + calls, into.client_s + 1.0, into.server_s + 3.0

    monkeypatch.setattr(rounds, "_block", block)
    a, b = rounds.Pairing("a", "s"), rounds.Pairing("b", "s")
    seen = rounds.measure(None, rounds.Workload("grpc", "bytes", 1), [a, b], calls=10, rounds=2)
    assert turns == ["a", "b", *"abba", *"abba"]
    assert seen.us_per_call(a) == pytest.approx(8.0 / 20 * 1e6)
    assert seen.ratio(a, b).median == 1.0


def sessions(*arguments):
    """What a short run of the benchmark of sessions says."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", BENCHMARKS / "sessions.py", *arguments, "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SESSIONS_TOKENS": "20"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("way", ["stepped", "tasks", "streams"])
def test_generations_are_held_at_their_pace(way):
    figures = sessions("--way", way, "--generations", "20", "--seconds", "3")
    assert figures["tokens_per_s"] == pytest.approx(figures["tokens_wanted_per_s"], rel=0.5)
    assert figures["generations_measured"] > 0
    assert figures["first_token_p50_ms"] > 0
    assert figures["server_us_per_token"] > 0
    assert figures["wrong"] == 0


def test_what_was_measured_of_sessions_becomes_a_picture(tmp_path):
    point = {"held": True, "first_token_p99_ms": 5.0, "server_us_per_token": 3.0, "client_us_per_token": 4.0}
    points = [
        point | {"way": way, "generations": count} for way in ("stepped", "tasks", "streams") for count in (100, 200)
    ]
    saved, picture = tmp_path / "saved.json", tmp_path / "sessions.png"
    saved.write_text(json.dumps({"points": points}))
    assert sessions("--from", saved, "--plot", picture) == {"points": points}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_tokens_go_through_one_session_faster_than_by_streams():
    figures = sessions("--throughput", "--generations", "64")
    assert figures["iterator_over_streams"] > 1
