"""Every switch of the proxy, seen from both ends of plain sockets."""

import asyncio
import contextlib
import dataclasses
import errno
import random
import socket
import threading
import time

import pytest

from quill.errors import InvalidUsage
from quill.testing import ChaosProxy, Counts, Faults, Way

LIMIT_S = 20


class Peer:
    """A server in threads that echoes, or lets a test play it by hand."""

    def __init__(self, *, path=None, echoes=True):
        self.listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.listener.bind(path or ("127.0.0.1", 0))
        self.listener.listen(64)
        self.target = f"unix:{path}" if path else f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.accepted = []
        self.echoes = echoes
        self.thread = threading.Thread(target=self.accept)
        self.thread.start()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.settimeout(LIMIT_S)
            self.accepted.append(sock)
            if self.echoes:
                threading.Thread(target=self.echo, args=(sock,), daemon=True).start()

    @staticmethod
    def echo(sock):
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

    def socket(self):
        deadline = time.monotonic() + LIMIT_S
        while not self.accepted:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return self.accepted[-1]

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(LIMIT_S)
        for sock in self.accepted:
            sock.close()


@pytest.fixture
def echo():
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def silent():
    """A server that says nothing by itself."""
    peer = Peer(echoes=False)
    yield peer
    peer.close()


@contextlib.contextmanager
def dialled(proxy):
    if proxy.address.startswith("/"):
        family, address = socket.AF_UNIX, proxy.address
    else:
        host, port = proxy.address.split(":")
        family, address = socket.AF_INET, (host, int(port))
    with socket.socket(family) as sock:
        sock.settimeout(LIMIT_S)
        sock.connect(address)
        yield sock


def exactly(sock, size):
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, f"the end came after {len(data)} of {size} bytes"
        data += part
    return data


def rest(sock):
    """What comes until the end, and what the end is."""
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionResetError:
        return data, "rst"
    return data, "fin"


def said_nothing(sock, seconds=0.2):
    sock.settimeout(seconds)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(LIMIT_S)
    return False


def until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def test_without_faults_bytes_and_ends_pass_as_they_come(echo):
    payload = random.Random(1).randbytes(3_000_000)
    with ChaosProxy(echo.target) as proxy, dialled(proxy) as sock:
        writer = threading.Thread(target=lambda: (sock.sendall(payload), sock.shutdown(socket.SHUT_WR)))
        writer.start()
        assert rest(sock) == (payload, "fin")
        writer.join(LIMIT_S)
        until(lambda: not proxy.counts.live)
    assert proxy.counts == Counts(connections=1, up_bytes=len(payload), down_bytes=len(payload))


def test_a_reset_by_one_peer_reaches_the_other(silent):
    with ChaosProxy(silent.target) as proxy, dialled(proxy) as sock:
        server = silent.socket()
        sock.sendall(b"x")
        exactly(server, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.close()
        assert rest(sock) == (b"", "rst")


def test_unix_sockets_are_proxied(tmp_path):
    peer = Peer(path=str(tmp_path / "echo"))
    try:
        with ChaosProxy(peer.target) as proxy:
            assert proxy.url == f"unix:{proxy.address}"
            with dialled(proxy) as sock:
                sock.sendall(b"hello")
                assert exactly(sock, 5) == b"hello"
                assert proxy.cut() == 1
                assert rest(sock) == (b"", "fin")
            proxy.set(refuse=True)
            with pytest.raises(ConnectionRefusedError), dialled(proxy):
                pass
            proxy.heal()
            with dialled(proxy) as sock:
                sock.sendall(b"hello")
                assert exactly(sock, 5) == b"hello"
    finally:
        peer.close()


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_cut_is_seen_by_both_peers(silent, how):
    with ChaosProxy(silent.target) as proxy, dialled(proxy) as sock:
        server = silent.socket()
        sock.sendall(b"hello")
        assert exactly(server, 5) == b"hello"
        assert proxy.cut(how) == 1
        assert rest(sock) == (b"", how)
        assert rest(server) == (b"", how)
        assert proxy.cut(how) == 0
        assert proxy.counts.cuts == 1


def test_one_connection_of_several_is_cut(echo):
    with ChaosProxy(echo.target) as proxy, dialled(proxy) as first:
        first.sendall(b"1")
        exactly(first, 1)
        with dialled(proxy) as second:
            second.sendall(b"2")
            exactly(second, 1)
            assert proxy.cut(connection=0) == 1
            assert rest(first) == (b"", "rst")
            second.sendall(b"more")
            assert exactly(second, 4) == b"more"


@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_connection_is_cut_after_exactly_n_bytes(silent, direction, how):
    way = Way(cut_after_bytes=100_001)
    faults = Faults(**{direction: way}, cut_with=how)
    with ChaosProxy(silent.target, faults=faults) as proxy, dialled(proxy) as client:
        server = silent.socket()
        sender, receiver = (client, server) if direction == "up" else (server, client)
        payload = random.Random(2).randbytes(200_000)
        writer = threading.Thread(target=send, args=(sender, payload))
        writer.start()
        assert rest(receiver) == (payload[:100_001], how)
        writer.join(LIMIT_S)
        counts = proxy.counts
        assert (counts.cuts, counts.up_bytes + counts.down_bytes) == (1, 100_001)


def send(sock, data):
    with contextlib.suppress(OSError):
        sock.sendall(data)


def cuts_of(target, seed, count=8):
    """How many bytes each of several connections gets."""
    faults = Faults(down=Way(cut_after_bytes=(10, 5000)), cut_with="fin")
    sizes = []
    with ChaosProxy(target, seed=seed, faults=faults) as proxy:
        for _ in range(count):
            with dialled(proxy) as sock:
                send(sock, bytes(6000))
                sizes.append(len(rest(sock)[0]))
    return sizes


def test_cuts_at_random_are_those_of_the_seed(echo):
    first = cuts_of(echo.target, 7)
    assert first == cuts_of(echo.target, 7)
    assert first != cuts_of(echo.target, 8)
    assert all(10 <= size <= 5000 for size in first)
    assert len(set(first)) > 4


def test_a_connection_may_have_faults_of_its_own(echo):
    own = {1: Faults(down=Way(cut_after_bytes=3), cut_with="fin")}
    with ChaosProxy(echo.target, per_connection=own.get) as proxy:
        for expected in (b"hello", b"hel", b"hello"):
            with dialled(proxy) as sock:
                sock.sendall(b"hello")
                if len(expected) < 5:
                    assert rest(sock) == (expected, "fin")
                else:
                    assert exactly(sock, 5) == expected


def test_a_black_hole_holds_everything_and_keeps_connections(silent):
    with ChaosProxy(silent.target) as proxy, dialled(proxy) as sock:
        server = silent.socket()
        proxy.set(black_hole=True)
        sock.sendall(b"up")
        server.sendall(b"down")
        server.close()
        with dialled(proxy) as late:
            late.sendall(b"late")
            assert said_nothing(sock)
            assert said_nothing(late, 0.05)
            assert len(silent.accepted) == 1
            assert proxy.counts.down_bytes == 0
            proxy.heal()
            assert sock.recv(4) == b"down"
            until(lambda: len(silent.accepted) == 2)
            assert exactly(silent.socket(), 4) == b"late"


def test_delay_makes_bytes_late_and_not_fewer_a_second(echo):
    with ChaosProxy(echo.target) as proxy, dialled(proxy) as sock:
        proxy.set(up=Way(delay_s=0.1), down=Way(delay_s=0.1, jitter_s=0.05))
        began = time.monotonic()
        for number in range(20):
            sock.sendall(bytes([number]))
            time.sleep(0.002)
        assert exactly(sock, 20) == bytes(range(20))
        took = time.monotonic() - began
        assert 0.2 <= took < 2.0


def test_a_delay_that_is_lifted_lets_go_what_waited(echo):
    with ChaosProxy(echo.target, faults=Faults(up=Way(delay_s=3600))) as proxy, dialled(proxy) as sock:
        sock.sendall(b"hello")
        assert said_nothing(sock)
        proxy.heal()
        assert exactly(sock, 5) == b"hello"


def test_throttled_bytes_come_as_fast_as_said(echo):
    with ChaosProxy(echo.target, faults=Faults(down=Way(bytes_per_s=20_000))) as proxy, dialled(proxy) as sock:
        began = time.monotonic()
        sock.sendall(bytes(10_000))
        exactly(sock, 10_000)
        assert 0.45 <= time.monotonic() - began < 2.5


def test_a_throttled_sender_feels_it(silent):
    with ChaosProxy(silent.target, faults=Faults(up=Way(bytes_per_s=1))) as proxy, dialled(proxy) as sock:
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.sendall(bytes(100_000_000))


def test_a_half_closed_direction_ends_and_the_other_goes_on(silent):
    with ChaosProxy(silent.target) as proxy, dialled(proxy) as sock:
        server = silent.socket()
        sock.sendall(b"x")
        exactly(server, 1)
        assert proxy.half_close("up") == 1
        assert rest(server) == (b"", "fin")
        sock.sendall(b"nobody reads this")
        server.sendall(b"still here")
        assert exactly(sock, 10) == b"still here"
        assert proxy.half_close("up") == 0
        assert proxy.counts.half_closes == 1


def test_the_nth_byte_is_changed(echo):
    payload = bytes(200_000)
    with ChaosProxy(echo.target, faults=Faults(down=Way(flip_at=70_000))) as proxy, dialled(proxy) as sock:
        writer = threading.Thread(target=send, args=(sock, payload))
        writer.start()
        data = exactly(sock, len(payload))
        writer.join(LIMIT_S)
        assert [n for n, byte in enumerate(data) if byte] == [70_000]
        assert proxy.counts.flipped_bytes == 1


def flips_of(target, seed, pieces):
    payload = bytes(20_000)
    with ChaosProxy(target, seed=seed, faults=Faults(up=Way(flip_probability=0.01))) as proxy, dialled(proxy) as sock:
        for start in range(0, len(payload), pieces):
            sock.sendall(payload[start : start + pieces])
        return exactly(sock, len(payload))


def test_bytes_are_changed_as_likely_as_said_and_where_the_seed_says(echo):
    data = flips_of(echo.target, 3, 20_000)
    assert 120 <= sum(byte != 0 for byte in data) <= 290  # 200 +- six standard deviations
    assert flips_of(echo.target, 3, 777) == data
    assert flips_of(echo.target, 4, 20_000) != data


def test_every_byte_is_changed_with_probability_one(echo):
    with ChaosProxy(echo.target, faults=Faults(up=Way(flip_probability=1))) as proxy, dialled(proxy) as sock:
        sock.sendall(bytes(1000))
        assert 0 not in exactly(sock, 1000)


def test_refused_connections_are_refused_by_the_kernel(echo):
    with ChaosProxy(echo.target) as proxy, dialled(proxy) as sock:
        address = proxy.address
        proxy.set(refuse=True)
        with pytest.raises(ConnectionRefusedError), dialled(proxy):
            pass
        sock.sendall(b"goes on")
        assert exactly(sock, 7) == b"goes on"
        proxy.heal()
        assert proxy.address == address
        with dialled(proxy) as again:
            again.sendall(b"hello")
            assert exactly(again, 5) == b"hello"


def test_a_target_that_is_not_there_resets(echo):
    with ChaosProxy("127.0.0.1:1") as proxy:
        with dialled(proxy) as sock:
            assert rest(sock) == (b"", "rst")
        assert proxy.counts.unreachable == 1


async def test_it_runs_beside_an_event_loop(echo):
    async with ChaosProxy(echo.target) as proxy:
        host, port = proxy.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


def test_its_end_cuts_what_is_open_and_leaves_nothing(echo):
    threads = threading.active_count()
    with ChaosProxy(echo.target) as proxy, dialled(proxy) as sock:
        sock.sendall(b"x")
        exactly(sock, 1)
        echo_thread = threading.active_count()
        proxy.close()
        assert threading.active_count() == echo_thread - 1 or threading.active_count() == threads
        assert rest(sock)[0] == b""
        with pytest.raises(ConnectionRefusedError), dialled(proxy):
            pass
    assert proxy.counts.connections == 1


def test_a_cut_wakes_a_peer_that_is_blocked_in_a_send(silent):
    with ChaosProxy(silent.target) as proxy, dialled(proxy) as sock:
        errors = []

        def fill():
            try:
                sock.sendall(bytes(100_000_000))
            except OSError as error:
                errors.append(error.errno)

        writer = threading.Thread(target=fill)
        writer.start()
        until(lambda: proxy.counts.up_bytes > 0)
        proxy.cut()
        writer.join(LIMIT_S)
        assert errors[0] in {errno.ECONNRESET, errno.EPIPE}


@pytest.mark.parametrize(
    "target", ["", "127.0.0.1", "http://127.0.0.1", "unix:", "127.0.0.1:80/path", "http://user@host:80"]
)
def test_what_is_no_target_is_refused(target):
    with pytest.raises(InvalidUsage, match="is no target"):
        ChaosProxy(target)


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("127.0.0.1:50051", "{}"),
        ("http://127.0.0.1:8080", "http://{}"),
        ("grpc://localhost:50051", "grpc://{}"),
        ("https://[::1]:8443/", "https://{}"),
        ("http+unix:///tmp/x", "http+unix://{}"),
        ("unix:/tmp/x", "unix:{}"),
    ],
)
def test_the_url_is_that_of_the_target_with_another_address(target, url):
    with ChaosProxy(target) as proxy:
        assert proxy.url == url.format(proxy.address)


@pytest.mark.parametrize(
    "wrong",
    [
        {"delay_s": -1.0},
        {"jitter_s": float("nan")},
        {"bytes_per_s": 0},
        {"cut_after_bytes": -1},
        {"cut_after_bytes": (5, 3)},
        {"flip_at": -1},
        {"flip_probability": 1.5},
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidUsage, match=next(iter(wrong))):
        Way(**wrong)


def test_the_default_does_nothing():
    assert dataclasses.asdict(Way()) == {
        "delay_s": 0.0,
        "jitter_s": 0.0,
        "bytes_per_s": None,
        "cut_after_bytes": None,
        "flip_at": None,
        "flip_probability": 0.0,
    }


def test_a_proxy_that_does_not_run_says_so():
    proxy = ChaosProxy("127.0.0.1:1")
    for use in (lambda: proxy.url, proxy.cut, proxy.heal):
        with pytest.raises(InvalidUsage, match="start"):
            use()
    with pytest.raises(TypeError):
        proxy.set(black_whole=True)
    with proxy, pytest.raises(InvalidUsage, match="before"):
        proxy.start()
