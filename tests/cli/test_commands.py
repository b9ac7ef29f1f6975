"""The command line as a person and as a pipe sees it, against a real server process."""

import json
import signal
import subprocess
import sys
import time

import pytest

from support.processes import first_line, quill, serving


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
    ended = quill("generate", "-", "--url", server["http"], "--max-tokens", "3", "--json", stdin="Hello")
    answer = json.loads(ended.stdout)
    assert answer["usage"]["completionTokens"] == 3
    assert len(answer["choices"][0]["tokens"]["tokens"]) == 3


def test_models_names_the_model_and_says_what_it_is(server):
    ended = quill("models", "--url", server["http"])
    assert server["model"] in ended.stdout
    assert "not an LLM" in ended.stdout


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_call_prints_one_line_of_json_an_answer(server, protocol):
    url = server["http"] if protocol == "http" else "grpc://" + server["grpc"]
    request = '{"prompt": "Hello", "maxTokens": 4, "seed": 1}'
    ended = quill("call", url, "inference.v1.LLMService/StreamGenerate", request)
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert "started" in events[0]
    assert events[-1]["completed"]["usage"]["completionTokens"] == 4


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
        (["generate", "x", "--url", "http://127.0.0.1:9"], 1, "127.0.0.1:9"),
        (["serve", "--backend", "nope"], 2, "nope"),
        (["serve", "--grpc", "nonsense", "--http", "127.0.0.1:0"], 2, "nonsense"),
    ],
)
def test_a_failure_is_one_clear_line_and_an_exit_status(server, arguments, status, named):
    ended = quill(*(argument.replace("{http}", server["http"]) for argument in arguments))
    assert (ended.returncode, ended.stdout) == (status, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("quill: ")
    assert named in line


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


def test_ctrl_c_ends_generate_at_once(server):
    command = [sys.executable, "-m", "quill", "generate", "Alice", "--url", server["http"], "--max-tokens", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first_line(process)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, err = process.communicate(timeout=20)
    assert process.returncode in {0, 130}  # it may have been done already
    assert time.monotonic() - start < 5
    assert "Traceback" not in err


def test_the_demo_shows_both_protocols_and_ends():
    ended = quill("demo")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    figures = [line.split() for line in ended.stdout.splitlines() if "tokens/s" in line]
    assert [line[0] for line in figures] == ["gRPC", "Connect"]
    assert "not an LLM" in ended.stdout
    assert "\x1b" not in ended.stdout
