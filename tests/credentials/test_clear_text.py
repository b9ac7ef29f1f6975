"""Credentials to another machine in clear text: refused before a library that could send them is even loaded.

The table runs in a process of its own. 0.0.0.0 is no loopback address, and to connect to it reaches this machine: what
would have been sent is seen by a listener, as it is when the user says that it may go.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, json, socket, sys

touched = []
sys.addaudithook(lambda event, _: touched.append(event) if event.startswith("socket.") else None)

from quill import AsyncQuillClient, InvalidUsage, QuillClient, QuillError

SECRETS = {
    "a bearer token": lambda client: client.set_bearer_token("canary"),
    "an API key": lambda client: client.set_api_key("canary"),
    "an API key of its own name": lambda client: client.set_api_key("canary", "X-Goog-Key"),
    "a cookie": lambda client: client.set_header("Cookie", "canary"),
    "a header of the call": lambda client: {"headers": {"AUTHORIZATION": "canary"}},
    "an API key of the call": lambda client: {"headers": {"x-api-key": "canary"}},
}
CALLS = {
    "call": lambda client, options: client.call("a.B", "C", b"", **options),
    "call_json": lambda client, options: client.call_json("a.B", "C", {}, **options),
    "stream": lambda client, options: client.stream("a.B", "C", b"", **options),
    "stream_json": lambda client, options: client.stream_json("a.B", "C", {}, **options),
    "several": lambda client, options: client.stream("a.B", "C", [b""], **options),
    "llm": lambda client, options: client.llm.generate("x") if not options else client.call("a.B", "C", b"", **options),
}
HOSTS = [
    "192.0.2.1", "0.0.0.0:PORT", "[2001:db8::1]", "[::ffff:192.0.2.1]", "models.example.com", "127.0.0.1.example.com",
    "localhost.example.com", "2130706433.example.com",
]

def ways(kind):
    for protocol in ("connect", "grpc", "grpc-web"):
        for host in HOSTS:
            for scheme in ("http", "grpc"):
                yield f"{scheme}://{host}", protocol

async def end(made):
    if hasattr(made, "__aiter__"):
        return [message async for message in made]
    return await made

def run(kind, call, client, options):
    if kind is QuillClient:
        made = CALLS[call](client, options)
        return made if isinstance(made, (bytes, dict)) else list(made)
    async def inside():
        return await end(CALLS[call](client, options))
    return runner.run(inside())

def refused(kind, url, protocol, secret, call):
    client = kind(url, 2000, protocol=protocol)
    options = SECRETS[secret](client) or {}
    try:
        run(kind, call, client, options)
    except InvalidUsage as error:
        return "clear text" in str(error) and "canary" not in str(error)
    return False

with socket.create_server(("0.0.0.0", 0)) as listener, asyncio.Runner() as runner:
    runner.run(asyncio.sleep(0))
    listener.setblocking(False)
    port = listener.getsockname()[1]
    touched.clear()
    cells, wrong = 0, []
    for kind in (QuillClient, AsyncQuillClient):
        for url, protocol in ways(kind):
            for secret in SECRETS:
                for call in CALLS:
                    cells += 1
                    if not refused(kind, url.replace("PORT", str(port)), protocol, secret, call):
                        wrong.append([kind.__name__, url, protocol, secret, call])
    sockets = list(touched)
    loaded = [name for name in ("grpc", "h11", "h2") if name in sys.modules]
    reached = {}
    for allowed in (False, True):
        for kind in (QuillClient, AsyncQuillClient):
            for protocol in ("connect", "grpc", "grpc-web"):
                client = kind(f"http://0.0.0.0:{port}", 1000, protocol=protocol, allow_insecure_auth=allowed)
                client.set_bearer_token("canary")
                try:
                    run(kind, "call", client, {})
                except QuillError:
                    pass
                try:
                    listener.accept()[0].close()
                    came = True
                except BlockingIOError:
                    came = False
                reached.setdefault(str(allowed), []).append(came)
    told = {"cells": cells, "wrong": wrong, "sockets": sockets, "loaded": loaded, "reached": reached}
    print(json.dumps(told), flush=True)
    import os
    os._exit(0)  # calls that nobody answered need no end
"""


@pytest.fixture(scope="module")
def told():
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_every_credential_is_refused_on_every_way_to_another_machine(told):
    assert told["wrong"] == []
    assert told["cells"] == 2 * 3 * 8 * 2 * 6 * 6


def test_no_socket_was_touched_and_nothing_loaded_that_could_open_one(told):
    assert told["sockets"] == []
    assert told["loaded"] == []


def test_the_listener_is_reached_only_when_the_user_allows_it(told):
    assert told["reached"] == {"False": [False] * 6, "True": [True] * 6}
