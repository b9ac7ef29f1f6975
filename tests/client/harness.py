"""Servers in a thread of their own, and one way to drive the blocking and the asyncio client alike."""

import asyncio
import contextlib
import json
import threading
from dataclasses import dataclass

import grpc

from quill.client.async_client import AsyncQuillClient
from quill.client.sync_client import QuillClient
from quill.server.server import Server
from support import echo

LIMIT_S = 20
"""How long anything in a test may take."""

RAW = "raw.v1.Raw"
"""A service whose messages are bytes that mean nothing to anybody but this module."""


class Raw:
    """What the request asks for, as a JSON object that no client takes for one: it is sent as protobuf bytes."""

    def __init__(self):
        self.metadata = []
        self.live = 0
        self.calls = 0

    async def unary(self, request, context):
        self._note(context)
        asked = json.loads(request[1:])
        await asyncio.sleep(asked.get("sleep_s", 0))
        return bytes(asked.get("bytes", 0))

    async def stream(self, request, context):
        self._note(context)
        asked = json.loads(request[1:])
        self.live += 1
        try:
            for index in range(asked.get("count", 1)):
                await asyncio.sleep(asked.get("gap_s", 0))
                yield bytes([index % 256]) * asked.get("bytes", 1)
            if asked.get("hang"):
                await asyncio.Event().wait()
        finally:
            self.live -= 1

    def _note(self, context):
        self.calls += 1
        self.metadata.append(tuple((key, value) for key, value in context.invocation_metadata()))


def ask(**what):
    """A request of the raw service."""
    return b"\x00" + json.dumps(what).encode()


@dataclass
class Relayed:
    """A connection through a relay."""

    writer: asyncio.StreamWriter
    sent_bytes: int = 0
    """What the client has sent."""


class Host:
    """An event loop in a thread, with a quill.Server on it and whatever else a test puts there."""

    def __init__(self, **settings):
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.echo = self.raw = self.server = None

    def __enter__(self):
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_):
        self.run(self.server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.close()

    async def _start(self):
        self.echo, self.raw = echo.Echo(), Raw()
        self._make_server()
        echo.add_to_server(self.echo, self.server)
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.raw.unary),
            "Stream": grpc.unary_stream_rpc_method_handler(self.raw.stream),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(RAW, handlers),))
        await self.server.start()

    def _make_server(self):
        self.server = Server("127.0.0.1:0", "127.0.0.1:0", **self._settings)

    def url(self, protocol):
        return self.server.http_url if protocol == "connect" else f"grpc://{self.server.grpc_address}"

    def run(self, coroutine):
        """Run on the host's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT_S)

    @contextlib.contextmanager
    def tcp(self, handle, **options):
        """A bare TCP server; ``handle(reader, writer)`` does what no real server does. Yields its port."""

        tasks = set()

        async def serve(reader, writer):
            tasks.add(asyncio.current_task())
            try:
                # The end of the test cancels what still runs: asyncio's streams would log it.
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await handle(reader, writer)
                    writer.close()
            finally:
                tasks.discard(asyncio.current_task())
                writer.transport.abort()

        async def start():
            return await asyncio.start_server(serve, "127.0.0.1", 0, **options)

        async def stop():
            # asyncio loses a connection that was accepted when its server closes (CPython 3.11): take no more first.
            for listening in server.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            await asyncio.sleep(0.01)
            server.close()
            async with asyncio.timeout(LIMIT_S):
                while server._active_count:
                    for task in list(tasks):
                        task.cancel()
                    await asyncio.sleep(0.005)

        server = self.run(start())
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            self.run(stop())

    @contextlib.contextmanager
    def relay(self, url):
        """A TCP relay to a server. Yields its port and the connections that it has had."""
        target = int(url.rpartition(":")[2])
        connections = []

        async def up(reader, writer, connection):
            while data := await reader.read(65536):
                connection.sent_bytes += len(data)
                writer.write(data)
            writer.close()

        async def down(reader, writer):
            while data := await reader.read(65536):
                writer.write(data)
            writer.close()

        async def handle(reader, writer):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", target)
            connections.append(connection := Relayed(writer))
            try:
                await asyncio.gather(up(reader, up_writer, connection), down(up_reader, writer))
            finally:
                up_writer.transport.abort()

        with self.tcp(handle) as port:
            yield port, connections

    def until(self, condition):
        """Wait until something is so on the host's loop."""

        async def wait():
            async with asyncio.timeout(LIMIT_S):
                while not condition():
                    await asyncio.sleep(0.005)

        self.run(wait())


async def read_request(reader):
    """Head and body of an HTTP/1.1 request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.decode("latin-1").lower().splitlines():
        if line.startswith("content-length:"):
            length = int(line.partition(":")[2])
    return head, await reader.readexactly(length)


def answer(status="200 OK", headers=(), body=b""):
    """An HTTP/1.1 response after which the connection ends."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def answering(response):
    """A handler for `Host.tcp` that gives one answer to every request."""

    async def handle(reader, writer):
        await read_request(reader)
        writer.write(response)
        await writer.drain()

    return handle


class Driver:
    """The blocking client."""

    def __init__(self, url, **options):
        self.client = QuillClient(url, **options)

    def call(self, *arguments, **options):
        return self.client.call(*arguments, **options)

    def call_json(self, *arguments, **options):
        return self.client.call_json(*arguments, **options)

    def stream(self, *arguments, take=None, received=None, **options):
        """The messages of a stream, all or the first few; also put into ``received`` as they come."""
        return self._collect(self.client.stream(*arguments, **options), take, received)

    def stream_json(self, *arguments, take=None, received=None, **options):
        return self._collect(self.client.stream_json(*arguments, **options), take, received)

    def health_check(self):
        return self.client.health_check()

    def generate(self, *arguments, **options):
        return self.client.llm.generate(*arguments, **options)

    def generation(self, *arguments, take=None, received=None, **options):
        """Stream a generation; the stream, and what came."""
        stream = self.client.llm.stream(*arguments, **options)
        return stream, self._collect(stream, take, received)

    def result(self, stream):
        return stream.result()

    def ask(self, method, *arguments, **options):
        """Call a method of client.llm that gives one value."""
        return getattr(self.client.llm, method)(*arguments, **options)

    def tensors(self, method, *arguments, **options):
        """Call a method of client.tensors."""
        return getattr(self.client.tensors, method)(*arguments, **options)

    def models(self):
        return self.client.llm.models()

    def cancel(self, *arguments, **options):
        return self.client.llm.cancel(*arguments, **options)

    def close(self):
        self.client.close()

    @staticmethod
    def _collect(stream, take, received):
        received = [] if received is None else received
        with stream:
            for message in stream:
                received.append(message)
                if len(received) == take:
                    break
        return received


class AsyncDriver:
    """The asyncio client, on a loop of its own."""

    def __init__(self, url, **options):
        self._runner = asyncio.Runner()
        self.client = AsyncQuillClient(url, **options)

    def call(self, *arguments, **options):
        return self._runner.run(self.client.call(*arguments, **options))

    def call_json(self, *arguments, **options):
        return self._runner.run(self.client.call_json(*arguments, **options))

    def stream(self, *arguments, take=None, received=None, **options):
        return self._runner.run(self._collect(lambda: self.client.stream(*arguments, **options), take, received))

    def stream_json(self, *arguments, take=None, received=None, **options):
        return self._runner.run(self._collect(lambda: self.client.stream_json(*arguments, **options), take, received))

    def health_check(self):
        return self._runner.run(self.client.health_check())

    def generate(self, *arguments, **options):
        return self._runner.run(self.client.llm.generate(*arguments, **options))

    def generation(self, *arguments, take=None, received=None, **options):
        opened = []

        def start():
            opened.append(self.client.llm.stream(*arguments, **options))
            return opened[0]

        came = self._runner.run(self._collect(start, take, received))
        return opened[0], came

    def result(self, stream):
        return self._runner.run(stream.result())

    def ask(self, method, *arguments, **options):
        return self._runner.run(getattr(self.client.llm, method)(*arguments, **options))

    def tensors(self, method, *arguments, **options):
        return self._runner.run(getattr(self.client.tensors, method)(*arguments, **options))

    def models(self):
        return self._runner.run(self.client.llm.models())

    def cancel(self, *arguments, **options):
        return self._runner.run(self.client.llm.cancel(*arguments, **options))

    def close(self):
        self._runner.run(self.client.close())
        self._runner.close()

    @staticmethod
    async def _collect(start, take, received):
        received = [] if received is None else received
        async with start() as stream:
            async for message in stream:
                received.append(message)
                if len(received) == take:
                    break
        return received


DRIVERS = {"sync": Driver, "async": AsyncDriver}
