"""`quill call`, `generate` and `models` over TLS, mutual TLS and Unix sockets, as processes."""

import json

import pytest

from support.authority import Authority
from support.processes import quill, serving


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def scene(authority, tmp_path_factory):
    """A server that asks for certificates, and the options of a client that has one."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = authority.issue().write(folder)
    ca = authority.write(folder)
    mine, my_key = authority.issue("me", ()).write(folder, "client")
    with serving("--tls-cert", cert, "--tls-key", key, "--client-ca", ca) as (_, ready):
        yield ready, ["--ca", ca], ["--cert", mine, "--key", my_key]


@pytest.mark.parametrize("port", ["http", "grpc"])
def test_every_command_shows_its_certificate(scene, port):
    ready, ca, mine = scene
    url = ready["http"] if port == "http" else f"grpcs://{ready['grpc']}"
    called = quill("call", url, "inference.v1.LLMService/ListModels", *ca, *mine)
    assert json.loads(called.stdout)["models"][0]["name"] == ready["model"]
    assert ready["model"] in quill("models", "--url", url, *ca, *mine).stdout
    generated = quill("generate", "Alice", "--max-tokens", "3", "--seed", "1", "--url", url, *ca, *mine)
    assert (generated.returncode, generated.stderr) == (0, "")
    assert generated.stdout.strip()


def test_what_is_wrong_is_one_line(scene):
    ready, ca, mine = scene
    for arguments, words in (
        (mine, "signed by nobody who is trusted here: give its authority as ca (quill.ClientTls, --ca)"),
        (ca, "if it asks for a client certificate, give cert and key (quill.ClientTls, --cert and --key)"),
        ([*ca, "--cert", mine[1]], "tls has cert and no key; a client certificate needs both"),
        (["--ca", "/no/such.pem"], "cannot read the TLS CA /no/such.pem: No such file or directory"),
    ):
        ended = quill("models", "--url", ready["http"], *arguments)
        assert ended.returncode != 0
        (line,) = ended.stderr.splitlines()
        assert words in line
    assert "clear text; use https:// or grpcs://" in quill("models", "--url", "http://127.0.0.1:1", *ca).stderr


def test_unix_sockets_are_called(tmp_path):
    with serving("--grpc", f"unix:{tmp_path}/grpc.sock", "--http", f"unix:{tmp_path}/http.sock") as (_, ready):
        assert ready["http"] == f"http+unix://{tmp_path}/http.sock"
        for url in (ready["http"], ready["grpc"]):
            assert ready["model"] in quill("models", "--url", url).stdout
