"""Taking connections, also when the process has no file descriptors left."""

import asyncio
import logging
import os
import resource
import socket

import pytest

from quill.server.accepting import Acceptor
from quill.server.http_host import listen

FREE = 3


class Greeting(asyncio.Protocol):
    """Says hello and nothing else."""

    def __init__(self, taken):
        self._taken = taken

    def connection_made(self, transport):
        self._taken.append(transport)
        transport.write(b"hello")


@pytest.fixture
def few_descriptors():
    """Uses up this process's descriptors, all but a few, when called."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    filling = []

    def use_up():
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        while True:
            try:
                filling.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        for _ in range(FREE):
            os.close(filling.pop())

    def release():
        for descriptor in filling:
            os.close(descriptor)
        filling.clear()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    yield use_up, release
    release()


async def test_connections_wait_quietly_while_there_are_no_descriptors(few_descriptors, caplog):
    use_up, release = few_descriptors
    caplog.set_level(logging.WARNING)
    loop = asyncio.get_running_loop()
    taken = []
    listener = await listen("127.0.0.1:0")
    acceptor = Acceptor(listener, lambda: Greeting(taken), tls=None, handshake_timeout_s=5)
    clients = [socket.socket() for _ in range(10)]
    try:
        for client in clients:
            client.setblocking(False)
        acceptor.start()
        use_up()
        for client in clients:
            await loop.sock_connect(client, listener.getsockname())
        async with asyncio.timeout(20):
            while len(taken) < FREE or not caplog.records:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert len(taken) == FREE
        assert [record.getMessage() for record in caplog.records] == ["connections have to wait: Too many open files"]
        release()
        async with asyncio.timeout(20):
            for client in clients:
                assert await loop.sock_recv(client, 100) == b"hello"
        assert len(caplog.records) == 1
    finally:
        acceptor.close()
        for connection in (*taken, *clients):
            connection.close()
    assert listener.fileno() == -1


async def test_closing_while_connections_wait_is_the_end(few_descriptors, caplog):
    use_up, release = few_descriptors
    loop = asyncio.get_running_loop()
    taken = []
    listener = await listen("127.0.0.1:0")
    acceptor = Acceptor(listener, lambda: Greeting(taken), tls=None, handshake_timeout_s=5)
    with socket.socket() as client:
        client.setblocking(False)
        acceptor.start()
        use_up()
        waste = [os.open(os.devnull, os.O_RDONLY) for _ in range(FREE)]
        await loop.sock_connect(client, listener.getsockname())
        async with asyncio.timeout(20):
            while not caplog.records:
                await asyncio.sleep(0.01)
        acceptor.close()
        acceptor.close()
        for descriptor in waste:
            os.close(descriptor)
        release()
        with pytest.raises(ConnectionError):
            await loop.sock_recv(client, 100)
    assert taken == []
