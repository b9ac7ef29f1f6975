"""Calls by shared memory and by sockets: references that lie, lanes that end, memory that is kept, and other ways."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quill import AsyncQuillClient, ClientTls, QuillClient
from quill.client.address import Address
from quill.client.tensors.lanes import ClientLanes
from quill.errors import Code, InvalidArgument, InvalidUsage, ResourceExhausted, Unavailable
from quill.lanes.dialing import dial
from quill.lanes.lane import SHARED_BYTES
from quill.lanes.shm import Region, neighbourhood
from quill.limits import Limits
from quill.proto import (
    InferRequest,
    InferResponse,
    LaneKind,
    LaneRef,
    NegotiateLaneRequest,
    NegotiateLaneResponse,
    Tensor,
    TensorMeta,
)
from quill.server.tls import Tls, TlsFiles
from quill.tensors import TensorServicer, add_to_server
from support.authority import Authority
from tensors.scene import TensorHost

SERVICE = "inference.v1.TensorService"
MIB = 2**20
LARGE = np.arange(9 * MIB, dtype=np.uint8)
"""What ``auto`` takes another lane for."""
NEGOTIATED = ["shm", "socket"]
LIMIT_S = 20


@pytest.fixture
def caller(tensor_host):
    with QuillClient(tensor_host.url("grpc")) as caller:
        yield caller


@pytest.fixture
def foreign(caller):
    """A client in another language: it has messages, a file in /dev/shm and a TCP connection."""
    return Foreign(caller)


class Foreign:
    def __init__(self, caller):
        self._caller = caller

    def negotiate(self, kind, size_bytes=4 * MIB):
        request = NegotiateLaneRequest(kinds=[kind], size_bytes=size_bytes, neighbourhood=neighbourhood())
        reply = self._caller.call(SERVICE, "NegotiateLane", request)
        assert isinstance(reply, NegotiateLaneResponse)
        return reply

    def region(self):
        reply = self.negotiate(LaneKind.LANE_KIND_SHARED_MEMORY)
        return reply.handle, Region.attach(reply.shared_memory.name, reply.shared_memory.size_bytes)

    def connection(self):
        reply = self.negotiate(LaneKind.LANE_KIND_SOCKET)
        return reply.handle, dial("127.0.0.1", reply.socket.port, reply.socket.token, None, LIMIT_S)

    def infer(self, *tensors, model="identity"):
        return self._caller.call(SERVICE, "Infer", InferRequest(model=model, inputs=tensors), timeout_ms=5000)


def ref(handle, offset, size, name="x", **more):
    meta = TensorMeta(shape=[size], dtype=8, name=name)
    return Tensor(meta=meta, lane=LaneRef(handle=handle, offset=offset), **more)


def test_a_foreign_client_calls_by_shared_memory(foreign):
    handle, region = foreign.region()
    region.view(100, 3)[:] = b"abc"
    (output,) = foreign.infer(ref(handle, 100, 3)).outputs
    assert (output.lane.handle, output.data) == (handle, b"")
    assert region.view(output.lane.offset, 3) == b"abc"
    region.close()


def test_a_foreign_client_calls_by_a_socket(foreign):
    handle, connection = foreign.connection()
    deadline_s = time.monotonic() + LIMIT_S
    for data in (b"abc", b"xyz"):
        got = bytearray(3)

        def carry(data=data, got=got):
            connection.send(b"", [memoryview(data)], deadline_s)
            frame = connection.receive_frame(1000, deadline_s)
            connection.receive_data([memoryview(got)], deadline_s)
            return frame

        with ThreadPoolExecutor(1) as threads:
            carried = threads.submit(carry)
            reply = foreign.infer(ref(handle, 0, 2, "x"), ref(handle, 2, 1, "y"))
            frame = carried.result(LIMIT_S)
        assert got == data
        assert InferResponse.FromString(frame.head) == reply
        assert [output.lane.offset for output in reply.outputs] == [0, 2]
    connection.close()


def lies(handle, other):
    past = 4 * MIB
    return [
        ([ref(handle, past, 1)], f"tensor 0: 1 bytes at {past} end at {past + 1}, the region has {past}"),
        ([ref(handle, 2**64 - 1, 3)], f"end at {2**64 + 2}, the region has {past}"),
        ([ref(handle, 0, 50 * MIB)], f"end at {50 * MIB}, the region has {past}"),
        ([ref(handle, 0, 1, data=b"ab")], "has 2 bytes in the message"),
        ([ref(handle, 0, 1), ref(other, 0, 1, "y")], "lie in 2 lanes; all must lie in one"),
        ([ref("zebra", 0, 1)], "there is no lane 'zebra'"),
        ([ref("", 0, 1)], "lies in a lane, and this call has none"),
        ([Tensor(meta=TensorMeta(shape=[-1], dtype=8, name="x"), lane=LaneRef(handle=handle))], "at least 0, got -1"),
        ([Tensor(meta=TensorMeta(shape=[1], dtype=99, name="x"), lane=LaneRef(handle=handle))], "99"),
        ([Tensor(meta=TensorMeta(shape=[1], dtype=8), lane=LaneRef(handle=handle))], "has no name"),
    ]


def test_references_that_lie_are_refused_and_the_next_call_is_served(foreign):
    for number in range(len(lies("", ""))):
        (handle, region), (other, second) = foreign.region(), foreign.region()
        tensors, said = lies(handle, other)[number]
        with pytest.raises(InvalidArgument) as caught:
            foreign.infer(*tensors)
        assert said in str(caught.value)
        second.view(0, 1)[:] = b"a"
        assert foreign.infer(ref(other, 0, 1)).outputs[0].meta.shape == [1]
        region.close()
        second.close()
    handle, region = foreign.region()
    with pytest.raises(ResourceExhausted, match="max_tensor_bytes"):
        foreign.infer(ref(handle, 0, 2**40))
    region.close()


@pytest.mark.parametrize(
    ("sent", "tensors", "said"),
    [
        (b"abc", [(0, 4)], "the lane brings 3 bytes, and the tensors that lie in it have 4"),
        (b"abc", [(1, 2)], "tensor 0 lies at byte 1 of the lane, the one before ends at 0"),
        (b"abc", [(0, 2), (1, 1)], "tensor 1 lies at byte 1 of the lane, the one before ends at 2"),
        (b"", [(0, 50 * MIB)], "the lane brings 0 bytes"),
    ],
)
def test_a_socket_that_brings_something_else_is_refused_and_closed(foreign, sent, tensors, said):
    handle, connection = foreign.connection()
    connection.send(b"", [memoryview(sent)], time.monotonic() + LIMIT_S)
    with pytest.raises(InvalidArgument) as caught:
        foreign.infer(*(ref(handle, *where, f"x{index}") for index, where in enumerate(tensors)))
    assert said in str(caught.value)
    with pytest.raises(Unavailable):
        connection.receive_frame(100, time.monotonic() + LIMIT_S)
    connection.close()
    assert foreign.infer(Tensor(meta=TensorMeta(shape=[1], dtype=8, name="x"), data=b"a")).outputs[0].data == b"a"


def test_a_token_that_was_used_opens_nothing_and_its_lane_goes_on(foreign):
    reply = foreign.negotiate(LaneKind.LANE_KIND_SOCKET)
    connection = dial("127.0.0.1", reply.socket.port, reply.socket.token, None, LIMIT_S)
    foreign.negotiate(LaneKind.LANE_KIND_SOCKET)
    for token in (reply.socket.token, bytes(32)):
        with pytest.raises(Unavailable, match="it was closed"):
            dial("127.0.0.1", reply.socket.port, token, None, LIMIT_S)
    connection.send(b"", [memoryview(b"a")], time.monotonic() + LIMIT_S)
    assert foreign.infer(ref(reply.handle, 0, 1)).outputs[0].meta.shape == [1]
    connection.close()


def test_a_caller_that_sends_nothing_is_waited_for_no_longer_than_its_call(foreign):
    handle, connection = foreign.connection()
    with pytest.raises(Exception, match=r"DEADLINE_EXCEEDED|did not bring") as caught:
        foreign._caller.call(
            SERVICE, "Infer", InferRequest(model="identity", inputs=[ref(handle, 0, 1)]), timeout_ms=300
        )
    assert caught.value.code in (Code.DEADLINE_EXCEEDED, Code.INVALID_ARGUMENT)
    connection.close()


def drop_lanes(host):
    """What a server does with lanes that nobody has used for long."""
    lanes = host.servicer._lanes._granted
    for grant in list(lanes._grants.values()):
        lanes.drop(grant)


@pytest.mark.parametrize("lane", NEGOTIATED)
def test_a_lane_that_the_server_has_ended_is_negotiated_anew(tensor_host, client, lane):
    for _ in range(2):
        assert client.tensors("infer", "checksum", {"x": LARGE}, lane=lane).lane == lane
        drop_lanes(tensor_host)


def test_a_lane_that_is_lost_during_a_call_is_replaced_by_chunks(tensor_host, client, monkeypatch):
    first = client.tensors("infer", "checksum", {"x": LARGE})
    assert first.lane == "shm"
    monkeypatch.setattr("quill.lanes.shared.SharedGuest.is_usable", True)  # so that the client does not see it
    drop_lanes(tensor_host)
    again = client.tensors("infer", "checksum", {"x": LARGE})
    assert again.lane == "chunks"
    assert again["x"].tobytes() == first["x"].tobytes()
    drop_lanes(tensor_host)


def test_a_lane_that_was_asked_for_and_is_lost_says_so(tensor_host, client, monkeypatch):
    assert client.tensors("infer", "checksum", {"x": LARGE}, lane="shm").lane == "shm"
    monkeypatch.setattr("quill.lanes.shared.SharedGuest.is_usable", True)
    drop_lanes(tensor_host)
    with pytest.raises(InvalidArgument, match="there is no lane"):
        client.tensors("infer", "checksum", {"x": LARGE}, lane="shm")


def test_a_connection_that_breaks_while_inputs_are_sent_is_replaced_by_chunks(caller, monkeypatch):
    def breaks(self, *_):
        self._connection.close()
        raise Unavailable("broken")

    monkeypatch.setattr("quill.client.tensors.lanes.NEGOTIATED", ("socket",))
    monkeypatch.setattr("quill.lanes.direct.DirectGuest.carry", breaks)
    assert caller.tensors.infer("checksum", {"x": LARGE}).lane == "chunks"


@pytest.mark.parametrize("lane", NEGOTIATED)
def test_an_error_of_a_model_leaves_the_client_whole(client, lane):
    for _ in range(2):
        with pytest.raises(Exception, match="no input 'z'") as caught:
            client.tensors("infer", "scale", {"z": LARGE}, lane=lane)
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert client.tensors("infer", "checksum", {"x": LARGE}, lane=lane).lane == lane


@pytest.mark.parametrize("lane", NEGOTIATED)
def test_outputs_larger_than_the_inputs_come_by_the_same_lane(client, lane):
    for count in (10 * MIB, 1, 11 * MIB):
        result = client.tensors("infer", "large", {}, parameters={"bytes": str(count)}, lane=lane)
        assert (result.lane, result["y"].nbytes) == (lane, count)
        assert np.array_equal(result["y"], np.arange(count, dtype=np.int64).astype(np.uint8))


def test_a_result_that_is_kept_is_not_overwritten_by_later_calls(caller):
    kept = [caller.tensors.infer("identity", {"x": np.full(9 * MIB, value, np.uint8)})["x"] for value in range(3)]
    assert [np.unique(one).tolist() for one in kept] == [[0], [1], [2]]


def test_a_region_is_used_again_when_its_result_is_gone(caller):
    def at_hand():
        return [(guest.handle, guest._region.name) for _, guest in caller._lanes._here.idle]

    small = caller.tensors.infer("checksum", {"x": LARGE}, lane="shm")
    before = at_hand()
    assert len(before) == 1
    for _ in range(3):
        again = caller.tensors.infer("checksum", {"x": LARGE}, lane="shm")
        assert again["x"].tobytes() == small["x"].tobytes()
    assert at_hand() == before


def test_inputs_that_a_model_keeps_stay_as_they_were():
    held = []
    host = TensorHost()

    @host.models.model("keeps")
    def keeps(x):
        held.append(x)
        return {"count": np.array([len(held)])}

    with host, QuillClient(host.url("grpc")) as client:
        for value in range(4):
            result = client.tensors.infer("keeps", {"x": np.full(9 * MIB, value, np.uint8)}, lane="shm")
            assert result.lane == "shm"
        assert [np.unique(one).tolist() for one in held] == [[0], [1], [2], [3]]
        # Who leaves the choice pays for it once.
        lanes = [client.tensors.infer("keeps", {"x": LARGE}).lane for _ in range(3)]
        lanes += [client.tensors.infer("keeps", {"x": LARGE[:SHARED_BYTES]}).lane for _ in range(3)]
        assert lanes == ["shm", "socket", "socket", "inline", "inline", "inline"]
        held.clear()
        gc.collect()


def test_without_room_for_regions_a_socket_is_taken_and_without_that_chunks():
    limits = Limits(max_lane_bytes=MIB)
    with TensorHost(limits=limits) as host, QuillClient(host.url("grpc")) as client:
        assert client.tensors.infer("checksum", {"x": LARGE}).lane == "socket"
        with pytest.raises(ResourceExhausted, match="and max_lane_bytes"):
            client.tensors.infer("checksum", {"x": LARGE}, lane="shm")
    with TensorHost(limits=Limits(max_lanes=1)) as host, QuillClient(host.url("grpc")) as client:
        kept = client.tensors.infer("identity", {"x": LARGE})
        assert [kept.lane, client.tensors.infer("checksum", {"x": LARGE}).lane] == ["shm", "chunks"]


def test_a_region_that_cannot_be_opened_is_followed_by_chunks_and_then_by_a_socket(client, monkeypatch):
    monkeypatch.setattr("quill.lanes.shm._enter", lambda fd, name: _raise(InvalidUsage("foreign")))
    lanes = [client.tensors("infer", "checksum", {"x": LARGE}).lane for _ in range(3)]
    assert lanes == ["chunks", "socket", "socket"]


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("url", "kinds"),
    [
        ("grpc://127.0.0.1:1", ("shm", "socket")),
        ("http://example.org", ("shm", "socket")),
        ("unix:///run/quill.sock", ("shm",)),
        ("http+unix:///run/quill.sock", ("shm",)),
        ("grpc+dns://example.org:1", ()),
    ],
)
def test_what_is_asked_for_follows_the_address(url, kinds):
    assert ClientLanes(Address.parse(url), None).kinds("auto", LARGE.nbytes) == kinds


def test_calls_that_are_not_large_share_memory_from_the_second_on(tensor_host, client):
    granted = tensor_host.servicer._lanes._granted._grants
    before = set(granted)
    sent = np.arange(SHARED_BYTES, dtype=np.uint8)
    results = [client.tensors("infer", "identity", {"x": sent}) for _ in range(4)]
    assert [result.lane for result in results] == ["inline", "shm", "shm", "shm"]
    assert all(np.array_equal(result["x"], sent) for result in results)
    assert len(set(granted) - before) == 1  # though all results are held
    assert client.tensors("infer", "identity", {"x": sent[1:]}).lane == "inline"


def test_a_call_that_is_not_large_goes_inline_where_no_memory_can_be_shared(client, monkeypatch):
    monkeypatch.setattr("quill.client.tensors.lanes.neighbourhood", lambda: "elsewhere")
    sent = np.arange(SHARED_BYTES, dtype=np.uint8)
    assert [client.tensors("infer", "identity", {"x": sent}).lane for _ in range(3)] == ["inline"] * 3


def test_many_calls_at_once_have_a_lane_each(caller):
    def call(number):
        sent = np.full(9 * MIB, number, np.uint8)
        result = caller.tensors.infer("identity", {"x": sent}, lane=NEGOTIATED[number % 2])
        return result.lane, np.array_equal(result["x"], sent)

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(call, range(12))) == [(NEGOTIATED[number % 2], True) for number in range(12)]


async def test_a_call_that_is_cancelled_leaves_the_client_whole(tensor_host):
    import asyncio

    async with AsyncQuillClient(tensor_host.url("grpc")) as client, asyncio.timeout(LIMIT_S):
        for lane in NEGOTIATED:
            for delay_s in (0, 0.001, 0.01, 0.05):
                task = asyncio.create_task(client.tensors.infer("identity", {"x": LARGE}, lane=lane))
                await asyncio.sleep(delay_s)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            result = await client.tensors.infer("identity", {"x": LARGE}, lane=lane)
            assert np.array_equal(result["x"], LARGE)


def test_a_socket_is_encrypted_where_the_call_is(tmp_path):
    authority = Authority()
    cert, key = authority.issue().write(tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    tls = Tls(cert=cert, key=key)

    class Host(TensorHost):
        async def _start(self):
            self._make_server()
            self.servicer = TensorServicer(self.models, socket_host="127.0.0.1", socket_tls=TlsFiles(tls).context)
            add_to_server(self.servicer, self.server)
            await self.server.start()

    with Host(tls=tls) as host:
        for url in (host.server.http_url, f"grpcs://{host.server.grpc_address}"):
            with QuillClient(url, tls=ClientTls(ca=tmp_path / "ca.pem")) as client:
                for _ in range(2):
                    result = client.tensors.infer("identity", {"x": LARGE}, lane="socket")
                    assert np.array_equal(result["x"], LARGE)
                (_, guest), *_ = client._lanes._here.idle
                assert guest._connection._sock.version() == "TLSv1.3"


def test_a_server_behind_several_addresses_has_no_lane_but_chunks(tensor_host):
    address = tensor_host.server.grpc_address
    with QuillClient(f"grpc+ipv4://{address},{address}") as client:
        assert client.tensors.infer("checksum", {"x": LARGE}).lane == "chunks"
        with pytest.raises(InvalidUsage, match="lane='shm' needs one server"):
            client.tensors.infer("checksum", {"x": LARGE}, lane="shm")


def test_closing_a_client_gives_its_lanes_back():
    deadline_s = time.monotonic() + LIMIT_S
    with TensorHost() as host:
        lanes = host.servicer._lanes._granted
        with QuillClient(host.url("grpc")) as client:
            for lane in NEGOTIATED:
                client.tensors.infer("checksum", {"x": LARGE}, lane=lane)
            assert len(lanes) == len(client._lanes._here.idle) == 2
        # The servicer itself looks for those whose client is gone.
        while len(lanes) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert len(lanes) == 0
