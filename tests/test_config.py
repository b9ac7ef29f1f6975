"""Where the configuration comes from, which place wins, and what is refused."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from quill.config import OPTIONS, Config
from quill.errors import InvalidUsage
from quill.limits import Limits, Quota


def write(tmp_path, text):
    path = tmp_path / "quill.toml"
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold():
    config = Config(None, {}, {})
    assert (config["grpc"], config["http"], config["backend"]) == ("127.0.0.1:50051", "127.0.0.1:8080", "ngram")
    assert config.limits() == Limits()
    assert config.quota() is None
    assert set(config.table("tls").values()) == {None}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    path = write(
        tmp_path, 'grpc = "file"\nhttp = "file"\nbackend = "file"\n[limits]\nmax_runs = 1\nmax_connections = 1'
    )
    environment = {"QUILL_HTTP": "environment", "QUILL_BACKEND": "environment", "QUILL_LIMITS_MAX_RUNS": "2"}
    flags = {"--backend": ("backend", "flag"), "--http": ("http", None)}
    config = Config(path, environment, flags, ["limits.max_connections=3"])
    assert (config["grpc"], config["http"], config["backend"]) == ("file", "environment", "flag")
    assert (config.limits().max_runs, config.limits().max_connections) == (2, 3)


def test_the_environment_may_name_the_file_and_a_flag_another(tmp_path):
    path = write(tmp_path, 'backend = "from the file"')
    environment = {"QUILL_CONFIG": str(path)}
    assert Config(None, environment, {})["backend"] == "from the file"
    assert Config(write(tmp_path / "..", ""), environment, {})["backend"] == "ngram"


def test_every_value_says_where_it_comes_from_and_the_text_can_be_read_again(tmp_path):
    path = write(
        tmp_path, '[tls]\ncert = "c.pem"\nidentities = {"URI:spiffe://a/b" = "ä\\"b"}\n[quota]\nlive_streams = 5'
    )
    config = Config(path, {"QUILL_GRACE_S": "2.5"}, {"--grpc": ("grpc", "x:1")}, ["limits.header_timeout_s=3"])
    shown = config.show()
    lines = dict(line.split(" = ", 1) for line in shown.splitlines() if " = " in line)
    assert lines["grpc"] == '"x:1"  # --grpc'
    assert lines["grace_s"] == "2.5  # QUILL_GRACE_S"
    assert lines["header_timeout_s"] == "3.0  # --set limits.header_timeout_s"
    assert lines["live_streams"] == f"5  # {path}"
    assert lines["backend"] == '"ngram"  # default'
    again = Config(write(tmp_path, shown), {}, {})
    assert tomllib.loads(shown)["tls"]["identities"] == {"URI:spiffe://a/b": 'ä"b'}
    for key in OPTIONS:
        assert again[key] == config[key], key


def test_switches_and_lists_come_from_every_place_and_are_shown_as_a_file_has_them(tmp_path):
    path = write(tmp_path, 'http2 = true\nreflection = true\ncors = ["https://a.example"]')
    environment = {"QUILL_REFLECTION": "false", "QUILL_CORS": "https://b.example, https://c.example"}
    config = Config(path, environment, {"--http2": ("http2", False)}, ["compression=true"])
    assert [config[key] for key in ("http2", "reflection", "compression")] == [False, False, True]
    assert config["cors"] == ("https://b.example", "https://c.example")
    shown = config.show().splitlines()
    assert "http2 = false  # --http2" in shown
    assert "compression = true  # --set compression" in shown
    assert 'cors = ["https://b.example", "https://c.example"]  # QUILL_CORS' in shown
    again = Config(write(tmp_path, config.show()), {}, {})
    assert {key: again[key] for key in OPTIONS} == {key: config[key] for key in OPTIONS}
    assert Config(None, {"QUILL_CORS": ""}, {})["cors"] == ()


def test_options_of_the_backend_come_from_every_place_with_the_types_that_toml_gives_them(tmp_path):
    path = write(
        tmp_path, '[backend_options]\nrouter_url = "http://a:1"\nmodels = ["m/1", "m/2"]\ndelay_ms = 5\nx = "file"'
    )
    environment = {
        "QUILL_BACKEND_OPTIONS_DIALECT": "B",
        "QUILL_BACKEND_OPTIONS_TOKEN_DELAY_MS": "2.5",
        "QUILL_BACKEND_OPTIONS_X": "1\ny = 2",
    }
    flags = {
        "--router-url": ("backend_options.router_url", "http://b:2"),
        "--dialect": ("backend_options.dialect", None),
    }
    assigned = ["backend_options.loud=true", 'backend_options.names=["a", "b"]', "backend_options.day=2026-11-22"]
    config = Config(path, environment, flags, assigned)
    assert config.table("backend_options") == {
        "router_url": "http://b:2",
        "models": ("m/1", "m/2"),
        "delay_ms": 5,
        "x": "1\ny = 2",
        "dialect": "B",
        "token_delay_ms": 2.5,
        "loud": True,
        "names": ("a", "b"),
        "day": "2026-11-22",
    }
    shown = config.show()
    assert '[backend_options]\nrouter_url = "http://b:2"  # --router-url' in shown
    assert 'dialect = "B"  # QUILL_BACKEND_OPTIONS_DIALECT' in shown
    assert Config(write(tmp_path, shown), {}, {}).table("backend_options") == config.table("backend_options")


def test_without_options_of_the_backend_the_table_is_empty():
    assert Config(None, {}, {}).table("backend_options") == {}


def test_paths_in_a_file_are_relative_to_it(tmp_path):
    config = Config(write(tmp_path, '[auth]\nkeys_file = "keys.toml"\n[tls]\nkey = "/etc/key"'), {}, {})
    assert config["auth.keys_file"] == tmp_path / "keys.toml"
    assert config["tls.key"] == Path("/etc/key")
    assert Config(None, {"QUILL_AUTH_KEYS_FILE": "keys.toml"}, {})["auth.keys_file"] == Path("keys.toml")


def test_the_quota_is_one_where_anything_is_bounded():
    assert Config(None, {}, {}, ["quota.tokens_per_minute=7"]).quota() == Quota(tokens_per_minute=7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grcp = 'x'", "'grcp' is no key of the configuration; did you mean 'grpc'?"),
        ("[limits]\nmax_run = 1", "'limits.max_run' is no key of the configuration; did you mean 'limits.max_runs'?"),
        ("[limit]\nmax_runs = 1", "'limit' is no key of the configuration"),
        ("zzz = 1", "there are: auth.api_key_header, "),
        ("[limits]\nmax_runs = '1'", 'limits.max_runs must be an integer, got "1"'),
        ("[limits]\nmax_runs = true", "limits.max_runs must be an integer, got true"),
        ("[limits]\nmax_runs = 1.5", "must be an integer"),
        ("grace_s = 'long'", "grace_s must be a number"),
        ("grace_s = true", "grace_s must be a number, got true"),
        ("grpc = 1", "grpc must be a text, got 1"),
        ("http2 = 1", "http2 must be true or false, got 1"),
        ("http2 = 'true'", 'http2 must be true or false, got "true"'),
        ("cors = 'https://a.example'", 'cors must be a list of texts, got "https://a.example"'),
        ("cors = ['a', 1]", 'cors must be a list of texts, got ["a", 1]'),
        ("[tls]\ncert = ''", "tls.cert must be a path"),
        ("[tls]\nidentities = {a = 1}", "table of texts"),
        ("limits = 1", "'limits' is no key"),
        ("backend_options = 1", "'backend_options' is no key"),
        ("[backend_options]\nRouter = 1", "'backend_options.Router' is no key"),
        ("[backend_options.deep]\na = 1", "backend_options.deep must be a text, a number, true or false, or a list"),
        ("[backend_options]\na = [1]", "backend_options.a must be a text, a number, true or false, or a list of texts"),
        ("grpc = ", "is no TOML"),
    ],
)
def test_what_a_file_may_not_say_is_refused_by_name(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(InvalidUsage) as caught:
        Config(path, {}, {})
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"QUILL_GRCP": "x"}, "QUILL_GRCP, which is unknown; did you mean 'QUILL_GRPC'?"),
        ({"QUILL_GRACE_S": "long"}, "QUILL_GRACE_S must be a number, got 'long'"),
        ({"QUILL_HTTP2": "yes"}, "QUILL_HTTP2 must be true or false, got 'yes'"),
        ({"QUILL_LIMITS_MAX_RUNS": "1.5"}, "QUILL_LIMITS_MAX_RUNS must be an integer"),
        ({"QUILL_TLS_IDENTITIES": "x"}, "QUILL_TLS_IDENTITIES"),
        ({"QUILL_CONFIG": "/nowhere.toml"}, "/nowhere.toml: No such file"),
    ],
)
def test_what_the_environment_may_not_say_is_refused_by_name(environment, words):
    with pytest.raises(InvalidUsage) as caught:
        Config(None, environment, {})
    assert words in str(caught.value)


def test_what_kubernetes_puts_into_the_environment_of_a_service_named_quill_is_left_alone():
    """As documented at https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables."""
    base = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP", "PORT_50051_TCP_ADDR"]
    environment = {f"{prefix}_{name}": "x" for prefix in ("QUILL", "QUILL_LLM") for name in base}
    assert Config(None, environment, {})["grpc"] == "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("limits.max_runs", "KEY=VALUE"),
        ("limits.max_rus=1", "did you mean 'limits.max_runs'"),
        ("limits.max_runs=many", "must be an integer, got 'many'"),
        ("tls.identities=x", "is a table"),
    ],
)
def test_what_cannot_be_assigned_is_refused_by_name(assignment, words):
    with pytest.raises(InvalidUsage) as caught:
        Config(None, {}, {}, [assignment])
    assert words in str(caught.value)


def test_a_bound_out_of_range_is_refused_by_name():
    with pytest.raises(InvalidUsage, match="max_runs must be at least 1, got 0"):
        Config(None, {}, {}, ["limits.max_runs=0"]).limits()


def _bounds():
    """Every bound of Limits and Quota: its table, its name, a value that is not its default."""
    for table, bounds in (("limits", Limits()), ("quota", Quota())):
        for field in dataclasses.fields(bounds):
            default = getattr(bounds, field.name)
            yield table, field.name, 7.5 if isinstance(default, float) else 7


@pytest.mark.parametrize(("table", "name", "value"), list(_bounds()))
def test_every_bound_comes_from_every_place_and_is_shown(tmp_path, table, name, value):
    path = tmp_path / "quill.toml"
    path.write_text(f"[{table}]\n{name} = {value}\n")
    from_file = Config(path, {}, {})
    from_environment = Config(None, {f"QUILL_{table}_{name}".upper(): str(value)}, {})
    from_flag = Config(None, {}, {}, [f"{table}.{name}={value}"])
    for config in (from_file, from_environment, from_flag):
        bounds = config.limits() if table == "limits" else config.quota()
        assert getattr(bounds, name) == value
        assert tomllib.loads(config.show())[table][name] == value


WANTED = {
    "message": "max_message_bytes",
    "metadata": "max_metadata_bytes",
    "window of a compressed message": "max_decompression_window_bytes",
    "nesting": "max_message_depth",
    "size of a tensor": "max_tensor_bytes",
    "rank of a tensor": "max_tensor_rank",
    "prompt": "max_prompt_bytes",
    "calls at once": "max_concurrent_calls",
    "streams": "max_live_streams",
    "connections": "max_connections",
    "time for headers": "header_timeout_s",
    "time for a body": "body_idle_timeout_s",
}


def test_what_must_be_bounded_has_a_bound_and_a_default():
    """What a message has after decompression is bounded by max_message_bytes."""
    assert {name for name in WANTED.values() if getattr(Limits(), name) > 0} == set(WANTED.values())
    assert [field.name for field in dataclasses.fields(Quota)] == [
        "requests_per_minute",
        "live_streams",
        "tokens_per_minute",
    ]


@pytest.mark.parametrize(("name", "most"), [("max_message_depth", 100), ("max_tensor_rank", 64)])
def test_a_bound_above_what_there_can_be_is_refused(name, most):
    assert getattr(Limits(**{name: most}), name) == most
    with pytest.raises(InvalidUsage, match=f"{name} must be at most {most}, got {most + 1}"):
        Limits(**{name: most + 1})
