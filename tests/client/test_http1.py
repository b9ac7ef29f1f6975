"""HTTP/1.1 without a socket: h11's server side reads what is sent, and bytes by hand come in at any borders."""

import itertools

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import Internal, Unavailable
from quill.client.address import Address
from quill.client.http import END, Head, HttpRequest
from quill.client.http1 import Http1
from quill.client.peer import Peer

PEER = Peer(Address.parse("http://example.test:81"), answered=True)
BODY = bytes(range(256)) * 3


def chunked(*parts):
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nx-after: 1\r\n\r\n"


FRAMINGS = {
    "counted": b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "chunked": b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY[:1], BODY[1:500], BODY[500:]),
    "closed": b"connection: close\r\n\r\n" + BODY,
}


def ask(body=b"ab"):
    return HttpRequest("POST", "/p/a.B/C", [("x-a", "1")], body)


def received_by_a_server(data):
    """What h11 reads: the head of the request, its body, and whether it is complete."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    head, body = server.next_event(), b""
    while isinstance(event := server.next_event(), h11.Data):
        body += event.data
    return head, body, isinstance(event, h11.EndOfMessage)


def pieces(data, cuts):
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(borders) if end > begin]


def read(http, parts):
    """Head and body of the response that comes in these parts, after which the connection ends."""
    parts = iter([*parts, b""])

    def wait(ask):
        while (answer := ask()) is None:
            http.feed(next(parts))
        return answer

    head = wait(http.head)
    body = b""
    while (chunk := wait(http.chunk)) != END:
        body += chunk
    return head, body


@given(st.binary(max_size=2000))
def test_a_whole_request_arrives_as_it_is(body):
    head, got, complete = received_by_a_server(b"".join(Http1(PEER).request(ask(body))))
    assert (head.method, head.target) == (b"POST", b"/p/a.B/C")
    assert dict(head.headers) == {
        b"host": b"example.test:81",
        b"x-a": b"1",
        b"content-length": str(len(body)).encode(),
    }
    assert (got, complete) == (body, True)


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_a_request_in_parts_arrives_whole_and_an_empty_part_is_not_its_end(parts):
    http = Http1(PEER)
    data = b"".join(http.request(ask(None))) + b"".join(http.part(part) for part in parts)
    head, got, complete = received_by_a_server(data)
    assert (b"transfer-encoding", b"chunked") in list(head.headers)
    assert (got, complete) == (b"".join(parts), False)
    assert received_by_a_server(data + http.end())[1:] == (b"".join(parts), True)


@pytest.mark.parametrize("framing", FRAMINGS)
@settings(max_examples=60)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=30))
def test_a_response_is_the_same_wherever_it_is_cut(framing, cuts):
    data = b"HTTP/1.1 103 Early\r\nx-b: 1\r\n\r\nHTTP/1.1 200 OK\r\nX-A: \xe4\r\n" + FRAMINGS[framing]
    http = Http1(PEER)
    http.request(ask())
    head, body = read(http, pieces(data, cuts))
    assert (head.status, head.headers[0]) == (200, ("x-a", "ä"))
    assert body == BODY
    assert http.next_request() == (framing != "closed")


@pytest.mark.parametrize("framing", ["counted", "chunked"])
@given(cut=st.integers(0, 10_000))
def test_a_response_that_ends_too_early_was_lost(framing, cut):
    data = b"HTTP/1.1 200 OK\r\n" + FRAMINGS[framing]
    http = Http1(PEER)
    http.request(ask())
    with pytest.raises(Unavailable, match=r"example.test:81 was lost"):
        read(http, [data[: cut % len(data)]] if cut % len(data) else [])


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=400))
def test_nonsense_is_an_error_or_a_wait_and_never_anything_else(data):
    http = Http1(PEER)
    http.request(ask())
    with pytest.raises((Unavailable, Internal)):
        read(http, [data])


@pytest.mark.parametrize("line", [b"x-a: " + b"a" * 200_000, b"x-a: 1\r\n" * 30_000])
def test_a_head_that_is_too_large_is_refused_before_it_ends(line):
    http = Http1(PEER)
    http.request(ask())
    data = b"HTTP/1.1 200 OK\r\n" + line
    with pytest.raises(Internal, match="valid HTTP"):
        read(http, [data[at : at + 65536] for at in range(0, len(data), 65536)])


def test_one_connection_carries_one_request_after_the_other():
    http = Http1(PEER)
    for _ in range(3):
        http.request(ask())
        assert not http.next_request()
        http.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nA")
        assert http.head() == Head(200, [("content-length", "1")])
        assert (http.chunk(), http.chunk()) == (b"A", END)
        assert http.next_request()


def test_a_connection_with_something_left_over_carries_no_more():
    http = Http1(PEER)
    http.request(ask())
    http.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nABC")
    assert http.head() is not None
    assert (http.chunk(), http.chunk()) == (b"A", END)
    assert not http.next_request()


def test_an_answer_before_the_end_of_the_request_is_read_and_ends_the_connection():
    http = Http1(PEER)
    http.request(ask(None))
    http.part(b"some")
    http.feed(b"HTTP/1.1 413 Too Large\r\ncontent-length: 1\r\n\r\nA")
    assert http.head().status == 413
    assert (http.chunk(), http.chunk()) == (b"A", END)
    assert not http.next_request()
