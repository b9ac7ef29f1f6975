"""Small messages are sent at once: Nagle's algorithm is off on every connection that a server accepts."""

import asyncio
import os
import socket
import stat

import pytest

from support.probe import Answer, serving


async def unary(request, context):
    return Answer()


def accepted_at(port):
    """Duplicates of this process's sockets that were accepted at a port."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptor = os.dup(int(name))
        except OSError:
            continue
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            continue
        duplicate = socket.socket(fileno=descriptor)
        try:
            is_accepted = duplicate.getsockname()[1:2] == (port,) and duplicate.getpeername() is not None
        except OSError:
            is_accepted = False
        if is_accepted:
            found.append(duplicate)
        else:
            duplicate.close()
    return found


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("port", ["grpc", "http"])
async def test_accepted_connections_have_no_delay(port, http2):
    async with serving(unary=unary, options={"http2": http2}) as server, asyncio.timeout(20):
        address = server.grpc_address if port == "grpc" else server.http_url.removeprefix("http://")
        host, _, number = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(number))
        while not (connections := accepted_at(int(number))):
            await asyncio.sleep(0.005)
        for connection in connections:
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        writer.close()
        await writer.wait_closed()
