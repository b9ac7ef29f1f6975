"""`quill sidecar` and SidecarProcess: starting, switching, stopping, and what is said about wrong switches."""

import json
import math
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from quill.errors import InvalidUsage, Unavailable
from quill.testing.sidecar import SidecarProcess
from quill.testing.sidecar.behaviour import Behaviour, assignments
from quill.testing.sidecar.faults import Fault
from support.processes import first_line, quill

COMMAND = [sys.executable, "-m", "quill", "sidecar", "--port", "0"]


@pytest.fixture
def run():
    """Start `quill sidecar`, killed at the end if it still runs."""
    started = []

    def start(*arguments):
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def get(url, path):
    return httpx.get(url + path, trust_env=False, timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_json_says_where_and_a_signal_ends_it_with_0(run, number):
    process = run("--json")
    ready = json.loads(first_line(process))
    assert set(ready) == {"url", "websocket_url"}
    assert ready["url"].startswith("http://127.0.0.1:")
    assert ready["websocket_url"] == "ws" + ready["url"].removeprefix("http") + "/ws/generate"
    assert get(ready["url"], "/health").status_code == 200
    assert get(ready["url"], "/faults").status_code == 404
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize("dialect", ["A", "B", "C"])
def test_people_are_told_the_dialect_and_the_model(run, dialect):
    process = run("--dialect", dialect)
    text = "".join(process.stdout.readline() for _ in range(5))
    assert f"dialect {dialect}" in text
    assert "not an LLM" in text
    assert "http://127.0.0.1:" in text
    assert ("ws://" in text) is (dialect != "B")


def test_it_ends_with_clients_connected_and_waiting(run):
    process = run("--json", "--dialect", "B", "--set", "stalled=true", "--fault", "pop:delay,delay_ms=600000")
    url = json.loads(first_line(process))["url"]
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as waiting, httpx.Client(trust_env=False) as idle:
        waiting.sendall(b"GET /pop-result?request_id=x HTTP/1.1\r\nhost: x\r\n\r\n")
        assert idle.get(url + "/health").status_code == 200
        process.terminate()
        out, err = process.communicate(timeout=60)
        assert waiting.recv(100) == b""
    assert (process.returncode, out, err) == (0, "", "")


def test_switches_and_faults_of_the_command_line(run):
    process = run(
        *("--json", "--set", "tokens=2", "--set", "text_field=delta", "--set", "end=done"),
        *("--fault", "health:status,status=503,next=1", "--fault", "broadcast:html,after=1"),
    )
    url = json.loads(first_line(process))["url"]
    assert [get(url, "/health").status_code for _ in range(2)] == [503, 200]
    body = {"request_id": "x", "prompt_context": "Alice was", "max_new_tokens": 9}
    assert httpx.post(url + "/broadcast-work", json=body, trust_env=False).json()["ok"] is True
    results = []
    while len(results) < 3:
        results += [one] if (one := get(url, "/pop-result?request_id=x").json()["result"]) else []
    assert [set(one) for one in results] == [{"delta"}, {"delta"}, {"done"}]
    assert "html" in httpx.post(url + "/broadcast-work", json=body, trust_env=False).headers["content-type"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dialect", "D"), "'D'"),
        (("--set", "tokens"), "'tokens'"),
        (("--set", "tokens=-1"), "-1"),
        (("--fault", "pop"), "'pop'"),
        (("--fault", "pop:status,status=200"), "200"),
    ],
)
def test_a_wrong_switch_is_one_clear_line(arguments, said):
    ended = quill("sidecar", "--port", "0", *arguments)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("quill: ")
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokens=true", "True"),
        ("tokens=4097", "4096"),
        ("peers=2.5", "2.5"),
        ("peers=null", "None"),
        ("tokens_per_s=NaN", "nan"),
        ("tokens_per_s=0", "0.01"),
        ("end=never", "'never'"),
        ("end=[]", "event:done"),
        ("stalled=1", "got 1"),
        ("nothing=1", "'nothing'"),
    ],
)
def test_a_behaviour_that_is_not_there_is_refused(text, said):
    with pytest.raises(InvalidUsage) as refused:
        Behaviour.read(assignments([text]))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        "pop:html",
        {"kind": "html"},
        {"on": "nowhere", "kind": "html"},
        {"on": [], "kind": "html"},
        {"on": "pop", "kind": {}},
        {"on": "pop", "kind": "drop"},
        {"on": "frame", "kind": "html"},
        {"on": "pop", "kind": "html", "how": 2},
        {"on": "pop", "kind": "html", 5: 2},
        {"on": "pop", "kind": "html", "next": 0},
        {"on": "pop", "kind": "html", "next": True},
        {"on": "pop", "kind": "html", "after": None},
        {"on": "pop", "kind": "html", "probability": 1.1},
        {"on": "pop", "kind": "html", "probability": math.nan},
        {"on": "pop", "kind": "html", "hits": 1},
        {"on": "pop", "kind": "delay", "delay_ms": -1},
        {"on": "pop", "kind": "status", "status": 600},
        {"on": "pop", "kind": "redirect", "location": "/a\r\nset-cookie: b"},
        {"on": "frame", "kind": "error", "message": 7},
        {"on": "frame", "kind": "close", "code": 1005},
    ],
)
def test_a_fault_that_is_not_there_is_refused(values):
    with pytest.raises(InvalidUsage):
        Fault.read(values)


def test_a_port_in_use_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = quill("sidecar", "--port", port)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert port in line


def test_an_exit_is_seen_and_it_starts_again_on_the_same_port():
    with SidecarProcess("C") as sidecar:
        url, peer = sidecar.url, get(sidecar.url, "/health").json()["peer_id"]
        sidecar.set_faults({"on": "pop", "kind": "exit"})
        with pytest.raises(httpx.TransportError):
            get(url, "/pop-result?request_id=x")
        with pytest.raises(Unavailable):
            sidecar.report()
        sidecar.start()
        assert sidecar.url == url
        assert get(url, "/health").json()["peer_id"] != peer
        sidecar.kill()
        with pytest.raises(httpx.ConnectError):
            get(url, "/health")
        sidecar.start()
        assert get(url, "/health").json()["dialect"] == "C"
        assert sidecar.stop() == 0


def test_a_sidecar_that_does_not_start_is_an_error():
    with pytest.raises(Unavailable, match="before it was ready"), SidecarProcess("D"):
        pass


def test_wrong_faults_change_nothing(a):
    a.process.set_faults({"on": "health", "kind": "status"})
    for wrong in ({"on": "health"}, {"on": "health", "kind": "drop"}, {"on": "pop", "kind": "html", "next": "1"}):
        with pytest.raises(InvalidUsage):
            a.process.set_faults({"on": "pop", "kind": "html"}, wrong)
    with pytest.raises(InvalidUsage, match="'nothing'"):
        a.process.behave(nothing=1)
    with pytest.raises(InvalidUsage, match="at most 64"):
        a.process.set_faults(*[{"on": "pop", "kind": "html"}] * 65)
    assert [one["on"] for one in a.process.report()["faults"]] == ["health"]


def test_wrong_faults_and_a_behaviour_together_change_nothing(a):
    reply = a.http.post("/faults", json={"faults": [{"on": "pop", "kind": "html"}], "behaviour": {"nothing": 1}})
    assert reply.status_code == 422
    assert a.process.report()["faults"] == []


@pytest.mark.parametrize(
    "body", [{"unknown": 1}, {"faults": 1}, {"behaviour": []}, {"faults": [1]}, [], {"restart": 1}]
)
def test_what_is_no_switch_is_422(a, body):
    assert a.http.post("/faults", json=body).status_code == 422


def test_a_web_page_cannot_switch_faults(a):
    """A page may send only simple content types to another origin without asking; none of them is taken."""
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = a.http.post("/faults", content=b'{"restart": true}', headers={"content-type": content_type})
        assert reply.status_code == 415


def test_delete_switches_everything_off(a):
    a.process.set_faults({"on": "health", "kind": "status"})
    a.process.behave(tokens=0)
    assert a.http.delete("/faults").json()["faults"] == []
    a.broadcast(max_new_tokens=1)
    assert "token" in a.results(2)[0]
    assert a.http.put("/faults").status_code == 405


def test_headers_without_end_are_cut_off(a):
    host, port = a.process.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        with pytest.raises(OSError):  # noqa: PT011 - a reset or a broken pipe
            raw.sendall((b"x-padding: " + b"x" * 1000 + b"\r\n") * 20_000)
    assert a.http.get("/health").status_code == 200
