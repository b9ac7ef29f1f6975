"""How a blocking client finds the address that takes its connection, and how long that may last."""

import contextlib
import socket
import ssl
import threading
import time

import pytest

from quill import Cancelled, ClientTls, DeadlineExceeded, QuillClient, Unavailable
from quill.client import sockets
from support.authority import Authority

NAMED = "two.example"


@pytest.fixture
def resolver(monkeypatch):
    """Names as the test has them: the system's resolver cannot be told to be slow."""
    real = socket.getaddrinfo
    table = {}

    def answer(host, port, *args, **kwargs):
        return table[host]() if host in table else real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return table


@contextlib.contextmanager
def deaf():
    """An address that answers no connection: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()


def test_the_second_address_is_tried_when_the_first_is_silent(host, resolver, monkeypatch):
    monkeypatch.setattr(sockets, "ADDRESS_PATIENCE_S", 0.2)
    address, _, port = host.server.http_url.removeprefix("http://").partition(":")
    with deaf() as silent:
        resolver[NAMED] = lambda: [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", silent),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port))),
        ]
        with QuillClient(f"http://{NAMED}:{port}", timeout_ms=20_000) as client:
            assert client.health_check() is True


def test_a_resolver_that_does_not_answer_is_waited_for_until_the_deadline(resolver):
    answered = threading.Event()
    resolver[NAMED] = lambda: answered.wait(30) and []
    try:
        with QuillClient(f"http://{NAMED}:80", timeout_ms=200, max_attempts=1) as client:
            began_s = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                client.call("a.B", "C", b"")
            assert time.monotonic() - began_s < 10
    finally:
        answered.set()


def test_closing_ends_the_wait_for_a_resolver(resolver):
    asked, answered = threading.Event(), threading.Event()

    def silent():
        asked.set()
        return answered.wait(30) and []

    resolver[NAMED] = silent
    failures = []
    client = QuillClient(f"http://{NAMED}:80", timeout_ms=60_000)

    def call():
        with pytest.raises(Cancelled) as caught:
            client.call("a.B", "C", b"")
        failures.append(caught.value)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        assert asked.wait(10)
        client.close()
        thread.join(10)
        assert len(failures) == 1
    finally:
        answered.set()
        thread.join(10)


def test_a_server_of_another_name_is_shown_no_certificate(tmp_path):
    """The second connection, which learns the names for the error, is to nobody that the client has accepted."""
    authority = Authority()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("server", ("DNS:other.example",)).write(tmp_path))
    context.load_verify_locations(cadata=authority.pem.decode())
    context.verify_mode = ssl.CERT_OPTIONAL
    shown = []

    def serve(listener):
        for _ in range(2):
            connection, _ = listener.accept()
            with (
                connection,
                contextlib.suppress(OSError, ValueError),  # ValueError: the client left amid the handshake
                context.wrap_socket(connection, server_side=True) as secured,
            ):
                secured.recv(1)
                shown.append(secured.getpeercert())

    client_folder = tmp_path / "client"
    client_folder.mkdir()
    cert, key = authority.issue("client", ()).write(client_folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        tls = ClientTls(ca=authority.pem, cert=cert, key=key)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        wrong = pytest.raises(Unavailable, match=r"other\.example")
        with QuillClient(url, tls=tls, max_attempts=1) as client, wrong:
            client.call("a.B", "C", b"")
        thread.join(10)
    assert not any(shown)
