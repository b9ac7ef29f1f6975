"""`quill serve` with TLS, credentials and a configuration file, and `quill key`, as processes."""

import json
import ssl
import subprocess
import sys
import tomllib

import grpc
import httpcore
import pytest

from quill.proto import ListModelsRequest, LLMServiceStub
from support.authority import Authority
from support.processes import quill, serving


@pytest.fixture(scope="module")
def authority():
    return Authority()


def models(url, context, headers):
    """The status of ListModels over HTTP."""
    with httpcore.ConnectionPool(ssl_context=context) as pool:
        path = "/inference.v1.LLMService/ListModels"
        sent = {"content-type": "application/json", **headers}
        return pool.request("POST", url + path, headers=sent, content=b"{}").status


def test_flags_serve_both_ports_with_tls_and_keys(authority, tmp_path):
    cert, key = authority.issue().write(tmp_path)
    made = json.loads(quill("key", "new", "team-a", "--json").stdout)
    keys = tmp_path / "keys.toml"
    keys.write_text(quill("key", "new", "team-b").stdout)
    with keys.open("a") as file:
        file.write(f'[[key]]\nname = "{made["name"]}"\nsha256 = "{made["sha256"]}"\nallow = {made["allow"]}\n')
    with serving("--tls-cert", cert, "--tls-key", key, "--keys-file", keys) as (_, ready):
        assert ready["http"].startswith("https://")
        url = ready["http"].replace("127.0.0.1", "localhost")
        assert models(url, authority.ssl(), {"authorization": f"Bearer {made['secret']}"}) == 200
        assert models(url, authority.ssl(), {}) == 401
        with grpc.secure_channel(ready["grpc"], authority.grpc()) as channel:
            listed = LLMServiceStub(channel).ListModels(ListModelsRequest(), metadata=(("x-api-key", made["secret"]),))
            assert [model.name for model in listed.models] == [ready["model"]]


def test_a_file_sets_mutual_tls_and_identities(authority, tmp_path):
    authority.issue().write(tmp_path)
    authority.write(tmp_path)
    file = tmp_path / "quill.toml"
    file.write_text(
        '[tls]\ncert = "server.pem"\nkey = "server.key"\nclient_ca = "ca.pem"\nidentities = {"CN:alice" = "alice"}\n'
    )
    with serving("--config", file) as (_, ready):
        url = ready["http"].replace("127.0.0.1", "localhost")
        assert models(url, authority.ssl(tmp_path, authority.issue("alice", ())), {}) == 200
        assert models(url, authority.ssl(tmp_path, authority.issue("bob", ())), {}) == 401
        with pytest.raises((httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError)):
            models(url, authority.ssl(), {})


def test_a_key_is_printed_once_and_its_entry_is_what_the_file_takes():
    ended = quill("key", "new", 'team "a"', "--allow", "a.B/*", "--allow", "c.D/E", "--expires", "2031-02-03")
    (entry,) = tomllib.loads(ended.stdout)["key"]
    assert (entry["name"], entry["allow"], entry["expires"].isoformat()) == (
        'team "a"',
        ["a.B/*", "c.D/E"],
        "2031-02-03",
    )
    (line,) = ended.stderr.splitlines()
    secret = line.rpartition(" ")[2]
    assert secret.startswith("quill_")
    assert secret not in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tls-cert", "/no/such.pem", "--tls-key", "/no/such.key"], "/no/such.pem: No such file"),
        (["--tls-cert", "/no/such.pem"], "tls.cert is set and tls.key is not"),
        (["--client-ca", "/no/such.pem"], "TLS needs cert and key"),
        (["--keys-file", "/no/such.toml"], "/no/such.toml: No such file"),
        (["--config", "/no/such.toml"], "/no/such.toml: No such file"),
        (["--set", "limits.max_rns=1"], "did you mean 'limits.max_runs'"),
        (["--set", "limits.max_runs=0"], "max_runs must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(arguments, words):
    ended = quill("serve", *arguments)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("quill: ")
    assert words in line


def test_wrong_keys_are_one_clear_line():
    for arguments in (["x", "--allow", "a.*"], ["x", "--expires", "soon"], [""]):
        ended = quill("key", "new", *arguments)
        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)


def test_the_configuration_is_printed_with_its_sources(tmp_path):
    keys = tmp_path / "keys.toml"
    keys.write_text('[[key]]\nname = "a"\nsha256 = "canary"')
    ended = quill("serve", "--print-config", "--keys-file", keys, "--set", "quota.live_streams=3")
    assert (ended.returncode, ended.stderr) == (0, "")
    shown = tomllib.loads(ended.stdout)
    assert shown["auth"]["keys_file"] == str(keys)
    assert shown["quota"] == {"live_streams": 3}
    assert "live_streams = 3  # --set quota.live_streams" in ended.stdout
    assert "canary" not in ended.stdout


def test_an_open_address_warns_until_callers_are_asked_who_they_are(tmp_path):
    (tmp_path / "keys.toml").write_text("")
    command = [sys.executable, "-m", "quill", "serve", "--http", "0.0.0.0:0", "--grpc", "127.0.0.1:0", "--json"]
    for arguments, words in (
        ([], "open to the network without authentication"),
        (["--keys-file", tmp_path / "keys.toml"], "in clear text"),
    ):
        with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
            try:
                line = it.stderr.readline()
            finally:
                it.terminate()
                it.communicate(timeout=20)
        assert words in line
