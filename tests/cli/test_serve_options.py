"""`quill serve` on every kind of port, with what is opt-in switched on; seen by foreign clients."""

import json
import shutil
import subprocess

import grpc
import httpcore
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from support.processes import quill, serving

CURL = shutil.which("curl") or "curl"
GENERATE = "/inference.v1.LLMService/Generate"
PROMPT = b'{"prompt":"Alice","maxTokens":2}'


def curl(*arguments):
    return subprocess.run([CURL, "-sS", "-m", "20", *arguments], capture_output=True, check=True).stdout


def test_http2_serves_h2c_and_http1_on_one_port_and_stops_with_clients_connected():
    with serving("--http2") as (process, ready):
        pools = [httpcore.ConnectionPool(http1=http1, http2=not http1) for http1 in (True, False)]
        for pool, version in zip(pools, (b"HTTP/1.1", b"HTTP/2"), strict=True):
            headers = {"content-type": "application/json"}
            reply = pool.request("POST", ready["http"] + GENERATE, headers=headers, content=PROMPT)
            assert (reply.status, reply.extensions["http_version"]) == (200, version)
        process.terminate()
        out, err = process.communicate(timeout=20)
        for pool in pools:
            pool.close()
    assert (process.returncode, out, err) == (0, "", "")


def test_reflection_names_the_services():
    with serving("--reflection") as (_, ready), grpc.insecure_channel(ready["grpc"]) as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert "inference.v1.LLMService" in services


def test_listed_origins_may_call():
    with serving("--cors", "https://app.example", "--cors", "http://localhost:5173") as (_, ready):
        for origin, allowed in (("http://localhost:5173", True), ("https://evil.example", False)):
            head = curl("-D", "-", "-o", "/dev/null", "-H", f"origin: {origin}", ready["http"] + "/healthz").decode()
            assert (f"access-control-allow-origin: {origin}" in head) is allowed


def test_both_ports_on_unix_sockets(tmp_path):
    command = ["--grpc", f"unix:{tmp_path}/g", "--http", f"unix:{tmp_path}/h"]
    with serving(*command) as (process, ready):
        assert ready["grpc"] == f"unix:{tmp_path}/g"
        assert ready["http"] == f"http+unix://{tmp_path}/h"
        out = curl(
            *("--unix-socket", f"{tmp_path}/h", "-H", "content-type: application/json"),
            *("-d", PROMPT.decode(), "http://localhost" + GENERATE),
        )
        assert json.loads(out)["text"]
        process.terminate()
        _, err = process.communicate(timeout=20)
        assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_looked_up_by_get(server):
    url = server["http"] + GENERATE.replace("Generate", "ListModels")
    out = curl("-G", "--data-urlencode", "message={}", "-d", "encoding=json&connect=v1", url)
    assert json.loads(out)["models"][0]["name"] == server["model"]


def test_a_session_over_http1_is_pointed_to_grpc(server):
    headers = {"content-type": "application/connect+json"}
    with httpcore.ConnectionPool() as pool:
        url = server["http"] + "/inference.v1.LLMService/Session"
        reply = pool.request("POST", url, headers=headers, content=b"\0\0\0\0\2{}")
    error = json.loads(reply.content[5:])["error"]
    assert error["code"] == "unimplemented"
    assert server["grpc"] in error["message"]


@pytest.mark.parametrize("arguments", [("--cors", "app.example"), ("--http", "unix:/")])
def test_what_cannot_be_served_is_one_clear_line(arguments):
    ended = quill("serve", "--grpc", "127.0.0.1:0", *arguments)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("quill: ")
    assert arguments[1] in line
