"""The benchmarks of ends run, and find what they say: one abort each, nothing left, nobody unaware."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def bench(program, *arguments):
    """What a short run prints."""
    ended = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / program, "--json", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


WAYS = ("grpc", "connect", "grpc_web", "session_grpc", "session_h2c")


def test_cancelled_streams_stop_their_backends_and_leave_nothing():
    """The bounds are the program's own: it fails where they are passed, times by a factor of five here."""
    seen = bench("cancels.py", "--cancels", "105", "--slack", "5")
    assert seen["cancels"] == 105
    assert (seen["tasks_left"], seen["backends_left"]) == (0, 0)
    points = ("token_0", "token_1", "token_25", "blocked", "terminal")
    assert {f"{way}_{point}_p99_ms" for way in WAYS for point in points} < set(seen)


def test_the_end_of_a_process_is_noticed_at_the_other_end():
    seen = bench("kills.py", "--clients", "5", "--servers", "5")
    assert [seen[f"{victim}_kills"] for victim in ("client", "server", "unanswered_server", "replaced_server")] == [
        5
    ] * 4
    assert seen["backends_left"] == 0
    assert seen["client_kill_noticed_p99_ms"] < 5 * 250
    assert seen["server_kill_noticed_p99_ms"] < 5 * 250
    assert seen["unanswered_server_kill_noticed_p99_ms"] < 5 * 1000


def test_a_backend_runs_no_further_ahead_of_a_reader_that_stopped_than_it_may():
    """The bounds are the program's own: it fails where they are passed."""
    ways = ("connect", "session_grpc")
    seen = bench("stopped_reader.py", "--ways", *ways)
    assert set(seen) == {
        f"{way}_{size}_{unit}_ahead" for way in ways for size in ("small", "bulky") for unit in ("tokens", "bytes")
    }
    assert seen["session_grpc_small_tokens_ahead"] <= 256


def test_a_peer_that_fell_silent_is_noticed_at_both_ends():
    seen = bench("silent_peers.py")
    bound_s = seen.pop("bound_s")
    assert set(seen) == {
        *(f"server_noticed_{way}_s" for way in WAYS),
        *(f"client_noticed_{way}_s" for way in ("grpc", "session_grpc")),
    }
    assert all(value < 5 * bound_s for value in seen.values())


def test_a_server_that_stops_lets_streams_end_and_tells_the_others():
    seen = bench("drain.py", "--streams", "24", "--restarts", "0", "--slack", "5")
    assert (seen["ended_within_the_grace"], seen["not_ended_within_the_grace"]) == (12, 0)
    assert (seen["unavailable_with_position"], seen["ended_otherwise"]) == (12, 0)
    assert (seen["orphan_runs"], seen["exit_status"]) == (0, 0)
    assert {"exit_after_grace_s", "exit_after_second_signal_s"} < set(seen)


def test_calls_that_may_run_twice_do_not_notice_a_restart():
    seen = bench("drain.py", "--streams", "0", "--restarts", "2")
    assert seen["restarts"] == 2
    assert seen["idempotent_calls"] > 20
    assert seen["failed_idempotent_calls"] == 0


def test_peers_that_are_killed_in_the_middle_of_tensors_leave_none_of_their_lanes():
    seen = bench("lane_kills.py", "--cycles", "4")
    assert (seen.pop("client_kills"), seen.pop("server_kills")) == (2, 2)
    assert set(seen.values()) == {0}
