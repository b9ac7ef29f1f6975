"""A small server of the Quill framework's own protocol, written from its description and sharing no code with Quill.

An ASGI application, served by Quill's hosts on a socket of its own: HTTP/1.1, or HTTP/2 in clear text.
"""

import asyncio
import base64
import contextlib
import json

import zstandard

from quill.limits import Limits
from quill.server.granian_host import GranianHost
from quill.server.http_host import UvicornHost, listen, url_of

SERVICE = "peer.v1.Peer"
DATA, END, CANCEL, CREDIT = 1, 2, 4, 8
METHODS = frozenset(
    {"Unary", "Accepted", "Nothing", "Refuse", "Count", "Collect", "Chat", "Large", "Cancelled", "Short", "Hang"}
)


def number(value):
    """A varint."""
    out = []
    while True:
        value, low = divmod(value, 128)
        out.append(low + 128 * (value > 0))
        if not value:
            return bytes(out)


def frame(flags, payload=b""):
    return number(len(payload)) + bytes([flags]) + payload


class Peer:
    """What it was asked, and what it answers: by the method's name."""

    def __init__(self):
        self.heads = []
        """Of each request, the path and the headers."""
        self.frames = []
        """Of each frame that came, the flags and the payload."""
        self.cut = 0
        """How many requests ended before their streams did."""
        self.left = 0
        """How many callers left while they were answered."""
        self.compresses = False

    async def __call__(self, scope, receive, send):
        assert scope["method"] == "POST"
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
        self.heads.append((scope["path"], headers))
        service, _, method = scope["path"].lstrip("/").partition("/")
        if service != SERVICE or method not in METHODS:
            await refuse(send, 404, "Method not found", detail=f"no handler for {scope['path']}")
            return
        await getattr(self, method.lower())(_Body(receive, dict(headers)), _Answer(send, compresses=self.compresses))

    async def unary(self, body, answer):
        await answer.whole(await body.whole())

    async def accepted(self, body, answer):
        await answer.whole((await body.whole()).upper(), status=202)

    async def nothing(self, body, answer):
        await body.whole()
        await answer.send({"type": "http.response.start", "status": 204, "headers": []})
        await answer.send({"type": "http.response.body", "body": b""})

    async def refuse(self, body, answer):
        """A problem document: the request is its fields, ``status`` the answer's."""
        problem = json.loads(await body.whole())
        await refuse(answer.send, **problem)

    async def count(self, body, answer):
        """As many messages as the one request says, the last in the frame that ends the stream."""
        (request,) = [payload async for payload in self.requests(body)]
        count = int(request)
        for index in range(count):
            await answer.frame(DATA | END * (index == count - 1), str(index).encode())
        if not count:
            await answer.frame(END)
        await answer.end()

    async def collect(self, body, answer):
        texts = [payload async for payload in self.requests(body)]
        await answer.frame(DATA, b",".join(texts))
        await answer.frame(END)
        await answer.end()

    async def chat(self, body, answer):
        """Answers each request when it comes, and grants credit as it goes."""
        await answer.frame(CREDIT, number(300))
        async for payload in self.requests(body):
            await answer.frame(DATA, payload.upper())
            await answer.frame(CREDIT, number(1))
        await answer.frame(END)
        await answer.end()

    async def large(self, body, answer):
        """One message of as many bytes as the request says."""
        (request,) = [payload async for payload in self.requests(body)]
        await answer.frame(DATA | END, bytes(int(request)))
        await answer.end()

    async def cancelled(self, body, answer):
        async for _ in self.requests(body):
            pass
        await answer.frame(DATA, b"a")
        await answer.frame(CANCEL)
        await answer.end()

    async def short(self, body, answer):
        """A body that ends before the stream does."""
        async for _ in self.requests(body):
            pass
        await answer.frame(DATA, b"a")
        await answer.end()

    async def hang(self, body, answer):
        """One message, then none until the caller has left."""
        await anext(self.requests(body), None)
        await answer.frame(DATA, b"a")
        while (await body.receive())["type"] != "http.disconnect":
            pass
        self.left += 1

    async def requests(self, body):
        """The messages of a request, as their frames are complete."""
        buffer = b""
        async for piece in body.pieces():
            buffer += piece
            while (found := _first_frame(buffer)) is not None:
                flags, payload, buffer = found
                self.frames.append((flags, payload))
                if flags & DATA:
                    yield payload
                if flags & END:
                    return
        self.cut += 1


def _first_frame(buffer):
    end = next((index for index, byte in enumerate(buffer) if byte < 128), None)
    if end is None:
        return None
    length = sum((byte % 128) << 7 * index for index, byte in enumerate(buffer[: end + 1]))
    start = end + 2
    if len(buffer) < start + length:
        return None
    return buffer[end + 1], buffer[start : start + length], buffer[start + length :]


class _Body:
    def __init__(self, receive, headers):
        self.receive = receive
        self._headers = headers

    async def pieces(self):
        """The body piece by piece; one that is compressed in one."""
        raw = self._raw()
        if self._headers.get("content-encoding") == "zstd":
            yield zstandard.ZstdDecompressor().decompress(b"".join([piece async for piece in raw]))
            return
        async for piece in raw:
            yield piece

    async def _raw(self):
        while (message := await self.receive())["type"] == "http.request":
            yield message.get("body", b"")
            if not message.get("more_body"):
                return

    async def whole(self):
        return b"".join([piece async for piece in self.pieces()])


class _Answer:
    def __init__(self, send, *, compresses):
        self.send = send
        self._zstd = zstandard.ZstdCompressor().compressobj() if compresses else None
        self._begun = False

    async def whole(self, message, status=200):
        if self._zstd is not None:
            message = zstandard.ZstdCompressor().compress(message)
        await self._begin(status)
        await self.send({"type": "http.response.body", "body": message})

    async def frame(self, flags, payload=b""):
        data = frame(flags, payload)
        if self._zstd is not None:
            data = self._zstd.compress(data) + self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        await self._begin(200)
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self):
        tail = b"" if self._zstd is None else self._zstd.flush()
        await self.send({"type": "http.response.body", "body": tail})

    async def _begin(self, status):
        if not self._begun:
            headers = [(b"content-type", b"application/proto"), (b"x-from", b"peer")]
            if self._zstd is not None:
                headers.append((b"content-encoding", b"zstd"))
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
        self._begun = True


async def refuse(send, status, title, **more):
    """Answer with a problem document."""
    if "bytes" in more:
        more["quill_proto_detail_base64"] = base64.b64encode(more.pop("bytes").encode()).decode()
    document = {"type": f"urn:quill:error:{status}", "title": title, "status": status, **more}
    headers = [(b"content-type", b"application/problem+json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})


@contextlib.contextmanager
def serving(host, *, http2=False):
    """A peer on the loop of a test's host; gives the peer and its URL."""
    peer = Peer()

    async def start():
        listener = await listen("127.0.0.1:0")
        url = url_of(listener, "http")
        served = GranianHost(peer, listener, Limits()) if http2 else UvicornHost(peer, listener, Limits())
        await served.start()
        return served, url

    async def stop(served):
        served.stop_accepting()
        await served.close()
        await asyncio.sleep(0)

    served, url = host.run(start())
    try:
        yield peer, url
    finally:
        host.run(stop(served))
