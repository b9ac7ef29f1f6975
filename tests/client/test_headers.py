"""Headers and credentials: what is stored, what is sent where, and that no secret shows."""

import logging
import sys
import threading

import pytest

from client.harness import RAW, ask
from quill import AsyncQuillClient, InvalidType, InvalidUsage, QuillClient, QuillError
from quill.client.address import Address
from quill.client.headers import HeaderStore
from support.echo import SERVICE

CANARY = "canary-9e44"
FOREIGN = "http://models.example.com"


@pytest.fixture(params=[QuillClient, AsyncQuillClient])
def kind(request):
    return request.param


def test_headers_are_shown_as_they_were_set(kind):
    client = kind("http://localhost", headers={"X-First": "1"})
    client.set_bearer_token("t")
    client.set_api_key("k")
    client.set_header("X-Data-Bin", b"\x00")
    assert client.get_headers() == {
        "X-First": "1",
        "Authorization": "Bearer t",
        "X-API-Key": "k",
        "X-Data-Bin": b"\x00",
    }
    client.get_headers().clear()
    client.set_header("x-first", "2")
    client.remove_header("AUTHORIZATION")
    client.remove_header("never-set")
    assert client.get_headers() == {"x-first": "2", "X-API-Key": "k", "X-Data-Bin": b"\x00"}


def test_an_api_key_may_have_a_header_of_its_own(kind):
    client = kind("http://localhost")
    client.set_api_key("k", "X-Goog-Api-Key")
    client.set_api_key("k2", header_name="x-goog-api-key")
    assert client.get_headers() == {"x-goog-api-key": "k2"}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("", "x", InvalidUsage),
        ("a b", "x", InvalidUsage),
        ("a:b", "x", InvalidUsage),
        ("a\r\nb", "x", InvalidUsage),
        ("host", "x", InvalidUsage),
        ("Content-Type", "x", InvalidUsage),
        ("grpc-timeout", "x", InvalidUsage),
        ("connect-timeout-ms", "x", InvalidUsage),
        ("Transfer-Encoding", "x", InvalidUsage),
        ("x", f"{CANARY}\r\nevil: 1", InvalidUsage),
        ("x", f"{CANARY}\0", InvalidUsage),
        ("x", f"{CANARY}é", InvalidUsage),
        ("x", CANARY.encode(), InvalidType),
        ("x-bin", CANARY, InvalidType),
        ("x", 7, InvalidType),
        (7, "x", InvalidType),
    ],
)
def test_what_cannot_be_sent_is_refused_when_it_is_set_and_not_shown(kind, name, value, error):
    client = kind("http://localhost")
    for action in (
        lambda: client.set_header(name, value),
        lambda: kind("http://localhost", headers={name: value}),
    ):
        with pytest.raises(error) as caught:
            action()
        assert CANARY not in str(caught.value)
    assert client.get_headers() == {}


def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(kind):
    client = kind("http://localhost")
    for action in (
        lambda: client.set_bearer_token(f"{CANARY}\n"),
        lambda: client.set_api_key(f"{CANARY}\n"),
        lambda: client.set_api_key(f"{CANARY}é"),
    ):
        with pytest.raises(InvalidUsage) as caught:
            action()
        assert CANARY not in str(caught.value)
    for wrong in (None, 7, b"t"):
        with pytest.raises(InvalidType):
            client.set_bearer_token(wrong)
    with pytest.raises(InvalidUsage):
        client.set_bearer_token("")


SECRETS = {
    "a bearer token": lambda client: client.set_bearer_token(CANARY),
    "an API key": lambda client: client.set_api_key(CANARY),
    "an API key of its own name": lambda client: client.set_api_key(CANARY, "X-Goog-Key"),
    "a cookie": lambda client: client.set_header("Cookie", CANARY),
    "an authorization": lambda client: client.set_header("AUTHORIZATION", CANARY),
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "url", [FOREIGN, "grpc://10.0.0.1:50051", "http://[2001:db8::1]", "http://127.0.0.1.example.com"]
)
def test_a_secret_never_crosses_a_network_in_clear_text(shell, drive, secret, url):
    client = drive(url)
    SECRETS[secret](client.client)
    for action in (
        lambda: client.call("a.B", "C", b""),
        lambda: client.call_json(SERVICE, "Echo", {}),
        lambda: client.stream("a.B", "C", b""),
        lambda: client.generate("x"),
    ):
        with pytest.raises(ValueError, match="clear text") as caught:
            action()
        assert isinstance(caught.value, QuillError)
        assert CANARY not in str(caught.value)


def test_a_secret_of_one_call_is_a_secret_too(drive):
    client = drive(FOREIGN)
    for headers in ({"Authorization": CANARY}, {"x-api-key": CANARY}, {"cookie": CANARY}):
        with pytest.raises(InvalidUsage, match="clear text"):
            client.call("a.B", "C", b"", headers=headers)


@pytest.mark.parametrize(
    "url",
    [
        "https://models.example.com",
        "grpcs://models.example.com",
        "http://localhost:8080",
        "http://LOCALHOST",
        "http://127.0.0.1",
        "http://127.9.8.7",
        "grpc://[::1]:50051",
    ],
)
def test_a_secret_may_go_over_tls_and_to_this_machine(url):
    store = HeaderStore({"authorization": CANARY})
    metadata = store.for_call(None, Address.parse(url), allow_insecure_auth=False)
    assert metadata == (("authorization", CANARY),)


def test_a_secret_may_go_where_the_user_says_so():
    store = HeaderStore({"authorization": CANARY})
    assert store.for_call(None, Address.parse(FOREIGN), allow_insecure_auth=True)
    with pytest.raises(InvalidType):
        QuillClient(FOREIGN, allow_insecure_auth="yes")


def test_what_is_no_secret_may_go_anywhere():
    store = HeaderStore({"x-trace": "1"})
    assert store.for_call({"x-more": "2"}, Address.parse(FOREIGN), allow_insecure_auth=False) == (
        ("x-trace", "1"),
        ("x-more", "2"),
    )


def test_secrets_arrive_at_the_server(client, host):
    client.client.set_bearer_token("t0ken")
    client.client.set_api_key("k3y")
    client.call(RAW, "Unary", ask())
    seen = dict(host.raw.metadata[-1])
    assert (seen["authorization"], seen["x-api-key"]) == ("Bearer t0ken", "k3y")


def test_no_secret_shows_anywhere(client, caplog):
    caplog.set_level(logging.DEBUG)
    quill_client = client.client
    quill_client.set_bearer_token(CANARY)
    quill_client.set_api_key(CANARY)
    shown = [repr(quill_client), str(quill_client), repr(vars(quill_client)), repr(quill_client._headers)]
    errors = []
    for action in (
        lambda: client.call(RAW, "Unary", b"broken"),
        lambda: client.call(RAW, "Unary", ask(sleep_s=5), timeout_ms=50, headers={"x-more": CANARY}),
        lambda: client.stream(RAW, "Nope", b""),
        lambda: client.call(RAW, "Unary", ask(), headers={"x-more": CANARY + "\n"}),
    ):
        with pytest.raises(QuillError) as caught:
            action()
        errors.append(caught.value)
    shown += [repr(error) + str(error) + repr(vars(error)) for error in errors]
    assert CANARY not in "".join(shown)
    assert CANARY not in caplog.text


def test_the_repr_tells_what_the_client_is():
    assert repr(QuillClient("http://localhost:8080")) == (
        "QuillClient('http://localhost:8080', protocol='connect', timeout_ms=30000)"
    )
    assert repr(AsyncQuillClient("http://localhost", 5, protocol="grpc")) == (
        "AsyncQuillClient('http://localhost', protocol='grpc', timeout_ms=5)"
    )


def test_no_call_can_see_a_key_before_its_header_is_known_to_be_secret(kind, monkeypatch):
    client = kind(FOREIGN)
    seen = []
    publish = HeaderStore.set

    def watched(store, *arguments):
        publish(store, *arguments)
        with pytest.raises(InvalidUsage, match="clear text"):
            client._metadata(None)
        seen.append(arguments)

    monkeypatch.setattr(HeaderStore, "set", watched)
    client.set_api_key(CANARY, "X-My-Key")
    assert len(seen) == 1


def test_a_key_that_cannot_be_sent_leaves_its_header_as_it_was(kind):
    client = kind(FOREIGN, headers={"X-My-Key": "public"})
    with pytest.raises(InvalidUsage):
        client.set_api_key("not\nprintable", "X-My-Key")
    assert client._metadata(None) == (("x-my-key", "public"),)


def test_headers_set_by_several_threads_at_once_are_all_there():
    store, address = HeaderStore(), Address.parse("http://localhost")
    start = threading.Barrier(4)

    def change(thread):
        start.wait()
        for index in range(2000):
            store.set(f"x-{thread}-{index}", "1")
            store.set("x-shared", "1")
            if index % 2:
                store.remove(f"x-{thread}-{index}")
            if index % 100 == 0:
                store.for_call(None, address, allow_insecure_auth=False)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    kept = {f"x-{thread}-{index}" for thread in range(4) for index in range(0, 2000, 2)}
    assert set(store.visible()) == kept | {"x-shared"}
