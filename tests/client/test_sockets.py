"""Blocking sockets that several threads have to do with."""

import socket
import threading
import time

import pytest

from quill.client.address import Address
from quill.client.clock import CallClock
from quill.client.peer import Peer
from quill.client.sockets import Patience, PatientSocket
from quill.client.transport import Call
from quill.errors import Code, RpcError

LIMIT_S = 20


class Watched(socket.socket):
    """A socket that knows which threads have closed it."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.closed_by = []

    def close(self):
        self.closed_by.append(threading.get_ident())
        super().close()


@pytest.fixture
def pair():
    """A patient socket, the watched one inside, and its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watched = Watched(socket.AF_INET, socket.SOCK_STREAM)
        watched.connect(listener.getsockname())
        other, _ = listener.accept()
    host, port = other.getsockname()
    with other:
        yield PatientSocket(watched, Peer(Address("connect", host, port, tls=False))), watched, other
    watched.close()


def patience():
    return Patience(CallClock(Call(service="", method="", timeout_ms=LIMIT_S * 1000), time.monotonic))


def in_a_thread(action):
    """What the thread's action raised, once it has ended."""
    raised = []

    def run():
        try:
            action()
        except RpcError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_a_socket_that_is_waited_for_is_closed_by_who_waits(pair):
    """Its number may be another socket's at once, and a poll that wakes looks at the number again."""
    patient, watched, other = pair
    thread, raised = in_a_thread(lambda: patient.receive(patience()))
    while not patient._is_waited_for:
        time.sleep(0.001)
    patient.end()
    thread.join(LIMIT_S)
    assert watched.closed_by == [thread.ident]
    assert [error.code for error in raised] == [Code.UNAVAILABLE]
    other.settimeout(LIMIT_S)
    assert other.recv(1) == b""


def test_a_socket_that_nobody_waits_for_is_closed_at_once(pair):
    patient, watched, _ = pair
    patient.end()
    assert watched.closed_by == [threading.get_ident()]
    with pytest.raises(RpcError):
        patient.receive(patience())
