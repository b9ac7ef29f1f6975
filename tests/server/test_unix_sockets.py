"""Both ports on Unix sockets: served, guarded against takers, and gone with the server."""

import asyncio
import os
import socket
import subprocess

import httpcore
import pytest

from quill.errors import InvalidUsage
from quill.server.server import Server
from support.probe import UNARY, Answer, Ask, Stub, register


async def unary(request, context):
    return Answer(text=f"{request.text} {context.peer()}")


def server_on(grpc, http, **options):
    server = Server(grpc, http, **options)
    register(server, unary=unary)
    return server


def call_by_http(path):
    with httpcore.ConnectionPool(uds=str(path)) as pool:
        headers = {"content-type": "application/json"}
        return pool.request("POST", "http://localhost" + UNARY, headers=headers, content=b'{"text":"hi"}').content


@pytest.mark.parametrize("http2", [False, True])
async def test_both_ports_serve_on_sockets(tmp_path, http2):
    grpc, http = tmp_path / "grpc.sock", tmp_path / "http.sock"
    server = server_on(f"unix:{grpc}", f"unix:{http}", http2=http2)
    async with server:
        assert server.grpc_address == f"unix:{grpc}"
        assert server.http_url == f"http+unix://{http}"
        async with Stub(server.grpc_address) as stub:
            assert (await stub.unary(Ask(text="hi"))).text.startswith("hi unix:")
        assert await asyncio.to_thread(call_by_http, http) == b'{"text":"hi unix:"}'
    assert list(tmp_path.iterdir()) == []


async def test_curl_calls_over_a_socket(tmp_path):
    path = tmp_path / "http.sock"
    async with server_on(None, f"unix://{path}"):
        process = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "-m", "20", "--unix-socket", str(path), "http://localhost/healthz"), stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert out == b'{"status": "SERVING"}'


async def test_a_relative_path_is_reported_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with server_on(None, "unix:http.sock") as server:
        assert server.http_url == f"http+unix://{tmp_path}/http.sock"


@pytest.mark.parametrize("port", ["grpc", "http"])
async def test_the_file_of_a_killed_server_is_replaced(tmp_path, port):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    address = f"unix:{path}"
    server = server_on(address, None) if port == "grpc" else server_on(None, address)
    async with server:
        assert path.is_socket()
        if port == "http":
            assert await asyncio.to_thread(call_by_http, path) == b'{"text":"hi unix:"}'
    assert not path.exists()


@pytest.mark.parametrize("port", ["grpc", "http"])
async def test_a_socket_in_use_is_not_taken(tmp_path, port):
    path = tmp_path / "socket"
    address = f"unix:{path}"
    ports = (address, None) if port == "grpc" else (None, address)
    async with server_on(*ports):
        with pytest.raises(InvalidUsage, match="in use"):
            await server_on(*ports).start()
        assert path.is_socket()
        if port == "http":
            assert await asyncio.to_thread(call_by_http, path) == b'{"text":"hi unix:"}'
        else:
            async with Stub(address) as stub:
                assert (await stub.unary(Ask(text="still"))).text.startswith("still")


@pytest.mark.parametrize("port", ["grpc", "http"])
async def test_a_file_that_is_no_socket_is_left_alone(tmp_path, port):
    path = tmp_path / "precious"
    path.write_text("data")
    address = f"unix:{path}"
    with pytest.raises(InvalidUsage, match="no socket"):
        await server_on(*((address, None) if port == "grpc" else (None, address))).start()
    assert path.read_text() == "data"


@pytest.mark.parametrize("path", ["/no/such/folder/socket", "/" + "x" * 200])
@pytest.mark.parametrize("port", ["grpc", "http"])
async def test_a_path_that_cannot_be_listened_on_is_refused(port, path):
    address = f"unix:{path}"
    with pytest.raises(InvalidUsage, match="cannot listen on"):
        await server_on(*((address, None) if port == "grpc" else (None, address))).start()


async def test_the_file_of_a_successor_is_left_in_place(tmp_path):
    path = tmp_path / "socket"
    first = server_on(None, f"unix:{path}")
    await first.start()
    path.unlink()
    async with server_on(None, f"unix:{path}"):
        await first.stop(None)
        assert path.is_socket()
        assert await asyncio.to_thread(call_by_http, path) == b'{"text":"hi unix:"}'


async def test_a_start_that_fails_leaves_no_file(tmp_path):
    path = tmp_path / "socket"
    with pytest.raises(InvalidUsage):
        await server_on("nonsense:x:y", f"unix:{path}").start()
    assert os.listdir(tmp_path) == []
