"""Both clients over Unix sockets, against a server of our own."""

import asyncio
import contextlib
import socket
import urllib.parse

import grpc
import pytest

from client.tls_scene import loop_in_a_thread
from quill import QuillClient, Unavailable
from quill.server.server import Server

SERVICE = "unix.v1.Unix"


@pytest.fixture(scope="module")
def loop():
    with loop_in_a_thread() as loop:
        yield loop


@contextlib.contextmanager
def serving(loop, folder):
    """A server on two sockets in a folder, and the `x-key` of each call that it received."""
    keys = []

    async def say(request, context):
        metadata = dict(context.invocation_metadata())
        keys.append(metadata.get("x-key"))
        return b"said " + request

    async def count(request, context):
        for index in range(3):
            yield bytes([index])

    async def start():
        server = Server(f"unix:{folder}/grpc.sock", f"unix:{folder}/http.sock")
        handlers = {
            "Say": grpc.unary_unary_rpc_method_handler(say),
            "Count": grpc.unary_stream_rpc_method_handler(count),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        await server.start()
        return server

    server = loop.run(start())
    try:
        yield server, keys
    finally:
        loop.run(server.stop(0))


def spellings(server):
    """Every way to write where the server is, with the protocol that each means."""
    path = server.grpc_address.removeprefix("unix:")
    yield from ((url, None) for url in (server.grpc_address, f"unix://{path}", f"grpc+unix://{path}"))
    yield server.http_url.replace("http+unix", "grpc+unix").replace("http.sock", "grpc.sock"), "grpc"
    yield server.http_url, None
    yield server.http_url, "grpc-web"


def test_a_server_on_unix_sockets_is_called(loop, tmp_path, drive):
    with serving(loop, tmp_path) as (server, keys):
        for url, protocol in spellings(server):
            client = drive(url, protocol=protocol, headers={"x-key": "k"})
            client.client.set_api_key("secret")  # may go where no network is
            assert client.call(SERVICE, "Say", b"hi") == b"said hi"
            assert client.stream(SERVICE, "Count", b"") == [b"\0", b"\1", b"\2"]
            assert client.health_check() is True
        assert set(keys) == {"k"}


@pytest.mark.parametrize("name", ["a;b=é.sock", "100%.sock", "a%20b.sock"])
def test_the_path_of_a_socket_is_taken_as_it_stands(loop, tmp_path, drive, name):
    async def say(request, context):
        return b"said " + request

    async def start():
        server = grpc.aio.server()
        handlers = {"Say": grpc.unary_unary_rpc_method_handler(say)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_insecure_port(f"unix:{urllib.parse.quote(str(tmp_path / name))}")
        await server.start()
        return server

    server = loop.run(start())
    try:
        assert (tmp_path / name).is_socket()
        assert drive(f"unix:{tmp_path}/{name}").call(SERVICE, "Say", b"hi") == b"said hi"
    finally:
        loop.run(server.stop(None))


SCHEMES = ("http+unix://", "unix:", "grpc+unix://")


def test_a_socket_that_is_not_there_is_said_with_its_path(tmp_path, drive):
    path = tmp_path / "none.sock"
    clients = [drive(f"{scheme}{path}", max_attempts=1) for scheme in SCHEMES]
    for call in [call for client in clients for call in (client.call, client.stream)]:
        with pytest.raises(Unavailable) as caught:
            call(SERVICE, "Say", b"")
        assert caught.value.message == f"cannot reach unix:{path}: no such file or directory"


def test_a_socket_that_nobody_listens_on_is_refused(tmp_path, drive):
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    for scheme in SCHEMES:
        with pytest.raises(Unavailable) as caught:
            drive(f"{scheme}{path}", max_attempts=1).call(SERVICE, "Say", b"")
        assert caught.value.message == f"cannot reach unix:{path}: connection refused"


def test_the_host_header_is_localhost(loop, tmp_path):
    """As curl says it; the path of the socket stays on this machine."""
    heads = []

    async def answer(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async def start():
        return await asyncio.start_unix_server(answer, tmp_path / "q.sock")

    server = loop.run(start())
    with QuillClient(f"http+unix://{tmp_path}/q.sock") as client, pytest.raises(Exception, match="404"):
        client.call(SERVICE, "Say", b"")
    server.close()
    assert b"\r\nhost: localhost\r\n" in heads[0].lower()
