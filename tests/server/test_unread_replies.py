"""Clients that call and do not read: their replies are counted, on both ports that speak HTTP/2, and bounded."""

import asyncio
import socket
import time

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from quill.limits import Limits
from support.probe import UNARY, Answer, serving

SIZE = 1_000_000
LIMIT_S = 60
WINDOW = 2**31 - 1


async def large(request, context):
    return Answer(blob=bytes(SIZE))


class Shut:
    """A connection whose streams have no window, so that no byte of a reply may be sent, until `open`."""

    def __init__(self, server, port):
        self.is_grpc = port == "grpc"
        address = server.grpc_address if self.is_grpc else server.http_url.removeprefix("http://")
        self.peer = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), LIMIT_S)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        code = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values={code: 0})
        self.h2.initiate_connection()
        self.sizes, self.refused, self.ended = {}, [], 0

    def call(self):
        kind = "application/grpc" if self.is_grpc else "application/proto"
        pseudo = [(":method", "POST"), (":scheme", "http"), (":path", UNARY), (":authority", "test")]
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [*pseudo, ("content-type", kind), ("te", "trailers")])
        self.h2.send_data(stream, bytes(5) if self.is_grpc else b"", end_stream=True)
        self.peer.sendall(self.h2.data_to_send())

    def open(self):
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW})
        self.h2.increment_flow_control_window(WINDOW - 65535)

    def read_until(self, is_enough):
        """Read until enough has come: of which streams are refused, how large the others' replies are."""
        while not is_enough(self):
            self.peer.sendall(self.h2.data_to_send())
            for event in self.h2.receive_data(self.peer.recv(1 << 16)):
                match event:
                    case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                        if {(":status", "429"), ("grpc-status", "8")} & {tuple(pair) for pair in event.headers}:
                            self.refused.append(event.stream_id)
                    case h2.events.DataReceived():
                        self.sizes[event.stream_id] = self.sizes.get(event.stream_id, 0) + len(event.data)
                    case h2.events.StreamEnded():
                        self.ended += 1


@pytest.mark.parametrize("port", ["grpc", "h2c"])
@pytest.mark.parametrize("limits", [Limits(max_unread_bytes=7 * SIZE // 2), Limits(max_concurrent_calls=3)])
async def test_replies_that_are_not_read_are_bounded_and_come_when_they_are_read(port, limits):
    async with serving(options={"http2": True}, limits=limits, unary=large) as server:
        shut = Shut(server, port)

        def call_without_reading():
            for count in range(3):
                shut.call()
                while len(server._calls._unread) == count:
                    time.sleep(0.001)
            for _ in range(2):
                shut.call()
            shut.read_until(lambda shut: len(shut.refused) == 2)

        def read():
            shut.open()
            shut.read_until(lambda shut: shut.ended == 5)
            shut.call()
            shut.read_until(lambda shut: shut.ended == 6)

        with shut.peer:
            await asyncio.to_thread(call_without_reading)
            assert sum(server._calls._unread.values()) == server._calls._unread_bytes > 3 * SIZE
            await asyncio.to_thread(read)
        whole = [size for stream, size in shut.sizes.items() if stream not in shut.refused]
        assert len(whole) == 4
        assert min(whole) > SIZE
        async with asyncio.timeout(LIMIT_S):
            while server._calls._unread:
                await asyncio.sleep(0.01)
        assert server._calls._unread_bytes == 0


@pytest.mark.parametrize("port", ["grpc", "h2c"])
async def test_a_reply_that_nobody_reads_is_let_go_with_its_connection(port):
    async with serving(options={"http2": True}, unary=large) as server:
        shut = Shut(server, port)
        with shut.peer:
            await asyncio.to_thread(shut.call)
            async with asyncio.timeout(LIMIT_S):
                while not server._calls._unread:
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(LIMIT_S):
            while server._calls._unread:
                await asyncio.sleep(0.01)
