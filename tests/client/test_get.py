"""Unary calls by HTTP GET: only where the caller wants it, and the contract of the method allows it."""

import base64
import urllib.parse

import pytest
import zstandard

from client.harness import answer, read_request
from quill import InvalidType, InvalidUsage
from support.probe import LOOK, SERVICE, Answer, Ask, register

ANSWER = Answer(text="a")


class Recorder:
    """Answers any call of Connect, and notes what was asked."""

    def __init__(self, content_type="application/proto", body=b"\x0a\x01a"):
        self.heads, self.bodies = [], []
        self._answer = answer(headers=[f"content-type: {content_type}"], body=body)

    async def __call__(self, reader, writer):
        head, body = await read_request(reader)
        self.heads.append(head.decode())
        self.bodies.append(body)
        writer.write(self._answer)
        await writer.drain()

    @property
    def line(self):
        """The method, the path and the query of the one request."""
        (head,) = self.heads
        method, target, _ = head.split("\r\n")[0].split(" ")
        path, _, query = target.partition("?")
        return method, path, query


def test_a_message_goes_in_the_url_and_nothing_speaks_of_a_body(host, drive):
    recorder = Recorder()
    request = Ask(text="ü?", count=-1)
    with host.tcp(recorder) as port:
        client = drive(f"http://127.0.0.1:{port}", use_get=True)
        assert client.call(SERVICE, "Look", request, headers={"x-own": "v"}) == ANSWER
    method, path, query = recorder.line
    message = base64.urlsafe_b64encode(request.SerializeToString()).decode().rstrip("=")
    assert (method, path) == ("GET", LOOK)
    assert query == f"connect=v1&base64=1&encoding=proto&message={message}"
    head = recorder.heads[0].lower()
    assert "x-own: v\r\n" in head
    assert "connect-timeout-ms: 30000\r\n" in head
    assert "accept-encoding: zstd, gzip\r\n" in head
    assert not any(name in head for name in ("content-type", "content-length", "connect-protocol-version", "chunked"))


def test_json_goes_in_the_url_as_text(host, drive):
    recorder = Recorder("application/json", b'{"text":"a"}')
    with host.tcp(recorder) as port:
        client = drive(f"http://127.0.0.1:{port}/base", use_get=True)
        assert client.call_json(SERVICE, "Look", {"text": "ü &+%"}) == {"text": "a"}
    method, path, query = recorder.line
    assert (method, path) == ("GET", "/base" + LOOK)
    assert query == "connect=v1&encoding=json&message=" + urllib.parse.quote('{"text":"ü &+%"}', safe="")


def test_what_is_compressed_says_so_in_the_url(host, drive):
    recorder = Recorder()
    request = Ask(text="x" * 5000)
    with host.tcp(recorder) as port:
        drive(f"http://127.0.0.1:{port}", use_get=True, compression="zstd").call(SERVICE, "Look", request)
    method, _, query = recorder.line
    told = dict(urllib.parse.parse_qsl(query))
    assert method == "GET"
    assert list(told) == ["connect", "base64", "compression", "encoding", "message"]
    data = base64.urlsafe_b64decode(told["message"] + "=" * (-len(told["message"]) % 4))
    assert (told["compression"], zstandard.ZstdDecompressor().decompress(data)) == ("zstd", request.SerializeToString())


@pytest.mark.parametrize(
    ("method", "text", "options"),
    [
        ("Look", "a", {}),
        ("Unary", "a", {"use_get": True}),
        ("Unknown", "a", {"use_get": True}),
        ("Look", "\u00fc" * 2000, {"use_get": True}),
    ],
    ids=["not asked for", "may have side effects", "unknown", "too long"],
)
def test_other_calls_go_by_post(host, drive, method, text, options):
    recorder = Recorder()
    request = Ask(text=text).SerializeToString()
    with host.tcp(recorder) as port:
        drive(f"http://127.0.0.1:{port}", **options).call(SERVICE, method, request, codec="proto")
    assert recorder.line == ("POST", f"/{SERVICE}/{method}", "")
    assert recorder.bodies == [request]


@pytest.mark.parametrize("http2", [False, True])
def test_a_server_of_quills_answers(host, drive, http2):
    async def look(request, context):
        return Answer(text=request.text * 2)

    from quill.server.server import Server

    async def start():
        server = Server(None, "127.0.0.1:0", http2=http2)
        register(server, look=look)
        await server.start()
        return server

    server = host.run(start())
    try:
        client = drive(server.http_url, use_get=True, http2=http2)
        assert client.call(SERVICE, "Look", Ask(text="ab")) == Answer(text="abab")
        assert client.call_json(SERVICE, "Look", {"text": "ü"}) == {"text": "üü"}
    finally:
        host.run(server.stop(0))


def test_only_connect_has_it(drive):
    for protocol in ("grpc", "grpc-web"):
        with pytest.raises(InvalidUsage, match=f"use_get is for Connect; {protocol} has no calls by GET"):
            drive("http://127.0.0.1:1", protocol=protocol, use_get=True)
    with pytest.raises(InvalidType, match="use_get must be a bool, got int"):
        drive("http://127.0.0.1:1", use_get=1)
