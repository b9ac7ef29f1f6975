"""The command line as a person and as a pipe sees it, against a real server process."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.processes import SERVE, first_line, quill, serving, shell

GENERATE = "inference.v1.LLMService/Generate"


def test_generate_streams_text_and_ends(server):
    ended = quill("generate", "Alice was", "--url", server["http"], "--max-tokens", "8", "--seed", "7")
    assert ended.returncode == 0
    assert ended.stdout.strip()
    assert ended.stderr == ""


def test_generate_is_equal_over_both_protocols(server):
    options = ["--max-tokens", "12", "--seed", "7"]
    over_connect = quill("generate", "The Queen", "--url", server["http"], *options)
    over_grpc = quill("generate", "The Queen", "--url", "grpc://" + server["grpc"], *options)
    assert over_connect.stdout == over_grpc.stdout != ""


def test_generate_reads_standard_input_and_prints_json(server):
    ended = quill("generate", "-", "--url", server["http"], "--max-tokens", "3", "--seed", "1", "--json", stdin="Hello")
    answer = json.loads(ended.stdout)
    assert answer["usage"]["completionTokens"] == 3
    assert len(answer["choices"][0]["tokens"]["tokens"]) == 3


def test_models_names_the_model_and_says_what_it_is(server):
    ended = quill("models", "--url", server["http"])
    lines = ended.stdout.splitlines()
    assert lines[0] == f"{server['model']}, ngram"
    assert "not an LLM" in lines[1]
    shown = {line.split()[0]: line for line in lines[2:]}
    assert "2048 tokens" in shown["context"]
    assert "temperature 0.7" in shown["defaults"]
    assert "max_tokens 64" in shown["defaults"]
    assert " embed, " in shown["can"]
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_call_prints_one_line_of_json_an_answer(server, protocol):
    url = server["http"] if protocol == "http" else "grpc://" + server["grpc"]
    request = '{"prompt": "Hello", "maxTokens": 4, "seed": 1}'
    ended = quill("call", url, "inference.v1.LLMService/StreamGenerate", request)
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert "started" in events[0]
    assert events[-1]["completed"]["usage"]["completionTokens"] == 4


def test_commands_speak_http2_to_a_server_that_serves_it():
    with serving("--http2") as (_, ready):
        url = ready["http"]
        text = quill("generate", "Alice was", "--url", url, "--http2", "--max-tokens", "3", "--seed", "1")
        assert text.stdout == quill("generate", "Alice was", "--url", url, "--max-tokens", "3", "--seed", "1").stdout
        assert quill("models", "--url", url, "--http2").stdout.startswith("ngram")
        reply = quill("call", url, "inference.v1.LLMService/ListModels", "--http2")
        assert json.loads(reply.stdout)["models"]
    refused = quill("models", "--url", "grpc://127.0.0.1:1", "--http2")
    assert refused.returncode == 2
    assert "gRPC always speaks HTTP/2" in refused.stderr


def test_call_reaches_a_service_by_its_health(server):
    ended = quill("call", server["http"], "grpc.health.v1.Health/Check", '{"service": "inference.v1.LLMService"}')
    assert json.loads(ended.stdout) == {"status": "SERVING"}


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["call", "{http}", "no.such.Service/Method"], 1, "no.such.Service"),
        (["call", "{http}", "inference.v1.LLMService/Generate", '{"promt": "x"}'], 1, "promt"),
        (["call", "{http}", "inference.v1.LLMService/Generate", "nonsense"], 2, "not JSON"),
        (["call", "{http}", "Generate"], 2, "SERVICE/METHOD"),
        (["call", "htp://x", "a.B/C"], 2, "htp"),
        (["call", "{http}", "a.B/C", "--header", "nocolon"], 2, "NAME:VALUE"),
        (["generate", "x", "--url", "{http}", "--temperature", "-1"], 1, "temperature"),
        (["generate", "x", "--url", "{http}", "--model", "gpt"], 1, "ngram"),
        (["generate", "x", "--url", "{http}", "--header", "nocolon"], 2, "NAME:VALUE"),
        (["models", "--url", "{http}", "--header", "nocolon"], 2, "NAME:VALUE"),
        (["generate", "x", "--url", "http://127.0.0.1:9"], 1, "127.0.0.1:9"),
        (["serve", "--backend", "nope"], 2, "nope"),
        (["serve", "--grpc", "nonsense", "--http", "127.0.0.1:0"], 2, "nonsense"),
        (["serve", "--http", "a..b:80", "--grpc", "127.0.0.1:0"], 2, "a..b:80"),
        (["serve", "--grace-s", "nan"], 2, "nan"),
        (["serve", "--grace-s", "-1"], 2, "-1"),
        (["call", "{http}", "a.B/C", "[" * 20_000], 2, "nested too deep"),
        (["call", "{http}", "a.B/C", f'{{"a": {"9" * 5000}}}'], 2, "too many digits"),
        (["call", "{http}", "a.B/C", '{"a": 1, "a": 2}'], 2, "twice"),
        (["call", "{http}", "a.B/C", "[]"], 2, "object"),
    ],
)
def test_a_failure_is_one_clear_line_and_an_exit_status(server, arguments, status, named):
    ended = quill(*(argument.replace("{http}", server["http"]) for argument in arguments))
    assert (ended.returncode, ended.stdout) == (status, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("quill: ")
    assert named in line


@pytest.mark.parametrize(
    "command",
    [
        "generate Alice --url {http} --max-tokens 500",
        "generate Alice --url {http} --json",
        "call {http} inference.v1.LLMService/ListModels",
        "models --url {http}",
    ],
)
def test_a_reader_that_goes_away_is_no_failure(server, command):
    quill_command = f"{sys.executable} -m quill {command.format(**server)}"
    ended = shell(f"set -o pipefail; {quill_command} | head -c 3")
    assert (ended.returncode, len(ended.stdout), ended.stderr) == (0, 3, "")


@pytest.mark.parametrize(
    "command",
    [
        "generate Alice --url {http} --max-tokens 5",
        "call {http} inference.v1.LLMService/ListModels",
        "models --url {http}",
        "serve --grpc 127.0.0.1:0 --http 127.0.0.1:0",
    ],
)
def test_output_that_cannot_be_written_is_one_clear_line(server, command):
    ended = shell(f"{sys.executable} -m quill {command.format(**server)} > /dev/full")
    assert ended.returncode == 1
    assert ended.stderr == "quill: cannot write to standard output: No space left on device\n"


def test_a_server_whose_addresses_nobody_reads_says_so_and_ends():
    ended = shell(f"{sys.executable} -m quill serve --grpc 127.0.0.1:0 --http 127.0.0.1:0 | true")
    assert ended.stderr == "quill: nobody reads standard output, where the addresses are told\n"


@pytest.mark.parametrize(
    ("redirected", "named"), [("<&-", "closed"), ("< <(printf 'a\\xff')", "byte 1"), ("< <(printf '\\xff')", "byte 0")]
)
@pytest.mark.parametrize("command", ["generate - --url {http}", "call {http} a.B/C -"])
def test_input_that_cannot_be_read_is_one_clear_line(server, command, redirected, named):
    ended = shell(f"{sys.executable} -m quill {command.format(**server)} {redirected}")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("quill: standard input is ")
    assert named in line


def test_text_that_the_terminal_cannot_show_is_replaced_and_json_stays_whole(server):
    request = json.dumps({"prompt": "a", "responseFormat": {"choice": {"values": ["\u00e9\U0001f600"]}}})
    ended = shell(f"PYTHONIOENCODING=ascii {sys.executable} -m quill call {server['http']} {GENERATE} '{request}'")
    assert json.loads(ended.stdout)["text"] == "\u00e9\U0001f600"
    text = f"generate a --url {server['http']} --temperature 1e30 --max-tokens 200 --seed 1"
    ended = shell(f"PYTHONIOENCODING=ascii {sys.executable} -m quill {text}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "?" in ended.stdout


def test_wrong_usage_exits_with_2():
    ended = quill("generate")
    assert ended.returncode == 2
    assert "prompt" in ended.stderr


def test_a_port_in_use_is_one_clear_line(server):
    ended = quill("serve", "--grpc", server["grpc"], "--http", "127.0.0.1:0")
    assert ended.returncode != 0
    (line,) = ended.stderr.splitlines()
    assert server["grpc"] in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops_in_order_on_a_signal(number):
    with serving() as (process, _):
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_ctrl_c_while_the_command_loads_shows_no_traceback():
    command = [sys.executable, "-X", "importtime", *SERVE[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == "quill.cli.terminal":  # all that is heavy comes after it
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    # CPython ends by the signal itself where the interrupt came up through an exec(): to a shell, that is 130 too.
    assert process.returncode in {0, 130, -signal.SIGINT}
    assert "Traceback" not in err


def test_serve_takes_more_connections_than_the_usual_soft_limit_allows():
    command = ["/bin/bash", "-c", f"ulimit -Sn 64; exec {' '.join(SERVE)}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = urlsplit(json.loads(first_line(process))["http"])
            with contextlib.ExitStack() as stack:
                for _ in range(100):
                    connection = stack.enter_context(socket.create_connection((url.hostname, url.port), timeout=20))
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n")
                    assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        finally:
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


def test_ctrl_c_ends_generate_at_once(server):
    command = [sys.executable, "-m", "quill", "generate", "Alice", "--url", server["http"], "--max-tokens", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first_line(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    # It may have been done already, or be in its last milliseconds, when Python lets signals have their default.
    assert process.returncode in {0, 130, -signal.SIGINT}
    assert "Traceback" not in err


LAST_MOMENT = """
import os, signal, sys
from quill.cli import main

def disarm(number, handler, disarm=signal.signal):
    signal.signal = disarm
    os.kill(os.getpid(), signal.SIGINT)
    return disarm(number, handler)

signal.signal = disarm
sys.argv = ["quill", "--help"]
main.main()
"""


def test_ctrl_c_in_the_last_moment_of_a_command_shows_nothing():
    command = [sys.executable, "-c", LAST_MOMENT]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_demo_that_is_ended_leaves_no_server_behind(number):
    command = [sys.executable, "-m", "quill", "demo", "--max-tokens", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first_line(process)
        assert first_line(process).startswith("The model")  # all have told where they are
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (128 + number, "")
    assert len(children) == 3
    assert not any(Path("/proc", child).exists() for child in children)


def test_the_demo_shows_every_hop_in_80_columns_and_ends():
    ended = quill("demo")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    header = next(place for place, line in enumerate(lines) if line.endswith("tokens/s"))
    rows = [re.fullmatch(r"(.+?) +48 +([0-9.]+) ms +([0-9]+)", line) for line in lines[header + 1 :]]
    through = ("", " > Quill, gRPC", " > Quill, Connect")
    ways = ("sidecar, polling", "sidecar, WebSocket")
    assert [row[1] for row in rows] == [way + hop for way in ways for hop in through]
    assert all(float(row[2]) > 0 and int(row[3]) > 0 for row in rows)
    assert "not an LLM" in ended.stdout
    assert "\x1b" not in ended.stdout
