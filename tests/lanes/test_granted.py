"""What a server grants: bounded, to one caller, for one call at a time, and taken back."""

import contextlib
import os

import pytest

from quill.errors import InvalidArgument, ResourceExhausted, Unavailable, Unimplemented
from quill.lanes import granted as module
from quill.lanes.dialing import dial
from quill.lanes.granted import GrantedLanes
from quill.lanes.pool import ReceivePool
from quill.lanes.shm import Region, neighbourhood
from quill.limits import Limits
from quill.principal import Principal
from quill.proto import LaneKind, NegotiateLaneRequest

SHM, SOCKET = LaneKind.LANE_KIND_SHARED_MEMORY, LaneKind.LANE_KIND_SOCKET
MIB = 2**20
ANN, BOB = Principal("ann"), Principal("bob")
LIMITS = Limits(max_lanes=4, max_lanes_per_principal=3, max_lane_bytes=16 * MIB, max_lane_bytes_per_principal=10 * MIB)


def asking(*kinds, size_bytes=2 * MIB, near=None):
    return NegotiateLaneRequest(
        kinds=kinds, size_bytes=size_bytes, neighbourhood=neighbourhood() if near is None else near
    )


@contextlib.contextmanager
def granting(limits=LIMITS, socket_host="127.0.0.1"):
    lanes = GrantedLanes(limits, ReceivePool(max_bytes=MIB, kept_bytes=0), socket_host=socket_host, tls=None)
    try:
        yield lanes
    finally:
        lanes.close()


@pytest.fixture
def lanes():
    with granting() as lanes:
        yield lanes


def attached(reply):
    return contextlib.closing(Region.attach(reply.shared_memory.name, reply.shared_memory.size_bytes))


def usable(lanes, reply, principal=ANN):
    with lanes.taken(reply.handle, principal) as (_, host):
        return host.kind


def test_the_first_lane_that_can_be_had_is_granted(lanes):
    near = lanes.negotiate(asking(SHM, SOCKET), ANN)
    assert (near.WhichOneof("lane"), near.shared_memory.size_bytes) == ("shared_memory", 2 * MIB)
    far = lanes.negotiate(asking(SHM, SOCKET, near="elsewhere"), ANN)
    assert far.WhichOneof("lane") == "socket"
    assert len({near.handle, far.handle}) == 2
    for nothing in (asking(), asking(SHM, near=""), asking(99)):
        with pytest.raises(Unimplemented, match="none of the lanes asked for"):
            lanes.negotiate(nothing, ANN)


def test_a_server_without_an_address_has_no_socket():
    with granting(socket_host=None) as lanes, pytest.raises(Unimplemented):
        lanes.negotiate(asking(SOCKET), ANN)


def test_a_lane_is_its_callers_alone(lanes):
    reply = lanes.negotiate(asking(SHM), ANN)
    with attached(reply):
        assert usable(lanes, reply) == "shm"
        for handle, who, own in ((reply.handle, BOB, 0), ("0" * 32, ANN, 1), (reply.shared_memory.name, ANN, 1)):
            with (
                pytest.raises(
                    InvalidArgument, match=f"there is no lane '{handle}' for {who.name}, which has {own}"
                ) as caught,
                lanes.taken(handle, who),
            ):
                pass
            assert ("quill-lane", "lost") in caught.value.trailers


def test_a_lane_serves_one_call_at_a_time(lanes):
    reply = lanes.negotiate(asking(SHM), ANN)
    with attached(reply):
        with lanes.taken(reply.handle, ANN), pytest.raises(InvalidArgument, match="in use by another call"):
            usable(lanes, reply)
        assert usable(lanes, reply) == "shm"


def test_a_lane_to_which_nobody_has_come_is_of_no_use(lanes):
    for kind, said in ((SHM, "not usable"), (SOCKET, "nobody has connected")):
        reply = lanes.negotiate(asking(kind), ANN)
        with pytest.raises(InvalidArgument, match=said):
            usable(lanes, reply)


def test_a_socket_is_usable_as_soon_as_it_is_welcome(lanes):
    reply = lanes.negotiate(asking(SOCKET), ANN)
    with contextlib.closing(dial("127.0.0.1", reply.socket.port, reply.socket.token, None, 20)):
        assert usable(lanes, reply) == "socket"


def test_counts_and_sizes_are_bounded_with_both_numbers(lanes):
    lanes.negotiate(asking(SHM, size_bytes=9 * MIB), ANN)
    with pytest.raises(
        ResourceExhausted, match="ann would share 12582912 bytes and max_lane_bytes_per_principal is 10485760"
    ):
        lanes.negotiate(asking(SHM), ANN)
    with pytest.raises(
        ResourceExhausted, match="all callers together would share 18874368 bytes and max_lane_bytes is 16777216"
    ):
        lanes.negotiate(asking(SHM, size_bytes=8 * MIB), BOB)
    # What shares no memory goes on until there are too many.
    for _ in range(2):
        assert lanes.negotiate(asking(SHM, SOCKET), ANN).WhichOneof("lane") == "socket"
    with pytest.raises(ResourceExhausted, match="ann would have 4 lanes and max_lanes_per_principal is 3"):
        lanes.negotiate(asking(SOCKET), ANN)
    lanes.negotiate(asking(SOCKET), BOB)
    with pytest.raises(ResourceExhausted, match="all callers together would have 5 lanes and max_lanes is 4"):
        lanes.negotiate(asking(SOCKET), BOB)


def test_more_kinds_than_there_are_is_refused_at_once(lanes):
    with pytest.raises(InvalidArgument, match="17 kinds of lanes are asked for, at most 16 may be"):
        lanes.negotiate(asking(*17 * [SHM]), ANN)


def test_a_size_that_is_only_claimed_allocates_nothing(lanes):
    before = set(os.listdir("/dev/shm"))  # noqa: S108 - where regions are
    with pytest.raises(ResourceExhausted, match=r"would share 18446744073709551616 bytes"):
        lanes.negotiate(asking(SHM, size_bytes=2**64 - 1), ANN)
    assert set(os.listdir("/dev/shm")) == before  # noqa: S108
    assert len(lanes) == 0


def test_what_there_is_no_memory_for_is_not_counted():
    with granting(Limits(max_lane_bytes=2**60, max_lane_bytes_per_principal=2**60)) as lanes:
        with pytest.raises(ResourceExhausted, match="cannot be shared, /dev/shm has"):
            lanes.negotiate(asking(SHM, size_bytes=2**50), ANN)
        assert len(lanes) == 0


def test_a_lane_whose_caller_is_gone_is_swept(lanes):
    near, far = lanes.negotiate(asking(SHM), ANN), lanes.negotiate(asking(SOCKET), ANN)
    with attached(near), contextlib.closing(dial("127.0.0.1", far.socket.port, far.socket.token, None, 20)):
        assert {usable(lanes, near), usable(lanes, far)} == {"shm", "socket"}
        lanes.sweep()
        assert len(lanes) == 2
    lanes.sweep()
    assert len(lanes) == 0


def test_a_lane_that_is_taken_is_not_swept(lanes):
    reply = lanes.negotiate(asking(SHM), ANN)
    with contextlib.ExitStack() as stack:
        region = stack.enter_context(attached(reply))
        stack.enter_context(lanes.taken(reply.handle, ANN))
        region.close()
        lanes.sweep()
        assert len(lanes) == 1


def test_a_lane_for_which_nobody_comes_or_that_nobody_uses_is_swept_in_time(lanes, monkeypatch):
    for kind in (SHM, SOCKET):
        lanes.negotiate(asking(kind), ANN)
    lanes.sweep()
    assert len(lanes) == 2
    real = module.time.monotonic
    monkeypatch.setattr(module.time, "monotonic", lambda: real() + 6)
    lanes.sweep()
    assert len(lanes) == 0
    with attached(lanes.negotiate(asking(SHM), ANN)):
        lanes.sweep()
        assert len(lanes) == 1
        monkeypatch.setattr(module.time, "monotonic", lambda: real() + 400)
        lanes.sweep()
        assert len(lanes) == 0


def test_memory_that_somebody_keeps_is_not_given_to_the_next_call(lanes):
    reply = lanes.negotiate(asking(SHM), ANN)
    with attached(reply):
        with lanes.taken(reply.handle, ANN) as (_, host):
            kept = host._region.view(0, 1)
        with pytest.raises(InvalidArgument, match="a model keeps what it brought"):
            usable(lanes, reply)
        assert len(lanes) == 0
        kept[0] = 1


def test_closing_ends_all_lanes_and_grants_no_more(lanes):
    near, far = lanes.negotiate(asking(SHM), ANN), lanes.negotiate(asking(SOCKET), ANN)
    connection = dial("127.0.0.1", far.socket.port, far.socket.token, None, 20)
    with attached(near) as region, contextlib.closing(connection):
        assert region.has_other
        lanes.close()
        assert not region.has_other
        with pytest.raises(Unavailable, match="it ended"):
            connection.receive_frame(0, module.time.monotonic() + 20)
    for kind in (SHM, SOCKET):
        with pytest.raises(Unavailable, match="opens no lane"):
            lanes.negotiate(asking(kind), ANN)
