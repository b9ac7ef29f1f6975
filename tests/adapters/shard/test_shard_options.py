"""What the backend may be told, and what it says to what it cannot use."""

import pytest

from quill import adapters
from quill.errors import InvalidType, InvalidUsage
from support.processes import quill


async def test_the_models_have_the_names_that_the_operator_gives():
    for given, names in ((("a", "b"), ["a", "b"]), ("a, b", ["a", "b"]), ("a", ["a"])):
        backend = adapters.load("shard", models=given)
        assert [model.name for model in backend.models()] == names
        await backend.aclose()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"models": ()}, InvalidUsage, "models must be at least one name"),
        ({"models": ("a", "a")}, InvalidUsage, "all different, got .*'a', 'a'"),
        ({"models": "a,,b"}, InvalidUsage, "none empty"),
        ({"models": (1,)}, InvalidType, "models must be texts"),
        ({"models": 1}, InvalidType, "models must be texts"),
        ({"transport": "smoke"}, InvalidUsage, "transport 'smoke' is not supported; supported are 'http_poll'"),
        ({"dialect": "D"}, InvalidUsage, "dialect must be one of auto, A, B, C, got 'D'"),
        ({"router_url": "ftp://x"}, InvalidUsage, "http://HOST:PORT"),
        ({"router_url": "http://me:secret@x"}, InvalidUsage, "user name"),
        ({"router_url": 5}, InvalidType, "must be a string"),
        ({"url": "x"}, InvalidUsage, "the backend 'shard' has no option url; its options: router_url, websocket_url"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(options, error, words):
    with pytest.raises(error, match=words) as caught:
        adapters.load("shard", **options)
    assert "secret" not in str(caught.value)


def test_the_flags_are_keys_of_the_configuration():
    flags = ["--backend", "shard", "--router-url", "http://a:1", "--transport", "websocket", "--dialect", "C"]
    shown = quill("serve", *flags, "--shard-model", "m/1", "--shard-model", "m/2", "--print-config").stdout
    assert 'router_url = "http://a:1"  # --router-url' in shown
    assert 'models = ["m/1", "m/2"]  # --shard-model' in shown
    assert 'dialect = "C"  # --dialect' in shown


def test_a_flag_of_another_backend_is_one_clear_line():
    ended = quill("serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--router-url", "http://a:1")
    assert ended.returncode == 2
    assert ended.stderr == "quill: the backend 'ngram' has no option router_url; its options: token_delay_ms\n"
