"""Servers over TLS for the tests of the client: Quill's own, and bare ones for what Quill's never does."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from client.harness import LIMIT_S, Host
from quill import ClientTls, Unavailable
from quill.principal import current_principal
from quill.server.server import Server
from quill.server.tls import Tls
from support.authority import Authority

SERVICE = "who.v1.Who"


class Who:
    """Says who calls; streams until it is let go."""

    def __init__(self):
        self.going = asyncio.Event()
        self.live = 0

    async def say(self, request, context):
        return current_principal.get().name.encode()

    async def hang(self, request, context):
        self.live += 1
        yield b"before"
        await self.going.wait()
        yield b"after"


@dataclass
class Running:
    """A Quill server of `who.v1.Who` over TLS, and where it is for one protocol."""

    server: Server
    who: Who
    url: str


@dataclass
class Scene:
    """What a test with TLS needs, for one protocol and one kind of client."""

    loop: Host
    protocol: str
    folder: Path
    drive: Any
    authority: Authority = field(default_factory=Authority)
    stranger: Authority = field(default_factory=lambda: Authority("another CA"))

    def client(self, url, **tls):
        """A client that trusts the authority, or as told."""
        given = ClientTls(**({"ca": self.authority.pem} | tls))
        return self.drive(url, protocol=self.protocol, tls=given, max_attempts=1)

    def let_go(self, running):
        """The streams of a server may end."""
        self.loop._loop.call_soon_threadsafe(running.who.going.set)

    @contextlib.contextmanager
    def serving(self, pair=None, **tls):
        """A Quill server with a certificate of the authority."""
        cert, key = (pair or self.authority.issue()).write(self.folder)

        async def start():
            who = Who()
            server = Server("127.0.0.1:0", "127.0.0.1:0", tls=Tls(cert=cert, key=key, **tls))
            handlers = {
                "Say": grpc.unary_unary_rpc_method_handler(who.say),
                "Hang": grpc.unary_stream_rpc_method_handler(who.hang),
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
            await server.start()
            return Running(server, who, self._url_of(server))

        running = self.loop.run(start())
        try:
            yield running
        finally:
            self.loop.run(running.server.stop(0))

    def _url_of(self, server):
        return f"grpcs://{server.grpc_address}" if self.protocol == "grpc" else server.http_url

    def url(self, port, host="127.0.0.1"):
        """Of a bare server."""
        return f"{'grpcs' if self.protocol == 'grpc' else 'https'}://{host}:{port}"

    def _context(self, pair, *, asks, version):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair.write(self.folder, "bare"))
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.maximum_version = version
        if asks:
            context.load_verify_locations(cadata=self.authority.pem.decode())
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    @contextlib.contextmanager
    def bare(self, pair, *, asks=False, version=ssl.TLSVersion.TLSv1_3):
        """A server that shakes hands for every protocol and says nothing after. Yields its URL."""

        async def hang_up(reader, writer):
            await reader.read(100)

        with self.loop.tcp(hang_up, ssl=self._context(pair, asks=asks, version=version)) as port:
            yield self.url(port)

    @contextlib.contextmanager
    def alerting(self, version):
        """A server with blocking sockets that asks for a client's certificate: unlike asyncio's it sends its alerts."""
        context = self._context(self.authority.issue(), asks=True, version=version)

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    context.wrap_socket(connection, server_side=True).close()

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=accept)
            thread.start()
            try:
                yield self.url(listener.getsockname()[1])
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join(LIMIT_S)

    def shown_serial(self, url, authority):
        """The serial number of the certificate that a new connection is shown, by the ssl module.

        None where it is not signed by this authority.
        """
        host, _, port = url.partition("://")[2].rpartition(":")
        context = authority.ssl()
        context.set_alpn_protocols(["h2" if self.protocol == "grpc" else "http/1.1"])
        with socket.create_connection((host, int(port)), LIMIT_S) as sock:
            try:
                with context.wrap_socket(sock, server_hostname=host) as secured:
                    der = secured.getpeercert(binary_form=True)
            except ssl.SSLCertVerificationError:
                return None
        return x509.load_der_x509_certificate(der).serial_number


def serial(pair):
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(pair.cert).serial_number


def refusal(client):
    """Why the calls of a client fail, unary and streaming alike."""
    with pytest.raises(Unavailable) as unary:
        client.call(SERVICE, "Say", b"", timeout_ms=LIMIT_S * 1000)
    with pytest.raises(Unavailable) as stream:
        client.stream(SERVICE, "Hang", b"", timeout_ms=LIMIT_S * 1000)
    assert unary.value.message == stream.value.message
    return unary.value.message


def wait_until(condition):
    """Wait until something is so: files are looked at once a second."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextlib.contextmanager
def loop_in_a_thread():
    """An event loop for servers."""
    host = Host()
    host._thread.start()
    yield host
    host._loop.call_soon_threadsafe(host._loop.stop)
    host._thread.join(LIMIT_S)
    host._loop.close()
