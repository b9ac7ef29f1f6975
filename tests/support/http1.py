"""A small HTTP/1.1 client on a bare socket: it can send by pieces, read by pieces, and go away."""

import asyncio
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

TIMEOUT_S = 20


@dataclass
class Reply:
    """A whole reply."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name):
        return next((value for key, value in self.headers if key == name), None)

    def json(self):
        return json.loads(self.body)

    def envelopes(self):
        """The messages of a stream: (flags, data) each."""
        found, rest = [], self.body
        while rest:
            size = int.from_bytes(rest[1:5], "big")
            assert len(rest) >= 5 + size, "a truncated envelope"
            found.append((rest[0], rest[5 : 5 + size]))
            rest = rest[5 + size :]
        return found

    def messages(self):
        """The messages of a stream, without its end."""
        return [data for flags, data in self.envelopes() if flags == 0]

    def end(self):
        """What the end of a stream says."""
        flags, data = self.envelopes()[-1]
        assert flags == 2
        return json.loads(data)


class Connection:
    """One connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, url, tls=None):
        parts = urlsplit(url)
        name = None if tls is None else "localhost"
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, ssl=tls, server_hostname=name))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.writer.transport.abort()
        await asyncio.sleep(0)

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, method, path, body=b"", headers=()):
        """Send a whole request; the length is told unless a header tells something else."""
        sent = [("host", "test"), *headers]
        if not any(name in {"content-length", "transfer-encoding"} for name, _ in headers):
            sent.append(("content-length", str(len(body))))
        head = "".join(f"{name}: {value}\r\n" for name, value in sent)
        await self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)

    async def head(self):
        """Status and headers of the next reply."""
        async with asyncio.timeout(TIMEOUT_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        return int(lines[0].split()[1]), headers

    async def chunk(self):
        """The next chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(TIMEOUT_S):
            size = int(await self.reader.readline(), 16)
            data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def reply(self):
        """The next reply, whole."""
        status, headers = await self.head()
        told = dict(headers)
        if status == 204:
            return Reply(status, headers, b"")
        if "content-length" in told:
            async with asyncio.timeout(TIMEOUT_S):
                return Reply(status, headers, await self.reader.readexactly(int(told["content-length"])))
        body = b""
        while chunk := await self.chunk():
            body += chunk
        return Reply(status, headers, body)


async def ask(url, method, path, body=b"", headers=(), *, tls=None):
    """One request on a connection of its own."""
    async with await Connection.open(url, tls) as connection:
        await connection.ask(method, path, body, headers)
        return await connection.reply()


async def post(url, path, content_type, body=b"", headers=(), *, tls=None):
    """One POST."""
    return await ask(url, "POST", path, body, [("content-type", content_type), *headers], tls=tls)


def enveloped(data, flags=0):
    """A message of a stream."""
    return bytes([flags]) + len(data).to_bytes(4, "big") + data
