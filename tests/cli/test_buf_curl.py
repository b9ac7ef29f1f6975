"""`buf curl`, which is connect-go, against `quill serve`: by reflection over gRPC, by the schema over HTTP."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.processes import serving

ROOT = Path(__file__).resolve().parents[2]
BUF = ROOT / ".venv-generate" / "bin" / "buf"
SERVICE = "inference.v1.LLMService"
PROMPT = '{"prompt": "Alice", "maxTokens": 3}'


@pytest.fixture(scope="module")
def ready():
    with serving("--reflection") as (_, ready):
        yield ready


@pytest.fixture
def buf(tmp_path):
    """Runs `buf curl`; its status and what it prints."""

    def run(*arguments):
        env = os.environ | {"BUF_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
        command = [BUF, "curl", *arguments]
        ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
        return ended.returncode, ended.stdout or ended.stderr

    return run


def documents(text):
    """The JSON documents in a text, one behind the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def test_the_grpc_port_lists_and_describes_itself(buf, ready):
    url = f"http://{ready['grpc']}"
    status, listed = buf("--protocol", "grpc", "--list-services", url)
    assert (status, SERVICE in listed.split(), "grpc.health.v1.Health" in listed.split()) == (0, True, True)
    status, listed = buf("--protocol", "grpc", "--list-methods", url)
    assert status == 0
    assert {f"{SERVICE}/{method}" for method in ("Generate", "StreamGenerate", "Session")} <= set(listed.split())


def test_the_grpc_port_is_called_by_what_it_says_of_itself(buf, ready):
    url = f"http://{ready['grpc']}/{SERVICE}"
    status, printed = buf("--protocol", "grpc", "--data", PROMPT, f"{url}/Generate")
    (reply,) = documents(printed)
    assert (status, reply["usage"]["completionTokens"], reply["model"]) == (0, 3, ready["model"])
    status, printed = buf("--protocol", "grpc", "--data", PROMPT, f"{url}/StreamGenerate")
    *_, last = documents(printed)
    assert (status, last["completed"]["usage"]["completionTokens"]) == (0, 3)


@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
def test_the_http_port_is_called_by_the_schema(buf, ready, protocol):
    schema = ("--schema", str(ROOT / "proto"), "--protocol", protocol)
    url = f"{ready['http']}/{SERVICE}"
    status, printed = buf(*schema, "--data", PROMPT, f"{url}/Generate")
    (reply,) = documents(printed)
    assert (status, reply["usage"]["completionTokens"]) == (0, 3)
    status, printed = buf(*schema, "--data", PROMPT, f"{url}/StreamGenerate")
    assert (status, documents(printed)[-1]["completed"]["usage"]["completionTokens"]) == (0, 3)
    status, printed = buf(*schema, "--data", '{"name": "other"}', f"{url}/GetModel")
    (error,) = documents(printed)
    assert (status >> 3, error["code"]) == (5, "not_found")
    assert "'other' is not known" in error["message"]
