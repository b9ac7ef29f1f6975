"""The pool of blocking HTTP connections, with httpcore's own sockets and a real server."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpcore
import pytest

from client.harness import answer, answering
from quill.client.pool import Pool


@pytest.fixture
def pool():
    pool = Pool(httpcore.HTTPConnection, 60)
    yield pool
    pool.close()


def ask(pool, url):
    """The response of a GET, not closed, and the local port of its connection."""
    response = pool.handle_request(httpcore.Request("GET", f"{url}/healthz", headers={"host": "x"}))
    return response, response.extensions["network_stream"].get_extra_info("client_addr")[1]


def finish(response):
    try:
        return response.read()
    finally:
        response.close()


def test_connections_are_used_again_the_last_one_first(host, pool):
    url = host.url("connect")
    first, first_port = ask(pool, url)
    second, second_port = ask(pool, url)
    assert first_port != second_port
    assert [finish(first), finish(second)] == [b'{"status": "SERVING"}'] * 2
    for expected in (second_port, second_port):
        response, port = ask(pool, url)
        finish(response)
        response.close()  # a second time is nothing
        assert port == expected


def test_what_was_not_read_to_its_end_is_not_used_again(host, pool):
    response, port = ask(pool, host.url("connect"))
    response.close()
    again, other = ask(pool, host.url("connect"))
    finish(again)
    assert other != port


def test_idle_connections_expire_and_are_closed(host):
    pool = Pool(httpcore.HTTPConnection, 0.05)
    responses = [ask(pool, host.url("connect")) for _ in range(5)]
    for response, _ in responses:
        finish(response)
    assert len(pool._all) == 5
    time.sleep(0.1)
    response, port = ask(pool, host.url("connect"))
    finish(response)
    assert port not in {port for _, port in responses}
    assert len(pool._all) == 1
    pool.close()


def test_a_connection_that_the_server_closed_is_not_used_again(host, pool):
    with host.tcp(answering(answer(body=b"bye"))) as port:  # says "connection: close", as servers do before they stop
        for _ in range(3):
            response, _ = ask(pool, f"http://127.0.0.1:{port}")
            assert finish(response) == b"bye"
    assert len(pool._all) == 0


def test_a_failed_request_leaves_no_connection(pool):
    with pytest.raises(httpcore.ConnectError):
        ask(pool, "http://127.0.0.1:1")
    assert len(pool._all) == 0


def test_many_threads_share_it(host, pool):
    def work(_):
        response, port = ask(pool, host.url("connect"))
        assert finish(response) == b'{"status": "SERVING"}'
        return port

    with ThreadPoolExecutor(20) as threads:
        ports = list(threads.map(work, range(400)))
    assert len(set(ports)) <= 20
    assert len(pool._all) == len(pool._idle) <= 20
