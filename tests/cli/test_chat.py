"""`quill chat` as a person at a terminal and as a pipe sees it: real processes against real servers."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import grpc
import pytest

from client.harness import Host
from quill.adapters.ngram.backend import NgramBackend
from quill.llm.servicer import LLMServicer
from quill.proto import (
    Completed,
    Delta,
    GetModelResponse,
    ListModelsResponse,
    LLMServiceServicer,
    SequenceDone,
    Started,
    StreamGenerateResponse,
    add_LLMServiceServicer_to_server,
)
from quill.server.server import Server
from support.processes import first_line, quill, serving
from support.terminal import CTRL_C, CTRL_D, Terminal

PROMPT = "> "


class Scripted(LLMServiceServicer):
    """Keeps what it is asked, and answers with what a test says; describes no models where it has none."""

    def __init__(self):
        self.models = []
        self.answers = []
        self.hangs = False
        self.requests = []
        self.metadata = []

    async def ListModels(self, request, context):  # noqa: N802 - the contract's name
        if not self.models:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")
        return ListModelsResponse(models=[{"name": name} for name in self.models])

    async def GetModel(self, request, context):  # noqa: N802
        return GetModelResponse(model={"name": request.name, "weights_origin": "made up"})

    async def StreamGenerate(self, request, context):  # noqa: N802
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        answer = self.answers[len(self.requests) - 1] if len(self.requests) <= len(self.answers) else "ok"
        yield StreamGenerateResponse(position=0, started=Started(request_id=request.request_id, model="m"))
        yield StreamGenerateResponse(position=1, delta=Delta(text=answer))
        if self.hangs:
            await asyncio.Event().wait()
        yield StreamGenerateResponse(position=2, sequence_done=SequenceDone())
        yield StreamGenerateResponse(position=3, completed=Completed(entries=4))

    def said(self):
        """The messages of each request, as role and content."""
        return [[(message.role, message.content) for message in request.messages] for request in self.requests]


@pytest.fixture(scope="module")
def here():
    """Servers in this process: the embedded model with 30 ms a token, and a scripted service."""
    backend = NgramBackend(token_delay_ms=30)
    servicer, scripted = LLMServicer(backend), Scripted()

    async def start(what):
        server = Server("127.0.0.1:0", "127.0.0.1:0")
        add_LLMServiceServicer_to_server(what, server)
        await server.start()
        return server

    async def stop():
        await slow.stop(0)
        await script.stop(0)
        await servicer.aclose()
        await backend.aclose()

    with Host() as host:
        slow, script = host.run(start(servicer)), host.run(start(scripted))
        yield SimpleNamespace(
            host=host,
            slow={"http": slow.http_url, "grpc": f"grpc://{slow.grpc_address}"},
            runs=lambda: len(servicer._runs._alive),
            scripted=scripted,
            script_url=script.http_url,
        )
        host.run(stop())


@pytest.fixture
def scripted(here):
    """The scripted service, as if new."""
    here.scripted.__init__()
    return here.scripted


def piped(*arguments, said):
    return quill("chat", *arguments, stdin="".join(f"{line}\n" for line in said))


def url_of(server, protocol):
    return server["http"] if protocol == "http" else f"grpc://{server['grpc']}"


# By pipe


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_lines_from_a_pipe_are_answered(server, protocol):
    options = ["--url", url_of(server, protocol), "--max-tokens", "6", "--seed", "2"]
    ended = piped(*options, said=["Who are you?", "", "And what else?"])
    opening, *answers = ended.stdout.splitlines()
    assert opening.startswith("ngram-alice: n-gram over Alice's Adventures in Wonderland")
    assert "not an LLM" in opening
    assert len(answers) == 2
    assert all(answer == answer.strip() != "" for answer in answers)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    assert PROMPT not in ended.stdout


def test_the_last_line_needs_no_end(server):
    ended = quill("chat", "--url", server["http"], "--max-tokens", "2", "--seed", "3", stdin="Hello")
    assert (ended.returncode, len(ended.stdout.splitlines())) == (0, 2)


def test_no_lines_are_no_failure(server):
    ended = quill("chat", "--url", server["http"], stdin="")
    assert (ended.returncode, ended.stderr, len(ended.stdout.splitlines())) == (0, "", 1)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_json_is_one_reply_of_generate_for_each_answer(server, protocol):
    options = ["--url", url_of(server, protocol), "--json", "--max-tokens", "3", "--seed", "3"]
    ended = piped(*options, said=["Who are you?", "/nope", "And what else?"])
    first, second = map(json.loads, ended.stdout.splitlines())
    assert first["usage"]["completionTokens"] == 3
    assert second["usage"]["promptTokens"] > first["usage"]["promptTokens"]
    assert first["model"] == "ngram-alice"
    assert ended.returncode == 0
    opening, complaint = ended.stderr.splitlines()
    assert "n-gram" in opening
    assert complaint.startswith("quill: there is no command /nope")


def test_the_model_is_told_the_whole_conversation(here, scripted):
    scripted.answers = [" one", "two "]
    said = ["a", "b", "/reset", "c", "/system  Be brief. ", "//d", "/system", "e", "/exit", "f"]
    ended = piped("--url", here.script_url, "--system", "Be kind.", said=said)
    assert ended.stdout.splitlines() == ["one", "two ", "ok", "ok", "ok"]
    assert ended.returncode == 0
    kind, brief = ("system", "Be kind."), ("system", "Be brief.")
    assert scripted.said() == [
        [kind, ("user", "a")],
        [kind, ("user", "a"), ("assistant", "one"), ("user", "b")],
        [kind, ("user", "c")],
        [brief, ("user", "c"), ("assistant", "ok"), ("user", "/d")],
        [("user", "c"), ("assistant", "ok"), ("user", "/d"), ("assistant", "ok"), ("user", "e")],
    ]


def test_options_and_credentials_are_sent(here, scripted):
    options = ["--model", "m", "--max-tokens", "9", "--temperature", "0", "--top-p", "0.5", "--top-k", "4"]
    options += ["--seed", "0", "--stop", "A", "--stop", "B"]
    ended = piped("--url", here.script_url, *options, "--header", "Authorization: Bearer secret", said=["x"])
    assert ended.stdout.splitlines() == ["m: made up", "ok"]
    (request,) = scripted.requests
    assert (request.model, request.max_tokens, request.temperature, request.top_p) == ("m", 9, 0, 0.5)
    assert (request.top_k, request.seed, list(request.stop)) == (4, 0, ["A", "B"])
    assert request.HasField("temperature")
    assert request.HasField("seed")
    assert scripted.metadata[0]["authorization"] == "Bearer secret"


def test_what_failed_is_said_and_not_kept_and_the_chat_goes_on(server):
    said = ["a" * 5000, "Hello"]
    ended = piped("--url", server["http"], "--max-tokens", "2", "--seed", "3", "--json", said=said)
    failed, answered = map(json.loads, ended.stdout.splitlines())
    assert failed["error"]["code"] == "INVALID_ARGUMENT"
    assert "2048" in failed["error"]["message"]
    assert answered["usage"]["promptTokens"] < 50
    assert ended.returncode == 1
    ended = piped("--url", server["http"], "--max-tokens", "2", "--seed", "3", said=said)
    (complaint,) = ended.stderr.splitlines()
    assert complaint.startswith("quill: INVALID_ARGUMENT: ")
    assert len(ended.stdout.splitlines()) == 2
    assert ended.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["--url", "http://127.0.0.1:9"], 1, "127.0.0.1:9"),
        (["--url", "{http}", "--model", "gpt"], 1, "ngram-alice"),
        (["--url", "htp://x"], 2, "htp"),
        (["--url", "{http}", "--timeout-ms", "0"], 2, "timeout_ms"),
        (["--url", "{http}", "--header", "nocolon"], 2, "NAME:VALUE"),
    ],
)
def test_a_chat_that_cannot_begin_says_why(server, arguments, status, named):
    ended = piped(*(argument.replace("{http}", server["http"]) for argument in arguments), said=["x"])
    assert (ended.returncode, ended.stdout) == (status, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("quill: ")
    assert named in line


def test_of_several_models_one_must_be_chosen(here, scripted):
    scripted.models = ["a", "b"]
    ended = piped("--url", here.script_url, said=["x"])
    assert (ended.returncode, ended.stderr) == (
        2,
        "quill: the server has 2 models: a, b; choose one with --model\n",
    )


def test_lines_that_are_no_text_end_the_chat(server):
    command = [sys.executable, "-m", "quill", "chat", "--url", server["http"], "--max-tokens", "2", "--seed", "3"]
    ended = subprocess.run(command, input=b"Hello\n\xff\n", capture_output=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr == b"quill: line 2 of standard input is not UTF-8 at byte 0\n"


def test_a_server_that_goes_away_between_answers_is_one_line_and_may_come_back():
    with serving() as (server, ready):
        command = [
            sys.executable,
            "-m",
            "quill",
            "chat",
            "--url",
            ready["http"],
            "--max-tokens",
            "2",
            "--seed",
            "3",
            "--json",
        ]
        chat = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        try:
            chat.stdin.write("one\n")
            assert json.loads(first_line(chat))["usage"]["completionTokens"] == 2
            server.kill()
            server.wait(30)
            chat.stdin.write("two\n")
            assert json.loads(first_line(chat))["error"]["code"] == "UNAVAILABLE"
            with serving("--http", ready["http"].removeprefix("http://")):
                chat.stdin.write("three\n")
                assert json.loads(first_line(chat))["usage"]["completionTokens"] == 2
                _, err = chat.communicate(timeout=30)
        finally:
            if chat.poll() is None:
                chat.kill()
                chat.communicate()
    assert chat.returncode == 1
    assert len(err.splitlines()) == 1  # the opening


def test_a_server_that_says_nothing_more_is_left_at_the_timeout():
    with serving() as (server, ready), Terminal("chat", "--url", ready["http"], "--timeout-ms", "3000") as chat:
        chat.sees(PROMPT)
        server.send_signal(signal.SIGSTOP)
        chat.type("Hello\r")
        assert "quill: DEADLINE_EXCEEDED: " in chat.sees(f"\n{PROMPT}")
        server.send_signal(signal.SIGCONT)
        chat.type("Hello\r")
        chat.sees(f"\n{PROMPT}")
        chat.type("/exit\r")
        assert chat.ends() == 0


# At a terminal


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_ctrl_c_stops_an_answer_on_the_server_too_and_the_chat_goes_on(here, protocol):
    with Terminal("chat", "--url", here.slow[protocol], "--max-tokens", "1000", "--seed", "1") as chat:
        assert "n-gram" in chat.sees(PROMPT)
        for _ in range(2):
            chat.type("Hello\r")
            chat.sees("\n")  # what was typed
            chat.sees(" ")  # some of the answer
            assert here.runs() == 1
            chat.type(CTRL_C)
            chat.sees(f"\n{PROMPT}")
            here.host.until(lambda: here.runs() == 0)
        chat.type("/help\r")
        assert "/reset" in chat.sees(f"\n{PROMPT}")
        chat.type(CTRL_D)
        assert chat.ends() == 0
    assert "Traceback" not in chat.screen
    assert "quill: " not in chat.screen


def test_what_was_shown_of_a_stopped_answer_stays_in_the_conversation(here, scripted):
    scripted.answers = ["half"]
    scripted.hangs = True
    with Terminal("chat", "--url", here.script_url) as chat:
        chat.sees(PROMPT)
        chat.type("a\r")
        chat.sees("half")
        chat.type(CTRL_C)
        chat.sees(f"\n{PROMPT}")
        scripted.hangs = False
        chat.type("b\r")
        chat.sees("ok")
    assert scripted.said()[1] == [("user", "a"), ("assistant", "half"), ("user", "b")]


def test_ctrl_c_at_the_prompt_takes_the_line_back(here, scripted):
    with Terminal("chat", "--url", here.script_url) as chat:
        chat.sees(PROMPT)
        chat.type("not this")
        chat.sees("this")
        # Python's readline forgets a signal that comes while it handles a key, until the next one wakes it.
        for _ in range(20):
            chat.type(CTRL_C)
            with contextlib.suppress(AssertionError):
                chat.sees(f"\n{PROMPT}", timeout_s=1.5)
                break
        chat.type("but this\r")
        chat.sees("ok")
        chat.type("/exit\r")
        assert chat.ends() == 0
    assert scripted.said() == [[("user", "but this")]]


def test_a_model_cannot_give_orders_to_the_terminal(here, scripted):
    scripted.answers = ["a\x1b]0;owned\x07\x9b2J\rb\tc"]
    with Terminal("chat", "--url", here.script_url) as chat:
        chat.sees(PROMPT)
        chat.type("x\r")
        chat.sees("\ufffd2Jb")
        chat.type("/exit\r")
        chat.ends()
    assert "\x1b]0" not in chat.screen
    assert "\x07" not in chat.screen
    scripted.requests.clear()
    assert "a\x1b]0;owned\x07\x9b2J" in piped("--url", here.script_url, said=["x"]).stdout  # a pipe gets what was said


def test_lines_can_be_edited(here, scripted):
    with Terminal("chat", "--url", here.script_url) as chat:
        chat.sees(PROMPT)
        chat.type("bc\x01a\r")  # Ctrl-A: to the beginning of the line
        chat.sees("ok")
        chat.type("/exit\r")
        chat.ends()
    assert scripted.said() == [[("user", "abc")]]


def test_ctrl_c_while_a_pipe_says_nothing_ends_the_chat(server):
    command = [sys.executable, "-m", "quill", "chat", "--url", server["http"]]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as chat:
        first_line(chat)
        chat.send_signal(signal.SIGINT)
        _, err = chat.communicate(timeout=30)
    assert chat.returncode in {130, -signal.SIGINT}
    assert "Traceback" not in err


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_ctrl_c_stops_an_answer_of_a_pipe_and_the_next_line_is_answered(here, protocol):
    options = ["--url", here.slow[protocol], "--max-tokens", "100"]
    command = [sys.executable, "-m", "quill", "chat", *options, "--seed", "1", "--json"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as chat:
        chat.stdin.write("Hello\n")
        here.host.until(lambda: here.runs() == 1)
        chat.send_signal(signal.SIGINT)
        assert json.loads(first_line(chat)) == {"error": {"code": "CANCELLED", "message": "interrupted"}}
        here.host.until(lambda: here.runs() == 0)
        chat.stdin.write("Hello again\n")
        assert json.loads(first_line(chat))["usage"]["completionTokens"] > 0
        _, err = chat.communicate(timeout=30)
    assert chat.returncode == 1
    assert len(err.splitlines()) == 1
