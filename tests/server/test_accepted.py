"""Connections by their descriptors: those of an address and no others; those that have not begun are hung up on."""

import asyncio
import os
import socket

import pytest

from quill.limits import Limits
from quill.server.accepted import accepted_at, unbegun
from support.http1 import Connection
from support.probe import serving

LIMIT_S = 60


def pair(listener):
    peer = socket.create_connection(listener.getsockname())
    return peer, listener.accept()[0]


def test_the_connections_of_an_address_are_found_and_not_closed():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        peer, accepted = pair(listener)
        with peer, accepted, other:
            descriptors = set(os.listdir("/proc/self/fd"))
            found = [
                (each.getpeername(), each.fileno() != accepted.fileno()) for each in accepted_at(listener.getsockname())
            ]
            assert found == [(peer.getsockname(), True)]
            assert set(os.listdir("/proc/self/fd")) == descriptors
            assert list(accepted_at(other.getsockname())) == []
            peer.sendall(b"x")
            assert accepted.recv(1) == b"x"


@pytest.mark.parametrize(
    ("sent", "is_unbegun"), [(b"", True), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", True), (b"x" * 24, False)]
)
def test_a_connection_has_begun_with_as_many_bytes_as_a_preface(sent, is_unbegun):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer, accepted = pair(listener)
        with peer, accepted:
            peer.sendall(sent)
            if sent:
                accepted.recv(len(sent), socket.MSG_PEEK | socket.MSG_WAITALL)
            address = listener.getsockname()
            assert len([*unbegun(accepted_at(address), 0)]) == is_unbegun
            assert [*unbegun(accepted_at(address), LIMIT_S)] == []


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0\r\n"])
async def test_half_a_preface_is_hung_up_on_and_a_connection_that_has_called_is_not(sent):
    limits = Limits(header_timeout_s=0.2)
    async with (
        serving(options={"http2": True}, limits=limits) as server,
        await Connection.open(server.http_url) as half,
        await Connection.open(server.http_url) as whole,
    ):
        await whole.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        await half.send(sent)
        async with asyncio.timeout(LIMIT_S):
            assert await half.reader.read() == b""
        await whole.send(bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"12345678")
        async with asyncio.timeout(LIMIT_S):
            await whole.reader.readuntil(b"12345678")  # the answer to the ping
