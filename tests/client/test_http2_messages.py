"""HTTP/2 without a socket: h2's server side at the other end, and frames by hyperframe, at any borders."""

import contextlib
import itertools

import h2.config
import h2.connection
import h2.events
import pytest
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, PingFrame, SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import Internal, RpcError, Unavailable
from quill.client import faults, http2
from quill.client.address import Address
from quill.client.http import END, HttpRequest
from quill.client.http2 import STREAM_WINDOW_BYTES, Http2
from quill.client.http2_frames import BrokenFrames, FrameSieve, GoAway
from quill.errors import Code

ADDRESS = Address.parse("http://example.test:81")
SETTINGS = SettingsFrame(0).serialize()


def request(body=b""):
    return HttpRequest("POST", "/a.B/C", [("x-a", "1"), ("authorization", "secret")], body)


def pieces(data, cuts):
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(borders)]


class Pair:
    """A client under test and a server by h2."""

    def __init__(self):
        self.client = Http2(ADDRESS)
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.server.initiate_connection()
        self.bodies, self.heads, self.ended, self.resets = {}, {}, set(), {}

    def up(self, max_bytes=10**9, *, credit=True):
        """What the client has to say reaches the server."""
        sent = self.client.fill(max_bytes)
        for event in self.server.receive_data(self.client.data_to_send()):
            match event:
                case h2.events.RequestReceived():
                    self.heads[event.stream_id] = event.headers
                    self.bodies[event.stream_id] = b""
                case h2.events.DataReceived():
                    self.bodies[event.stream_id] += event.data
                    if credit:
                        self.server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    self.ended.add(event.stream_id)
                case h2.events.StreamReset():
                    self.resets[event.stream_id] = event.error_code
        return sent

    def down(self, cuts=()):
        """What the server has to say reaches the client, cut anywhere."""
        news = set()
        for piece in pieces(self.server.data_to_send(), cuts):
            news |= self.client.feed(piece)
        return news

    def settle(self):
        for _ in range(200):
            self.up()
            self.down()

    def answer(self, stream, body=b"", *, end=True):
        self.server.send_headers(stream.id, [(":status", "200"), ("x-b", "2")])
        if body:
            self.server.send_data(stream.id, body)
        if end:
            self.server.end_stream(stream.id)


def body_of(client, stream):
    body = b""
    while chunk := client.take(stream):
        body += chunk
    return body, chunk


def test_a_request_arrives_with_its_head_and_body():
    pair = Pair()
    stream = pair.client.begin(request(b"ab"))
    pair.up()
    assert pair.heads[stream.id] == [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "example.test:81"),
        (":path", "/a.B/C"),
        ("x-a", "1"),
        ("authorization", "secret"),
        ("content-length", "2"),
    ]
    assert pair.bodies[stream.id] == b"ab"
    assert pair.ended == {stream.id}


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=40_000), st.lists(st.integers(0, 100_000), max_size=20))
def test_a_response_is_the_same_wherever_it_is_cut(body, cuts):
    pair = Pair()
    stream = pair.client.begin(request())
    pair.up()
    pair.server.send_headers(stream.id, [(":status", "103")])
    pair.server.send_headers(stream.id, [(":status", "200"), ("x-b", "2")])
    for at in range(0, len(body), 16_000):
        pair.server.send_data(stream.id, body[at : at + 16_000], pad_length=at % 7 or None)
    pair.server.send_headers(stream.id, [("x-after", "3")], end_stream=True)
    assert pair.down(cuts) == {stream}
    assert (stream.head.status, stream.head.headers) == (200, [("x-b", "2")])
    assert body_of(pair.client, stream) == (body, END)
    pair.client.leave(stream)
    pair.up()
    assert pair.resets == {}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 400_000), min_size=1, max_size=5), st.integers(1, 300_000))
def test_requests_obey_the_windows_and_all_arrive(sizes, room_bytes):
    pair = Pair()
    streams = [pair.client.begin(request(bytes([number]) * size)) for number, size in enumerate(sizes)]
    for _ in range(4000):
        pair.up(room_bytes)  # h2 refuses what exceeds a window
        pair.down()
        if len(pair.ended) == len(streams):
            break
    assert [pair.bodies[stream.id] for stream in streams] == [bytes([n]) * size for n, size in enumerate(sizes)]


def test_a_request_waits_for_its_window_and_others_do_not():
    pair = Pair()
    first = pair.client.begin(request(bytes(200_000)))
    pair.up(credit=False)
    assert len(pair.bodies[first.id]) == 65_535
    assert pair.up(credit=False) == set()
    pair.server.increment_flow_control_window(50_000)  # the connection's, not the stream's
    pair.down()
    second = pair.client.begin(request(bytes(1000)))
    assert pair.up(credit=False) == {second}
    assert pair.ended == {second.id}
    pair.server.increment_flow_control_window(200_000, first.id)
    pair.server.increment_flow_control_window(200_000)
    pair.down()
    assert pair.up() == {first}
    assert pair.ended == {first.id, second.id}


def test_what_nobody_takes_stays_within_the_window_and_taking_opens_it():
    pair = Pair()
    stream = pair.client.begin(request())
    other = pair.client.begin(request())
    pair.settle()
    pair.answer(stream, end=False)
    sent = 0
    while (window := pair.server.local_flow_control_window(stream.id)) > 0:
        sent += (size := min(window, pair.server.max_outbound_frame_size))
        pair.server.send_data(stream.id, bytes(size))
        pair.down()
    assert sent == STREAM_WINDOW_BYTES
    pair.answer(other, b"not held up")
    pair.down()
    assert body_of(pair.client, other) == (b"not held up", END)
    pair.up()
    assert pair.server.local_flow_control_window(stream.id) == 0
    assert len(pair.client.take(stream)) == sent
    pair.up()
    assert pair.server.local_flow_control_window(stream.id) == STREAM_WINDOW_BYTES


def test_bytes_that_nobody_took_do_not_shrink_the_window_of_the_connection(monkeypatch):
    monkeypatch.setattr(http2, "_CONNECTION_WINDOW_BYTES", 100_000)
    pair = Pair()
    for _ in range(20):
        stream = pair.client.begin(request())
        pair.settle()
        pair.answer(stream, bytes(16_000), end=False)
        pair.down()
        pair.server.send_data(stream.id, bytes(16_000))
        late = pair.server.data_to_send()
        pair.client.leave(stream)
        pair.client.feed(late)  # crosses the reset
        pair.settle()
    assert pair.server.outbound_flow_control_window > 50_000
    assert len(pair.resets) == 20
    assert pair.client.count == 0


def test_leaving_a_call_that_runs_cancels_it_and_leaving_a_complete_one_does_not():
    pair = Pair()
    running, complete = pair.client.begin(request()), pair.client.begin(request())
    pair.settle()
    pair.answer(complete, b"x")
    pair.down()
    pair.client.leave(running)
    pair.client.leave(complete)
    pair.client.leave(complete)
    pair.settle()
    assert pair.resets == {running.id: 8}


@pytest.mark.parametrize(
    ("reset", "code", "ran"),
    [
        (0x0, Code.INTERNAL, True),
        (0x2, Code.INTERNAL, True),
        (0x7, Code.UNAVAILABLE, False),
        (0x8, Code.CANCELLED, True),
        (0xB, Code.RESOURCE_EXHAUSTED, True),
        (0xC, Code.PERMISSION_DENIED, True),
        (0xABC, Code.INTERNAL, True),
    ],
)
def test_a_reset_has_the_code_that_grpc_gives_it_and_keeps_what_came(reset, code, ran):
    pair = Pair()
    stream = pair.client.begin(request())
    pair.up()
    pair.answer(stream, b"came", end=False)
    pair.server.reset_stream(stream.id, reset)
    pair.down()
    assert pair.client.take(stream) == b"came"
    with pytest.raises(RpcError) as caught:
        pair.client.take(stream)
    assert caught.value.code is code
    assert faults.did_not_run(caught.value) is not ran


def test_a_server_may_answer_in_full_and_refuse_the_rest_of_the_request():
    pair = Pair()
    stream = pair.client.begin(HttpRequest("POST", "/a.B/C", [], None))
    pair.client.queue(stream, b"some", is_last=False)
    pair.up()
    pair.answer(stream, b"enough")
    pair.server.reset_stream(stream.id, 0)
    pair.down()
    assert body_of(pair.client, stream) == (b"enough", END)
    pair.client.queue(stream, b"more", is_last=True)
    assert pair.client.fill(1000) == set()
    pair.client.leave(stream)


def test_no_more_streams_begin_than_the_server_allows():
    pair = Pair()
    pair.server.update_settings({3: 2})  # MAX_CONCURRENT_STREAMS
    assert pair.client.is_free
    first = pair.client.begin(request())
    pair.settle()
    assert pair.client.is_free
    pair.client.begin(request())
    assert not pair.client.is_free
    pair.client.leave(first)
    assert pair.client.is_free


def test_a_server_that_takes_no_streams_at_all_says_so():
    pair = Pair()
    pair.server.update_settings({3: 0})
    pair.settle()
    assert pair.client.is_free
    with pytest.raises(Unavailable, match="refused") as caught:
        pair.client.begin(request())
    assert faults.did_not_run(caught.value)


def test_a_goaway_refuses_what_is_above_and_lets_the_rest_end():
    pair = Pair()
    kept, refused = pair.client.begin(request()), pair.client.begin(request())
    pair.settle()
    assert pair.client.feed(GoAwayFrame(0, last_stream_id=kept.id).serialize()) == {refused}
    assert not pair.client.is_free
    with pytest.raises(Unavailable, match="going away") as caught:
        pair.client.take(refused)
    assert faults.did_not_run(caught.value)
    assert pair.client.take(kept) is None
    pair.answer(kept, b"to the end")
    pair.down()
    assert body_of(pair.client, kept) == (b"to the end", END)


def test_pings_are_answered_and_asked():
    pair = Pair()
    pair.settle()
    pair.client.feed(PingFrame(0, b"12345678").serialize())
    answers = pair.server.receive_data(pair.client.data_to_send())
    assert [event.ping_data for event in answers] == [b"12345678"]
    pair.client.ping()
    assert pair.client.has_pinged
    pair.settle()
    assert not pair.client.has_pinged


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.booleans())
def test_nonsense_is_an_internal_error_or_harmless(data, after_settings):
    client = Http2(ADDRESS)
    stream = client.begin(request())
    with contextlib.suppress(RpcError):
        client.feed((SETTINGS if after_settings else b"") + data)
        client.take(stream)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        PingFrame(0, b"12345678").serialize(),
        SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1",
        SETTINGS + b"\0\0\4\7\0\0\0\0\0" + bytes(4),
        SETTINGS + b"\x01\0\0\7\0\0\0\0\0",
        SETTINGS + DataFrame(3, b"x").serialize(),
    ],
)
def test_a_peer_that_speaks_something_else_is_refused_at_once(data):
    with pytest.raises(Internal, match=r"example\.test:81 did not answer with valid HTTP"):
        Http2(ADDRESS).feed(data)


def test_a_head_that_is_too_large_is_refused():
    pair = Pair()
    stream = pair.client.begin(request())
    pair.up()
    pair.server.remote_settings.max_header_list_size = 10**9
    pair.server.send_headers(stream.id, [(":status", "200"), *(("x-a", "a" * 8000) for _ in range(20))])
    with pytest.raises(Internal, match="valid HTTP"):
        pair.down()


FRAMES = st.one_of(
    st.builds(lambda n: DataFrame(1, bytes(n)), st.integers(0, 300)),
    st.builds(lambda n: GoAwayFrame(0, last_stream_id=n, error_code=n % 14), st.integers(0, 2**31 - 1)),
    st.just(PingFrame(0, b"12345678")),
)


@given(st.lists(FRAMES, max_size=12), st.lists(st.integers(0, 10_000), max_size=40))
def test_the_sieve_keeps_goaways_and_nothing_else_wherever_it_is_cut(frames, cuts):
    sieve, passed, kept = FrameSieve(1000), b"", []
    for piece in pieces(SETTINGS + b"".join(map(Frame.serialize, frames)), cuts):
        data, goaways = sieve.feed(piece)
        passed += data
        kept += goaways
    others = [frame for frame in frames if not isinstance(frame, GoAwayFrame)]
    assert passed == SETTINGS + b"".join(map(Frame.serialize, others))
    assert kept == [GoAway(f.last_stream_id, f.error_code) for f in frames if isinstance(f, GoAwayFrame)]


def test_a_frame_that_is_too_long_is_refused_before_it_came():
    sieve = FrameSieve(1000)
    sieve.feed(SETTINGS + DataFrame(1, bytes(1000)).serialize())
    with pytest.raises(BrokenFrames):
        sieve.feed(b"\0\x03\xe9\0\0\0\0\0\1")
