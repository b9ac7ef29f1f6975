"""The pool of blocking HTTP connections, with real sockets and a real server."""

import functools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from client.harness import answer, answering
from quill import Unavailable
from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.http import END, HttpRequest
from quill.client.http_sync import Connection
from quill.client.peer import Peer
from quill.client.pool import Pool
from quill.client.sockets import Patience
from quill.client.transport import Call

ASK = HttpRequest("GET", "/healthz", [], b"")


def pool_of(url, expiry_s=60):
    return Pool(functools.partial(Connection.open, Peer.of(Address.parse(url), None, []), http2=False), expiry_s)


@pytest.fixture
def pool(host):
    pool = pool_of(host.url("connect"))
    yield pool
    pool.close()


def ask(pool):
    """An exchange whose body is not read, and its connection."""
    before = set(pool._all)
    idle = [connection for _, connection in pool._idle]
    exchange = pool.open(ASK, Patience(CallClock(Call(service="", method=""), time.monotonic)))
    assert exchange.head().status == 200
    (connection,) = (pool._all - before) or set(idle) - {connection for _, connection in pool._idle}
    return exchange, connection


def finish(exchange):
    body = b""
    try:
        while (chunk := exchange.chunk()) != END:
            body += chunk
    finally:
        exchange.close()
    return body


def test_connections_are_used_again_the_last_one_first(pool):
    (first, one), (second, other) = ask(pool), ask(pool)
    assert one is not other
    assert [finish(first), finish(second)] == [b'{"status": "SERVING"}'] * 2
    for _ in range(2):
        exchange, connection = ask(pool)
        finish(exchange)
        exchange.close()  # a second time is nothing
        assert connection is other
    assert len(pool._idle) == 2


def test_what_was_not_read_to_its_end_is_not_used_again(pool):
    exchange, connection = ask(pool)
    exchange.close()
    again, other = ask(pool)
    finish(again)
    assert other is not connection
    assert pool._all == {other}


def test_idle_connections_expire_and_are_closed(host):
    pool = pool_of(host.url("connect"), expiry_s=0.05)
    asked = [ask(pool) for _ in range(5)]
    for exchange, _ in asked:
        finish(exchange)
    assert len(pool._all) == 5
    time.sleep(0.1)
    exchange, connection = ask(pool)
    finish(exchange)
    assert connection not in {connection for _, connection in asked}
    assert pool._all == {connection}
    pool.close()


def test_a_connection_that_the_server_closed_is_not_used_again(host):
    with host.tcp(answering(answer(body=b"bye"))) as port:  # says "connection: close", as servers do before they stop
        pool = pool_of(f"http://127.0.0.1:{port}")
        for _ in range(3):
            assert finish(ask(pool)[0]) == b"bye"
    assert len(pool._all) == 0


def test_a_failed_request_leaves_no_connection():
    pool = pool_of("http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="connection refused"):
        ask(pool)
    assert len(pool._all) == 0


def test_a_closed_pool_keeps_nothing(pool):
    exchange, _ = ask(pool)
    pool.close()
    exchange.close()
    assert (len(pool._all), len(pool._idle)) == (0, 0)


def test_many_threads_share_it(pool):
    def work(_):
        exchange = pool.open(ASK, Patience(CallClock(Call(service="", method=""), time.monotonic)))
        assert exchange.head().status == 200
        assert finish(exchange) == b'{"status": "SERVING"}'

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(work, range(400)))
    assert len(pool._all) == len(pool._idle) <= 20
