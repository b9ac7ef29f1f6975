"""What a peer does that is no RPC server, or stops being one: clean errors, the same words over every transport."""

import asyncio
import json
import socket
import ssl
import struct
import time

import grpc
import pytest

from client.harness import LIMIT_S, RAW, answer, answering, ask, read_request
from quill import Internal, QuillError, RpcError, Unavailable, Unimplemented
from quill.client import faults
from quill.client.address import Address
from quill.errors import Code
from quill.server.server import Server

CANARY = "Bearer canary-77e1"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def scheme(protocol):
    return "http" if protocol == "connect" else "grpc"


@pytest.fixture(params=["unary", "stream"])
def how(request):
    """Calls a method in one of two ways."""
    return lambda client, **options: getattr(client, "call" if request.param == "unary" else "stream")(
        "a.B", "C", b"", **options
    )


def failure(action):
    """The error, which must be Quill's and hide what lies underneath."""
    with pytest.raises(RpcError) as caught:
        action()
    error = caught.value
    assert error.__cause__ is None or isinstance(error.__cause__, QuillError)
    assert error.__suppress_context__ or error.__context__ is None or isinstance(error.__context__, QuillError)
    assert CANARY not in repr(error) + str(error)
    return error


def test_a_closed_port_is_unavailable(protocol, drive, how):
    port = free_port()
    error = failure(lambda: how(drive(f"{scheme(protocol)}://127.0.0.1:{port}", max_attempts=1)))
    assert type(error) is Unavailable
    assert isinstance(error, ConnectionError)
    assert error.message == f"cannot reach 127.0.0.1:{port}: connection refused"


def test_an_unknown_name_is_unavailable(protocol, drive, how):
    error = failure(lambda: how(drive(f"{scheme(protocol)}://no-such-host.invalid:80")))
    assert type(error) is Unavailable
    assert error.message == "cannot reach no-such-host.invalid:80: the name does not resolve"


def test_a_certificate_with_many_names_is_told_in_short():
    error = ssl.SSLCertVerificationError("certificate verify failed: Hostname mismatch")
    told = faults.insecure(Address.parse("https://expired.example"), error, names=[f"h{n}" for n in range(7)])
    assert "not for 'expired.example', only for h0, h1, h2, h3, h4 and 2 more: use" in told.message


def test_words_in_a_path_or_a_name_are_not_taken_for_reasons():
    unix = Address.parse("unix:/run/http1/timeout")
    assert faults.unreachable_text(unix, "unix:/run/http1/timeout: Permission denied").message.endswith(
        ": permission denied"
    )
    named = Address.parse("https://expired.example")
    text = "for url (https://expired.example/): invalid peer certificate: UnknownIssuer"
    assert "signed by nobody" in faults.unreachable_text(named, text).message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("certificate verify failed: CA md too weak", "its certificate does not verify"),
        ("tlsv1 alert protocol version (TLSV1_ALERT_PROTOCOL_VERSION)", "the TLS handshake failed"),
        ("something of tls", "the TLS handshake failed"),
    ],
)
def test_other_failures_of_tls_have_a_general_text(text, told):
    address = Address.parse("https://h:1")
    assert faults.unreachable_text(address, text).message == f"cannot reach h:1: {told}"


def test_a_closed_port_on_ipv6_is_shown_in_brackets(protocol, drive, how):
    error = failure(lambda: how(drive(f"{scheme(protocol)}://[::1]:1")))
    assert error.message.startswith("cannot reach [::1]:1: ")


def test_a_server_that_comes_up_later_is_reached(host, protocol, drive):
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
    client = drive(f"{scheme(protocol)}://127.0.0.1:{port}", timeout_ms=2000)
    assert failure(lambda: client.call("a.B", "C", b"")).code is Code.UNAVAILABLE
    late = host.run(_serve_late(protocol, port))
    try:
        _until_reached(lambda: client.call("late.v1.Late", "Say", b""))
    finally:
        host.run(late.stop(0))


async def _serve_late(protocol, port):
    async def say(request, context):
        return b"here"

    handlers = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    address = f"127.0.0.1:{port}"
    late = Server(None, address) if protocol == "connect" else Server(address, None)
    late.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("late.v1.Late", handlers),))
    await late.start()
    return late


def _until_reached(call):
    """Call until the server answers: gRPC waits between its attempts to connect."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            assert call() == b"here"
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


def test_tls_to_a_server_without_tls_is_unavailable(host, protocol, drive, how):
    async def plain(reader, writer):
        await reader.read(1)
        writer.write(answer("400 Bad Request"))
        await writer.drain()

    with host.tcp(plain) as port:
        error = failure(lambda: how(drive(f"{scheme(protocol)}s://127.0.0.1:{port}", max_attempts=1), timeout_ms=5000))
    assert (
        error.message == f"cannot reach 127.0.0.1:{port}: it speaks no TLS there; clear text is {scheme(protocol)}://"
    )


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("400 Bad Request", Code.INTERNAL),
        ("401 Unauthorized", Code.UNAUTHENTICATED),
        ("403 Forbidden", Code.PERMISSION_DENIED),
        ("404 Not Found", Code.UNIMPLEMENTED),
        ("418 Teapot", Code.UNKNOWN),
        ("429 Too Many Requests", Code.UNAVAILABLE),
        ("500 Internal Server Error", Code.UNKNOWN),
        ("502 Bad Gateway", Code.UNAVAILABLE),
        ("503 Service Unavailable", Code.UNAVAILABLE),
        ("504 Gateway Timeout", Code.UNAVAILABLE),
        ("599 Odd", Code.UNKNOWN),
    ],
)
def test_an_answer_of_a_proxy_has_the_code_of_its_http_status(host, drive, how, status, code):
    page = answer(status, ["content-type: text/html"], f"<h1>{CANARY}</h1>".encode())
    with host.tcp(answering(page)) as port:
        error = failure(lambda: how(drive(f"http://127.0.0.1:{port}")))
    assert error.code is code
    assert f"HTTP {status[:3]}" in error.message


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
def test_a_redirect_is_an_error_and_is_not_followed(host, drive, how, status):
    followed = []

    async def target(reader, writer):
        followed.append(await read_request(reader))

    with host.tcp(target) as port:
        redirect = answer(status, [f"location: http://127.0.0.1:{port}/a.B/C"])
        with host.tcp(answering(redirect)) as first:
            client = drive(f"http://127.0.0.1:{first}", headers={"authorization": CANARY})
            error = failure(lambda: how(client))
    assert error.code is Code.UNKNOWN
    assert "redirects are not followed" in error.message
    assert followed == []


@pytest.mark.parametrize(
    ("content_type", "code"),
    [("text/html", Code.UNKNOWN), ("", Code.UNKNOWN), ("application/grpc", None), ("application/connect+json", None)],
)
def test_a_wrong_content_type_is_an_error_that_names_both(host, drive, how, content_type, code):
    with host.tcp(answering(answer(headers=[f"content-type: {content_type}"]))) as port:
        error = failure(lambda: how(drive(f"http://127.0.0.1:{port}")))
    assert error.code in ({code} if code else {Code.INTERNAL, Code.UNKNOWN})
    assert repr(content_type) in error.message
    assert "expected 'application/" in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"message": 7}',
        b'{"code": 5, "message": null, "details": [1, {"type": 1}, {"type": "a.B", "value": "!"}]}',
    ],
)
def test_a_refusal_that_cannot_be_read_has_the_code_of_its_http_status(host, drive, how, body):
    page = answer("503 Service Unavailable", ["content-type: application/json"], body)
    with host.tcp(answering(page)) as port:
        error = failure(lambda: how(drive(f"http://127.0.0.1:{port}")))
    assert error.code is Code.UNAVAILABLE


def test_a_refusal_with_details_is_read_over_a_stream_too(host, drive, how):
    body = json.dumps(
        {"code": "not_found", "message": "no", "details": [{"type": "a.B", "value": "AQI"}, {"type": "c.D"}]}
    ).encode()
    page = answer("404 Not Found", ["content-type: application/json", "x-a: 1", "trailer-x-b: 2"], body)
    with host.tcp(answering(page)) as port:
        error = failure(lambda: how(drive(f"http://127.0.0.1:{port}")))
    assert (error.code, error.message) == (Code.NOT_FOUND, "no")
    assert [(detail.type_name, detail.value) for detail in error.details] == [("a.B", b"\x01\x02")]
    assert (error.metadata, error.trailers) == ((("x-a", "1"),), (("x-b", "2"),))


@pytest.mark.parametrize(
    "nonsense", [b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"HTTP/1.1 twohundred\r\n\r\n", b"\0" * 100 + b"\r\n\r\n"]
)
def test_a_peer_that_speaks_no_http_is_an_error(host, drive, how, nonsense):
    with host.tcp(answering(nonsense)) as port:
        error = failure(lambda: how(drive(f"http://127.0.0.1:{port}")))
    assert error.code in {Code.INTERNAL, Code.UNAVAILABLE}
    assert f"127.0.0.1:{port}" in error.message


def test_a_peer_that_speaks_no_grpc_is_an_error(host, drive, how):
    with host.tcp(answering(answer("400 Bad Request"))) as port:
        error = failure(lambda: how(drive(f"grpc://127.0.0.1:{port}"), timeout_ms=5000))
    assert error.code is Code.UNAVAILABLE
    assert error.message == f"cannot reach 127.0.0.1:{port}: it speaks no gRPC"


def test_a_head_that_never_ends_is_refused(host, drive, how):
    async def endless(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not writer.is_closing():
            writer.write(b"x-a: " + b"a" * 8000 + b"\r\n")
            await writer.drain()

    with host.tcp(endless) as port:
        error = failure(lambda: how(drive(f"http://127.0.0.1:{port}"), timeout_ms=10_000))
    assert error.code in {Code.INTERNAL, Code.UNAVAILABLE}


def test_a_connection_that_ends_without_an_answer_was_lost(host, drive, how):
    async def hang_up(reader, writer):
        await read_request(reader)

    with host.tcp(hang_up) as port:
        error = failure(lambda: how(drive(f"http://127.0.0.1:{port}")))
    assert type(error) is Unavailable
    assert error.message == (
        f"the connection to 127.0.0.1:{port} was lost before the call ended, and it has never answered; "
        "if it expects TLS, use https://"
    )


def test_a_connection_to_a_server_that_has_answered_before_was_just_lost(host, drive, how):
    answers = [answer("404 Not Found"), None]

    async def once(reader, writer):
        await read_request(reader)
        if page := answers.pop(0):
            writer.write(page)

    with host.tcp(once) as port:
        client = drive(f"http://127.0.0.1:{port}")
        assert failure(lambda: how(client)).code is Code.UNIMPLEMENTED
        error = failure(lambda: how(client))
    assert error.message == f"the connection to 127.0.0.1:{port} was lost before the call ended"


ONE = b"\0\0\0\0\x01A"
CUTS = {
    "chunked": b"transfer-encoding: chunked\r\n\r\n6\r\n" + ONE + b"\r\n",
    "counted": b"content-length: 100\r\n\r\n" + ONE,
}


@pytest.mark.parametrize("framing", CUTS)
def test_a_stream_that_is_cut_off_was_lost_and_keeps_what_came(host, drive, framing):
    async def cut(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/connect+proto\r\n" + CUTS[framing])
        await writer.drain()
        await asyncio.sleep(0.05)

    received = []
    with host.tcp(cut) as port:
        error = failure(lambda: drive(f"http://127.0.0.1:{port}").stream("a.B", "C", b"", received=received))
    assert received == [b"A"]
    assert error.message == f"the connection to 127.0.0.1:{port} was lost before the call ended"


def test_a_stream_whose_connection_is_reset_was_lost(host, drive):
    async def reset(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/connect+proto\r\n" + CUTS["chunked"])
        await writer.drain()
        await asyncio.sleep(0.1)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    received = []
    with host.tcp(reset) as port:
        error = failure(lambda: drive(f"http://127.0.0.1:{port}").stream("a.B", "C", b"", received=received))
    assert received == [b"A"]
    assert type(error) is Unavailable


def test_a_unary_reply_that_is_cut_off_was_lost(host, drive):
    page = b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 9\r\n\r\nabc"
    with host.tcp(answering(page)) as port:
        error = failure(lambda: drive(f"http://127.0.0.1:{port}").call("a.B", "C", b""))
    assert type(error) is Unavailable


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (ONE, "ended before"),
        (ONE[:3], "ended before"),
        (ONE + b"\x02\0\0\0\x05hello", "JSON"),
        (ONE + b"\x02\0\0\0\x02[]", "JSON"),
        (ONE + b"\x04\0\0\0\x00", "flags"),
        (ONE + b"\x01\0\0\0\x01A", "compress"),
    ],
)
def test_a_stream_that_breaks_the_protocol_is_internal_and_keeps_what_came(host, drive, body, named):
    received = []
    page = answer(headers=["content-type: application/connect+proto"], body=body)
    with host.tcp(answering(page)) as port:
        error = failure(lambda: drive(f"http://127.0.0.1:{port}").stream("a.B", "C", b"", received=received))
    assert type(error) is Internal
    assert named in error.message
    assert received == ([b"A"] if len(body) > 5 else [])


def test_a_stream_may_end_with_an_error_that_cannot_be_read(host, drive):
    ending = b'{"error": "what", "metadata": {"x-a": ["1", 2], "x-b": "3"}}'
    body = b"\x02" + len(ending).to_bytes(4, "big") + ending
    with host.tcp(answering(answer(headers=["content-type: application/connect+proto"], body=body))) as port:
        error = failure(lambda: drive(f"http://127.0.0.1:{port}").stream("a.B", "C", b""))
    assert error.code is Code.UNKNOWN
    assert error.trailers == (("x-a", "1"),)


def test_damaged_metadata_is_an_internal_error(host, drive, how):
    with host.tcp(answering(answer(headers=["content-type: application/proto", "x-bin: !"]))) as port:
        error = failure(lambda: how(drive(f"http://127.0.0.1:{port}")))
    assert type(error) is Internal
    assert "x-bin" in error.message


def test_a_stream_whose_server_dies_was_lost(host, protocol, drive):
    """A relay that is cut stands for the death of the server behind it."""

    class Cut(list):
        def append(self, message):
            super().append(message)
            host.run(cut())

    async def cut():
        for connection in connections:
            connection.writer.transport.abort()

    received = Cut()
    with host.relay(host.url(protocol)) as (port, connections):
        client = drive(f"{scheme(protocol)}://127.0.0.1:{port}")
        hangs = ask(count=1, hang=True)
        error = failure(lambda: client.stream(RAW, "Stream", hangs, received=received, timeout_ms=10_000))
    assert type(error) is Unavailable
    assert error.message == f"the connection to 127.0.0.1:{port} was lost before the call ended"
    assert received == [b"\0"]


def test_a_method_that_does_not_exist_is_unimplemented_behind_plain_http(host, drive):
    page = answer("404 Not Found", ["content-type: text/plain"], b"nope")
    with host.tcp(answering(page)) as port, pytest.raises(Unimplemented, match="HTTP 404"):
        drive(f"http://127.0.0.1:{port}").call("a.B", "C", b"")
