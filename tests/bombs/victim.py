"""The processes under test: a server, or clients that do what standard input says; only they are measured."""

import asyncio
import json
import sys
import zlib
from pathlib import Path

from quill import AsyncQuillClient, QuillClient, QuillError
from quill.limits import Limits
from quill.server.server import Server

if __name__ == "__main__":
    from payloads import LIMIT_BYTES
else:
    from bombs.payloads import LIMIT_BYTES

SERVICE = "bomb.v1.Bomb"


class Peak:
    """How far the memory of a process has grown since it was last asked (proc(5): VmHWM, clear_refs)."""

    def __init__(self, pid="self"):
        self._folder = Path(f"/proc/{pid}")
        self.restart()

    def restart(self):
        (self._folder / "clear_refs").write_text("5")
        self._before_kib = self._high_kib()

    def grown_mib(self):
        return (self._high_kib() - self._before_kib) / 1024

    def _high_kib(self):
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def serve(*, http2):
    """probe.v1.Probe, which tells how much it was given, and its checksum."""
    from support.probe import Answer, register

    def seen(*requests):
        data = b"".join(request.blob for request in requests)
        return Answer(count=len(data), text=f"crc {zlib.crc32(data)}")

    async def one(request, context):
        return seen(request)

    async def stream(request, context):
        yield seen(request)

    async def collect(requests, context):
        return seen(*[request async for request in requests])

    limits = Limits(max_message_bytes=LIMIT_BYTES, max_metadata_bytes=128 * 1024)
    server = Server("127.0.0.1:0", "127.0.0.1:0", limits=limits, http2=http2)
    register(server, unary=one, look=one, stream=stream, collect=collect)
    async with server:
        print(json.dumps({"grpc": server.grpc_address, "http": server.http_url.removeprefix("http://")}), flush=True)
        await server.wait_for_termination()


class Clients:
    """One client for each URL, protocol and style."""

    def __init__(self):
        self._runner = asyncio.Runner()
        self._clients = {}

    def do(self, url, protocol, style, kind, method):
        """Make a call, tell how it ended and what it took, and whether the next call works."""
        client = url, protocol, style
        peak = Peak()
        ended = self._call(client, kind, method)
        grown_mib = peak.grown_mib()
        return {**ended, "grown_mib": grown_mib, "next": self._call(client, kind, "Good")}

    def _call(self, key, kind, method):
        url, protocol, style = key
        make = {"sync": QuillClient, "async": AsyncQuillClient}[style]
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = make(url, 20_000, protocol=protocol, max_message_bytes=LIMIT_BYTES)
        try:
            if style == "sync":
                made = getattr(client, kind)(SERVICE, method, b"")
                received = made if kind == "call" else b"".join(made)
            else:
                received = self._runner.run(self._await(client, kind, method))
        except QuillError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"received": received.hex()}

    @staticmethod
    async def _await(client, kind, method):
        made = getattr(client, kind)(SERVICE, method, b"")
        return await made if kind == "call" else b"".join([message async for message in made])


def obey():
    """Read commands, one a line, and answer each with a line."""
    clients = Clients()
    for style in ("sync", "async"):  # what loads on first use loads here
        for protocol in ("connect", "grpc"):
            clients.do("http://127.0.0.1:9", protocol, style, "call", "Warm")
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(clients.do(*json.loads(line))), flush=True)


if __name__ == "__main__":
    match sys.argv[1]:
        case "clients":
            obey()
        case host:
            asyncio.run(serve(http2=host == "granian"))
