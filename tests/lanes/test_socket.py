"""Direct connections: how both ends come to have one, what goes over it, and how it ends."""

import contextlib
import socket
import ssl
import struct
import threading
import time

import numpy as np
import pytest

from quill.errors import DeadlineExceeded, InvalidUsage, Unavailable
from quill.lanes import dialing
from quill.lanes.dialing import Listener, dial
from quill.lanes.socket import Connection
from support.authority import Authority

LIMIT_S = 20
HOST = "127.0.0.1"


def soon(s=LIMIT_S):
    return time.monotonic() + s


class Taken:
    """What a listener gave for a token."""

    def __init__(self):
        self._came = threading.Event()
        self._connection = None

    def __call__(self, connection):
        self._connection = connection
        self._came.set()

    def connection(self):
        assert self._came.wait(LIMIT_S)
        return self._connection


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(params=["clear", "tls"])
def both(request, authority, tmp_path):
    """The server's and the client's end."""
    server_tls = client_tls = None
    if request.param == "tls":
        cert, key = authority.issue().write(tmp_path)
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_tls.load_cert_chain(cert, key)
        client_tls = ssl.create_default_context(cadata=authority.pem.decode())
    with contextlib.closing(Listener(HOST, None if server_tls is None else lambda: server_tls)) as listener:
        taken = Taken()
        client = dial(HOST, listener.port, listener.token(taken), client_tls, LIMIT_S)
        with contextlib.closing(client), contextlib.closing(taken.connection()) as server:
            yield server, client


def together(*works):
    """Run each in a thread, and raise what one of them raised."""
    errors = []

    def run(work):
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_frames_go_both_ways_from_arrays_into_arrays(both):
    server, client = both
    random = np.random.default_rng(0)
    sent = [np.frombuffer(random.bytes(size), np.uint8) for size in (1, 20 * 2**20, 0, 3)]
    there, back = [np.zeros_like(one) for one in sent], [np.zeros_like(one) for one in sent]

    def serve():
        for _ in range(2):
            frame = server.receive_frame(0, soon())
            assert frame == (b"", sum(one.nbytes for one in sent))
            server.receive_data([one.data for one in there], soon())
            server.send(b"head", [one.data for one in there], soon())

    def ask():
        for _ in range(2):
            client.send(b"", [one.data for one in sent], soon())
            frame = client.receive_frame(10, soon())
            assert frame == (b"head", sum(one.nbytes for one in sent))
            client.receive_data([one.data for one in back], soon())

    together(serve, ask)
    for one, its in zip(sent, back, strict=True):
        assert np.array_equal(one, its)


def test_a_frame_begins_with_three_numbers():
    with socket.create_server((HOST, 0)) as server, socket.create_connection(server.getsockname()) as sock:
        theirs, _ = server.accept()
        with theirs:
            ours = Connection(sock)
            for number in range(2):
                ours.send(b"ab", [memoryview(b"xyz")], soon())
                assert theirs.recv(29, socket.MSG_WAITALL) == struct.pack("<QQQ", number, 2, 3) + b"abxyz"


def test_the_end_of_the_other_side_ends_a_wait_at_once(both):
    server, client = both
    with pytest.raises(Unavailable, match=r"the lane is lost, receiving 9 bytes: it ended, and 2 of 9 bytes had come"):
        together(
            lambda: server.receive_data([memoryview(bytearray(9))], soon()),
            lambda: (client._sock.sendall(b"ab"), client.close()),
        )
    assert not server.is_open


def test_closing_wakes_who_waits_in_another_thread(both):
    server, _ = both

    def close_when_used():
        while server._in_use.acquire(blocking=False):
            server._in_use.release()
            time.sleep(0.001)
        server.close()

    with pytest.raises(Unavailable, match="the lane is lost, waiting for tensors"):
        together(lambda: server.receive_frame(0, soon()), close_when_used)
    assert not server.is_open


def test_a_deadline_ends_every_wait_and_the_connection(both):
    server, client = both
    with pytest.raises(DeadlineExceeded, match="the lane took too long, waiting for tensors"):
        server.receive_frame(0, soon(0.05))
    with pytest.raises(Unavailable):
        server.receive_frame(0, soon())
    with pytest.raises((DeadlineExceeded, Unavailable)):
        client.send(b"", [memoryview(bytes(64 * 2**20))], soon(0.05))
    assert not client.is_open


def test_a_peer_that_reads_nothing_is_not_waited_for(both):
    _, client = both
    with pytest.raises(DeadlineExceeded, match="the lane took too long, sending 67108864 bytes"):
        client.send(b"", [memoryview(bytes(64 * 2**20))], soon(0.1))


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ((1, 0, 0), "frame 1 came with a head of 0 bytes, expected was frame 0 with 10 at most"),
        ((0, 11, 0), "frame 0 came with a head of 11 bytes, expected was frame 0 with 10 at most"),
        ((0, 2**63, 0), "with a head of 9223372036854775808 bytes"),
    ],
)
def test_a_frame_that_cannot_be_is_refused_before_it_is_read(both, prefix, said):
    server, client = both
    client._sock.sendall(struct.pack("<QQQ", *prefix))
    with pytest.raises(Unavailable, match=said):
        server.receive_frame(10, soon())
    assert not server.is_open


def test_a_connection_whose_peer_died_behind_what_it_had_sent_is_closed(both):
    server, client = both
    client.send(b"", [memoryview(b"abc")], soon())
    client.close()
    deadline_s = soon()
    while server.is_open and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert not server.is_open


def test_an_open_connection_is_known_from_one_that_the_other_side_has_closed(both):
    server, client = both
    assert server.is_open
    assert client.is_open
    client.send(b"", [memoryview(b"abc")], soon())
    assert server.is_open
    assert server.receive_frame(0, soon()).data_bytes == 3
    server.receive_data([memoryview(bytearray(3))], soon())
    client.close()
    with pytest.raises(Unavailable):
        server.receive_frame(0, soon())
    assert not server.is_open
    assert not client.is_open


def test_the_end_of_an_idle_connection_is_seen_without_reading():
    with contextlib.closing(Listener(HOST, None)) as listener:
        taken = Taken()
        dial(HOST, listener.port, listener.token(taken), None, LIMIT_S).close()
        server, deadline_s = taken.connection(), soon()
        while server.is_open and time.monotonic() < deadline_s:
            time.sleep(0.001)
        assert not server.is_open
        server.close()


@pytest.fixture
def listener():
    with contextlib.closing(Listener(HOST, None)) as listener:
        yield listener


def test_a_token_is_good_for_one_connection(listener):
    taken = Taken()
    token = listener.token(taken)
    other = listener.token(Taken())  # so that the second is listened to
    assert other != token
    with (
        contextlib.closing(dial(HOST, listener.port, token, None, LIMIT_S)),
        contextlib.closing(taken.connection()),
        pytest.raises(Unavailable, match=f"no lane to {HOST}, port {listener.port}: it was closed"),
    ):
        dial(HOST, listener.port, token, None, LIMIT_S)


def test_a_wrong_token_opens_nothing_and_the_right_one_still_does(listener):
    taken = Taken()
    token = listener.token(taken)
    for wrong in (bytes(32), token[:-1] + bytes([token[-1] ^ 1])):
        with pytest.raises(Unavailable, match="it was closed"):
            dial(HOST, listener.port, wrong, None, LIMIT_S)
    with contextlib.closing(dial(HOST, listener.port, token, None, LIMIT_S)), contextlib.closing(taken.connection()):
        pass


def test_a_token_has_its_time(listener, monkeypatch):
    monkeypatch.setattr(dialing, "HANDSHAKE_S", -1.0)
    token = listener.token(Taken())
    monkeypatch.undo()
    listener.token(Taken())
    with pytest.raises(Unavailable):
        dial(HOST, listener.port, token, None, LIMIT_S)


def test_nobody_is_listened_to_once_the_last_token_has_had_its_time(listener, monkeypatch):
    monkeypatch.setattr(dialing, "HANDSHAKE_S", -1.0)
    listener.token(Taken())
    monkeypatch.undo()
    with socket.create_connection((HOST, listener.port), LIMIT_S) as sock:
        sock.settimeout(dialing.HANDSHAKE_S / 2)
        assert sock.recv(1) == b""


def test_what_is_no_token_is_not_sent(listener):
    with pytest.raises(Unavailable, match="its token has 9 bytes, must have 32"):
        dial(HOST, listener.port, b"FLUSHALL\n", None, LIMIT_S)


def test_handshakes_that_fail_leave_room_for_others(authority, tmp_path, monkeypatch):
    monkeypatch.setattr(dialing, "_MAX_HANDSHAKES", 2)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue().write(tmp_path))
    with contextlib.closing(Listener(HOST, lambda: context)) as listener:
        taken = Taken()
        token = listener.token(taken)
        for _ in range(3):
            with (
                socket.create_connection((HOST, listener.port), LIMIT_S) as sock,
                contextlib.suppress(ConnectionResetError),
            ):
                sock.sendall(b"this is no TLS at all\n")
                while sock.recv(100):
                    pass
        dial(HOST, listener.port, token, authority.ssl(), LIMIT_S).close()
        taken.connection().close()


def test_who_comes_unasked_is_not_listened_to(listener):
    with socket.create_connection((HOST, listener.port), LIMIT_S) as sock:
        sock.settimeout(LIMIT_S)
        assert sock.recv(1) == b""


def test_who_says_nothing_keeps_nobody_from_coming(listener):
    taken = Taken()
    token = listener.token(taken)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection((HOST, listener.port), LIMIT_S))
        stack.enter_context(contextlib.closing(dial(HOST, listener.port, token, None, LIMIT_S)))
        stack.enter_context(contextlib.closing(taken.connection()))


def test_closing_a_listener_ends_its_threads_and_those_who_have_said_nothing():
    before = threading.active_count()
    listener = Listener(HOST, None)
    listener.token(Taken())
    with socket.create_connection((HOST, listener.port), LIMIT_S) as sock:
        deadline_s = soon()
        while not listener._handshakes and time.monotonic() < deadline_s:
            time.sleep(0.001)
        listener.close()
        sock.settimeout(LIMIT_S)
        assert sock.recv(1) == b""
    while threading.active_count() > before and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert threading.active_count() <= before  # those of an earlier test may have ended meanwhile
    with pytest.raises(Unavailable):
        dial(HOST, listener.port, bytes(32), None, LIMIT_S)


def test_an_address_that_is_not_ours_is_refused():
    with pytest.raises(InvalidUsage, match=r"lanes cannot be listened for on 192\.0\.2\.1"):
        Listener("192.0.2.1", None)


def test_a_server_that_does_not_show_its_certificate_is_not_talked_to(listener, authority):
    context = ssl.create_default_context(cadata=authority.pem.decode())
    listener.token(Taken())
    with pytest.raises(Unavailable, match=r"TLS failed|it was closed|reset"):
        dial(HOST, listener.port, bytes(32), context, 5)
