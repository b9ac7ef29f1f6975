"""The HTTP port's application in foreign ASGI hosts: uvicorn and granian as they come, and hosts played by hand."""

import asyncio
import contextlib
import sys

import grpc
import grpc.aio
import pytest

from quill.errors import InvalidUsage
from quill.server.server import Server
from support.http1 import ask, enveloped, post
from support.official import ending, official, several
from support.probe import STREAM, UNARY, Answer, Ask, Stub, outcome, register

MODULE = """
from quill.server.server import Server
from support.probe import Answer, register


async def unary(request, context):
    return Answer(text=request.text)


async def stream(request, context):
    for number in range(request.count):
        yield Answer(count=number)


async def collect(requests, context):
    return Answer(text=",".join([request.text async for request in requests]))


async def chat(requests, context):
    async for request in requests:
        yield Answer(text=request.text.upper())


server = Server(grpc={grpc!r}, http=None)
register(server, unary=unary, stream=stream, collect=collect, chat=chat)
app = server.asgi_app
"""
HOSTS = {
    "uvicorn": ["-m", "uvicorn", "hosted:app", "--log-level", "warning", "--port"],
    "uvicorn, h11": ["-m", "uvicorn", "hosted:app", "--http", "h11", "--log-level", "warning", "--port"],
    "granian": ["-m", "granian", "--interface", "asgi", "--no-ws", "hosted:app", "--port"],
}


@contextlib.asynccontextmanager
async def hosted(tmp_path, monkeypatch, arguments, port, grpc_address=None):
    """A host's process that serves the module."""
    (tmp_path / "hosted.py").write_text(MODULE.format(grpc=grpc_address))
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments, str(port)),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    if (await ask(url, "GET", "/readyz")).status == 200:
                        break
                assert process.returncode is None, (await process.stdout.read()).decode()
                await asyncio.sleep(0.05)
        yield url, process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(30):
            await process.communicate()


@pytest.mark.parametrize("name", HOSTS)
async def test_plain_hosts_serve_calls_of_all_kinds(name, tmp_path, monkeypatch, unused_tcp_port_factory):
    ports = unused_tcp_port_factory(), unused_tcp_port_factory()
    grpc_address = f"127.0.0.1:{ports[1]}"
    async with hosted(tmp_path, monkeypatch, HOSTS[name], ports[0], grpc_address) as (url, process):
        for protocol in ("connect", "grpc-web"):
            async with official(url, protocol) as client:
                assert (await client.unary(Ask(text="a"))).text == "a"
                assert [reply.count for reply in await ending(client.stream(Ask(count=2)))] == [0, 1]
                assert (await client.collect(several(Ask(text="a"), Ask(text="b")))).text == "a,b"
                assert [reply.text for reply in await ending(client.chat(several(Ask(text="a"))))] == ["A"]
        assert (await post(url, UNARY, "application/json", b'{"text":"x"}')).json() == {"text": "x"}
        assert (await post(url, UNARY, "application/grpc", enveloped(b""))).status == 415
        async with Stub(grpc_address) as stub:
            assert (await stub.unary(Ask(text="beside"))).text == "beside"
        process.terminate()
        async with asyncio.timeout(30):
            await process.wait()
    with pytest.raises(OSError, match=r"."):
        await ask(url, "GET", "/readyz")


async def test_a_host_with_http2_trailers_serves_grpc_to_grpcios_own_client(
    tmp_path, monkeypatch, unused_tcp_port_factory
):
    arguments = ["-m", "uvicorn", "hosted:app", "--http", "zttp", "--http2", "--log-level", "warning", "--port"]
    port = unused_tcp_port_factory()
    async with hosted(tmp_path, monkeypatch, arguments, port), Stub(f"127.0.0.1:{port}") as stub:
        assert (await stub.unary(Ask(text="a"))).text == "a"
        assert [reply.count async for reply in stub.stream(Ask(count=3))] == [0, 1, 2]
        assert (await stub.collect(iter([Ask(text="a"), Ask(text="b")]))).text == "a,b"
        call = stub.chat()
        for text in ("first", "second"):
            await call.write(Ask(text=text))
            assert (await call.read()).text == text.upper()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        error = await outcome(stub.channel.unary_unary("/no.such/Method")(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


class Host:
    """An ASGI host played by hand: its lifespan, and single requests."""

    def __init__(self, app):
        self.app = app
        self.to_app, self.from_app = asyncio.Queue(), asyncio.Queue()
        self.task = None

    async def startup(self):
        self.task = asyncio.create_task(self.app({"type": "lifespan"}, self.to_app.get, self.from_app.put))
        return await self.tell("lifespan.startup")

    async def tell(self, kind):
        await self.to_app.put({"type": kind})
        async with asyncio.timeout(20):
            return await self.from_app.get()

    async def request(self, path, body=b"", content_type="application/json", **scope):
        sent = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", content_type.encode())],
            **scope,
        }
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            return messages.pop(0) if messages else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        async with asyncio.timeout(20):
            await self.app(scope, receive, send)
        return sent


async def unary(request, context):
    return Answer(text=f"{request.text} {context.peer()}")


def server_without_ports(**behaviours):
    server = Server(None, None)
    register(server, **behaviours)
    return server


async def test_the_lifespan_starts_and_stops_the_server():
    server = server_without_ports(unary=unary)
    host = Host(server.asgi_app)
    sent = await host.request(UNARY, b"{}")
    assert sent[0]["status"] == 503
    assert b"was not started" in sent[1]["body"]
    assert (await host.startup())["type"] == "lifespan.startup.complete"
    sent = await host.request(UNARY, b'{"text":"a"}')
    assert (sent[0]["status"], sent[1]["body"]) == (200, b'{"text":"a unknown:"}')
    assert (await host.request("/readyz", method="GET"))[0]["status"] == 200
    assert (await host.tell("lifespan.shutdown"))["type"] == "lifespan.shutdown.complete"
    await host.task
    assert await server.wait_for_termination(1) is False
    assert (await host.request("/readyz", method="GET"))[0]["status"] == 503


async def test_a_server_that_runs_already_is_not_the_hosts_to_stop():
    server = server_without_ports(unary=unary)
    app = server.asgi_app
    async with server:
        host = Host(app)
        await host.startup()
        await host.tell("lifespan.shutdown")
        assert (await host.request("/readyz", method="GET"))[0]["status"] == 200


async def test_a_server_that_cannot_start_fails_the_host_with_its_reason():
    server = Server(None, "nonsense")
    told = await Host(server.asgi_app).startup()
    assert told["type"] == "lifespan.startup.failed"
    assert "nonsense" in told["message"]


async def test_without_ports_and_without_a_host_there_is_nothing_to_start():
    with pytest.raises(InvalidUsage, match="needs a port"):
        await server_without_ports(unary=unary).start()


async def test_an_application_that_is_mounted_knows_its_paths():
    server = server_without_ports(unary=unary)
    host = Host(server.asgi_app)
    async with server:
        sent = await host.request("/rpc" + UNARY, b"{}", root_path="/rpc")
        assert sent[0]["status"] == 200


async def test_web_sockets_are_closed():
    server = server_without_ports(unary=unary)
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    app = server.asgi_app
    async with server:
        await app({"type": "websocket", "path": "/"}, receive, send)
    assert sent == [{"type": "websocket.close"}]


async def test_a_host_that_sends_trailers_serves_grpc():
    async def stream(request, context):
        context.set_trailing_metadata((("x-last", "2"),))
        yield Answer(text="one")
        await context.abort(grpc.StatusCode.DATA_LOSS, "lost ü")

    server = server_without_ports(stream=stream, unary=unary)
    app = server.asgi_app
    async with server:
        extensions = {"http.response.trailers": {}}
        host = Host(app)
        sent = await host.request(STREAM, enveloped(b""), "application/grpc", extensions=extensions, http_version="2")
        start, message, end, trailers = sent
        assert (start["status"], start["trailers"]) == (200, True)
        assert dict(start["headers"])[b"content-type"] == b"application/grpc"
        assert message["body"] == enveloped(Answer(text="one").SerializeToString())
        assert (end["body"], end["more_body"]) == (b"", False)
        assert trailers["type"] == "http.response.trailers"
        assert dict(trailers["headers"]) == {
            b"grpc-status": b"15",
            b"grpc-message": b"lost%20%C3%BC",
            b"x-last": b"2",
        }
        sent = await host.request("/no.such/Method", enveloped(b""), "application/grpc+proto", extensions=extensions)
        assert dict(sent[-1]["headers"])[b"grpc-status"] == b"12"
        assert b"content-length" not in dict(sent[0]["headers"])


async def test_a_client_that_a_host_reports_by_an_error_of_send_ends_its_stream():
    ended = asyncio.Event()

    async def flood(request, context):
        try:
            while True:
                yield Answer(text="x")
        finally:
            ended.set()

    server = server_without_ports(stream=flood)
    app = server.asgi_app

    async def receive():
        if not asked:
            asked.append(1)
            return {"type": "http.request", "body": enveloped(b""), "more_body": False}
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)
        if len(sent) > 3:
            raise OSError("gone")

    asked, sent = [], []
    headers = [(b"content-type", b"application/connect+proto")]
    scope = {"type": "http", "method": "POST", "path": STREAM, "query_string": b"", "headers": headers}
    async with server, asyncio.timeout(20):
        task = asyncio.create_task(app(scope, receive, send))
        await ended.wait()
        await task
        assert task.cancelling() == 0


async def test_a_host_that_hands_out_futures_settles_them_itself():
    """pyvoy does so whether or not they were cancelled; one that was is an error of its own."""

    async def slow(request, context):
        await asyncio.sleep(0.05)  # meanwhile the call's watch waits for its client to leave
        return Answer()

    server = server_without_ports(unary=slow)
    app = server.asgi_app
    promised = []

    def receive():
        promised.append(asyncio.get_running_loop().create_future())
        if len(promised) == 1:
            promised[0].set_result({"type": "http.request", "body": b'{"text":"a"}', "more_body": False})
        return promised[-1]

    async def send(message):
        pass

    headers = [(b"content-type", b"application/json")]
    async with server, asyncio.timeout(20):
        await app(
            {"type": "http", "method": "POST", "path": UNARY, "query_string": b"", "headers": headers}, receive, send
        )
    assert len(promised) == 2
    promised[1].set_result({"type": "http.disconnect"})


@pytest.mark.parametrize("path", [UNARY, STREAM])
async def test_a_host_that_repeats_the_end_of_the_body_is_asked_until_the_client_has_left(path):
    """As pyvoy does, whose `receive` never waits once the body has ended."""
    left, ended = asyncio.Event(), asyncio.Event()

    async def hang(request, context):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def hang_in_a_stream(request, context):
        await hang(request, context)
        yield Answer()

    server = server_without_ports(unary=hang, stream=hang_in_a_stream)
    app = server.asgi_app
    asked = 0

    async def receive():
        nonlocal asked
        asked += 1
        if asked == 1:
            body = b"" if path == UNARY else enveloped(b"")
            return {"type": "http.request", "body": body, "more_body": False}
        return (
            {"type": "http.disconnect"} if left.is_set() else {"type": "http.request", "body": b"", "more_body": False}
        )

    async def send(message):
        pass

    headers = [(b"content-type", b"application/proto" if path == UNARY else b"application/connect+proto")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    async with server, asyncio.timeout(20):
        call = asyncio.create_task(app(scope, receive, send))
        await asyncio.sleep(0.5)
        assert 2 < asked < 20
        left.set()
        await ended.wait()
        await call


async def test_calls_of_a_stopped_server_end_as_unavailable_in_a_foreign_host():
    async def hang(request, context):
        yield Answer(text="first")
        await asyncio.Event().wait()

    server = server_without_ports(stream=hang)
    host = Host(server.asgi_app)
    await server.start()
    running = asyncio.create_task(host.request(STREAM, enveloped(b""), "application/connect+proto"))
    await asyncio.sleep(0.1)
    await server.stop(0.1)
    sent = await running
    assert b"unavailable" in sent[-1]["body"]
