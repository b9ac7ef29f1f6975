"""`quill serve` with every secret that it can have, as talkative as Python lets it be: none is in its output."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from credentials.conftest import key, sha256
from quill import AsyncQuillClient, InvalidUsage, QuillError
from quill.server.auth import Auth
from quill.server.server import Server
from quill.server.tls import Tls
from support.authority import Authority
from support.http1 import ask
from support.http2 import ask_grpc, enveloped
from support.processes import first_line, quill

SECRET, WRONG, SENT = (f"canary-{place}-77c1" for place in ("good", "wrong", "message"))
LOUD = """
import logging, sys
logging.basicConfig(level=1)
from quill.cli.main import main
for name in list(logging.root.manager.loggerDict):
    logging.getLogger(name).setLevel(1)
sys.argv[0] = "quill"
main()
"""
LLM = "inference.v1.LLMService"


def environment():
    return {**os.environ, "PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1", "GRPC_VERBOSITY": "debug"}


def loud(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", LOUD, "serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


@pytest.fixture
def files(tmp_path):
    """A certificate, its key, and a file of keys; and all in them that nobody should see."""
    cert, private = Authority().issue().write(tmp_path)
    keys = tmp_path / "keys.toml"
    keys.write_text(key("alice", SECRET, ["*"]))
    body = private.read_text().splitlines()[1:-1]
    return {"--tls-cert": cert, "--tls-key": private, "--keys-file": keys}, [SECRET, WRONG, sha256(SECRET), *body]


async def calls(ready):
    """Calls that end in every way, over every protocol."""
    bodies = [b'{"prompt": "%s"}' % SENT.encode(), b'{"prompt": 5, "x": "%s"}' % SENT.encode(), b"{" + SENT.encode()]
    for secret in (SECRET, WRONG):
        headers = [("content-type", "application/json"), ("authorization", f"Bearer {secret}"), ("x-trace", WRONG)]
        for path in (f"/{LLM}/Generate", f"/{LLM}/Nothing", "/healthz", f"/{LLM}/StreamGenerate"):
            for body in bodies:
                await ask(ready["http"], "POST", path, body, headers)
            await ask(ready["http"], "GET", f"{path}?encoding=json&message=%7B%7D", b"", headers)
        metadata = [("x-api-key", secret), ("x-trace", WRONG)]
        for path in (f"/{LLM}/Generate", f"/{LLM}/ListModels", "/a.B/C"):
            for body in (enveloped(b""), enveloped(b"\xff" + SENT.encode()), enveloped(SENT.encode(), 1)):
                await asyncio.to_thread(ask_grpc, ready["grpc"], path, body, metadata)
    async with AsyncQuillClient(ready["http"]) as client:
        client.set_bearer_token(SECRET)
        with pytest.raises(QuillError):
            await client.llm.generate(SENT, max_tokens=2000, timeout_ms=1)
        async for _ in client.llm.stream(SENT):
            break
        assert (await client.call_json(LLM, "ListModels", {}))["models"]


def test_no_secret_is_in_the_output_of_a_server(files):
    options, secrets = files
    with loud("--json", "--keys-file", options["--keys-file"], "--reflection") as process:
        try:
            ready = json.loads(first_line(process))
            asyncio.run(calls(ready))
        finally:
            process.send_signal(signal.SIGTERM)
            output, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert "DEBUG" in log, "the server was not as talkative as it should be"
    assert not [secret for secret in (*secrets, SENT) if secret in output + log]


def test_no_secret_is_in_the_configuration_that_is_printed(files):
    options, secrets = files
    arguments = [str(part) for option in options.items() for part in option]
    with loud("--print-config", *arguments) as process:
        output, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert str(options["--tls-key"]) in output
    assert not [secret for secret in secrets if secret in output + log]


@pytest.mark.parametrize("broken", ["--tls-cert", "--tls-key", "--keys-file"])
@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[[key]]\nname = 'a'\nsha256 = '{}'",
        "[[key]]\n{} = 1",
        "{} = 'a'",
        "\n{} ! 1",
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n{}\n",
    ],
)
def test_no_secret_is_in_what_is_said_of_a_file_that_cannot_be_used(files, broken, content):
    options, _ = files
    options[broken].write_text(content.replace("{}", SECRET))
    with pytest.raises(InvalidUsage) as caught:
        Server(tls=Tls(cert=options["--tls-cert"], key=options["--tls-key"]), auth=Auth(options["--keys-file"]))
    assert options[broken].name in str(caught.value)
    assert SECRET not in str(caught.value)


CALLS = {
    "http://192.0.2.1:9": f"authorization: Bearer {SECRET}",
    "http://127.0.0.1:9": f": {SECRET}",
    "grpc://127.0.0.1:9": f"authorization {SECRET}",
}


@pytest.mark.parametrize("url", CALLS)
def test_no_secret_is_in_what_the_command_line_says_of_a_call(url):
    ended = quill("call", url, "a.B/C", "--timeout-ms", "500", "--header", CALLS[url])
    assert ended.returncode != 0
    assert SECRET not in ended.stdout + ended.stderr
