"""quill.Server: one set of grpc.aio servicers on a gRPC port and an HTTP port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped]  # no py.typed

from quill.errors import InvalidType, InvalidUsage
from quill.limits import Limits, Quota
from quill.server import health, unix_socket
from quill.server.admission import Admission
from quill.server.asgi import AsgiApp
from quill.server.auth import Auth, Authenticator
from quill.server.behaviour import Uniform
from quill.server.blocking import Blocking
from quill.server.calls import Calls
from quill.server.connect.app import HttpApplication
from quill.server.connect.cors import Cors
from quill.server.granian_host import GranianHost, check_installed
from quill.server.grpc_host import bind, create_grpc_server, with_port
from quill.server.guard import Guard
from quill.server.http_host import HttpHost, UvicornHost, listen, url_of
from quill.server.registry import Handler, Registry
from quill.server.stopping import stop_hosts
from quill.server.tls import Tls, TlsFiles
from quill.server.unix_socket import SocketFile


class Server(aio.Server):
    """Serves grpc.aio servicers over gRPC, Connect (proto, JSON and GET) and gRPC-Web at once.

    A drop-in for ``grpc.aio.server()``: generated ``add_XServicer_to_server(servicer, server)`` functions work on it
    unchanged, and interceptors run for the calls of both ports. grpc.health.v1 is added unless a servicer of the
    user's is registered for it.

        server = Server(grpc="127.0.0.1:50051", http="127.0.0.1:8080")
        add_GreeterServicer_to_server(Greeter(), server)
        async with server:
            await server.wait_for_termination()

    Args:
        grpc: HOST:PORT (or ``unix:PATH``) of the gRPC port; port 0 picks a free one; None for no gRPC port, except
            those that `add_insecure_port` opens.
        http: HOST:PORT (or ``unix:PATH``) of the HTTP port; port 0 picks a free one; None for none.
        interceptors: grpc.aio interceptors, the first one outermost, for every call on every port.
        limits: What is accepted.
        reflection: Serve grpc.reflection v1 and v1alpha, which tell all who may call them what is served, in detail.
        cors: Origins whose web pages may call and read the replies, as ``("https://app.example",)``; ``("*",)``
            allows every page, without credentials.
        options: Channel arguments of the gRPC port; they win over those that the server sets itself.
        compression: Compress replies from 1 KiB on for clients that accept it: zstd or gzip over HTTP, gzip over
            gRPC, where replies that do not shrink are left as they are.
        http2: Serve HTTP/2 in clear text (h2c) beside HTTP/1.1 on the HTTP port, so that both sides of a
            bidirectional stream can take turns. Needs ``quill-rpc[http2]``, and a server without `tls`.
        tls: Certificates for both ports; ports that `add_insecure_port` opens stay in clear text.
        auth: Who may call what, on every port; without it and without `tls.identities` everybody may call everything.
        quota: What each caller may use.

    Raises:
        InvalidType: An interceptor is no ``grpc.aio.ServerInterceptor``, or `cors` no sequence of strings.
        InvalidUsage: An origin is none, a file that `tls` or `auth` names is missing or wrong, or HTTP/2 is wanted
            with TLS or without granian.
    """

    def __init__(
        self,
        grpc: str | None = "127.0.0.1:50051",
        http: str | None = "127.0.0.1:8080",
        *,
        interceptors: Sequence[aio.ServerInterceptor] = (),
        limits: Limits | None = None,
        reflection: bool = False,
        cors: Sequence[str] = (),
        options: Sequence[tuple[str, Any]] = (),
        compression: bool = False,
        http2: bool = False,
        tls: Tls | None = None,
        auth: Auth | None = None,
        quota: Quota | None = None,
    ) -> None:
        _check_interceptors(interceptors)
        if http2:
            check_installed()
            _check_clear(tls)
        self._grpc_wanted = grpc
        self._http_wanted = http
        self._limits = limits or Limits()
        self._reflection = reflection
        self._options = options
        self._compression = compression
        self._http2 = http2
        self._registry = Registry()
        self._health = health.Health(lists_services=auth is None and (tls is None or tls.identities is None))
        self._tls = None if tls is None else TlsFiles(tls)
        self._calls = Calls(self._limits)
        self._blocking = Blocking()
        uniform = Uniform(self._calls, self._blocking, self._limits.max_reply_bytes)
        admission = Admission(Authenticator(auth, None if tls is None else tls.identities), quota)
        self._guard = Guard(self._registry, interceptors, uniform, admission)
        self._application = HttpApplication(
            self._guard,
            self._registry,
            self._limits,
            self._health,
            grpc_address=lambda: self._grpc_address,
            cors=Cors(cors),
            compression=compression,
        )
        self._is_hosted = False
        self._socket_files: list[SocketFile] = []
        self._grpc_server: aio.Server | None = None
        self._grpc_address: str | None = None
        self._http_host: HttpHost | None = None
        self._http_url: str | None = None
        self._started = False
        self._grace_over = asyncio.Event()
        self._grace_timers: list[asyncio.TimerHandle] = []
        self._stopping: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    @property
    def grpc_address(self) -> str | None:
        """HOST:PORT of the gRPC port, with the number that the system chose; None before the start or without one.

        Of a Unix socket its address as it was given, ``unix:PATH``: what gRPC channels take.
        """
        return self._grpc_address

    @property
    def http_url(self) -> str | None:
        """``http://HOST:PORT`` of the HTTP port, likewise; ``https://`` with TLS.

        Of a Unix socket ``http+unix:///PATH``, with TLS ``https+unix:///PATH``.
        """
        return self._http_url

    @property
    def asgi_app(self) -> AsgiApp:
        """The HTTP port's application, for an ASGI host of your own; the server then needs no port of its own.

            server = quill.Server(grpc=None, http=None)
            add_GreeterServicer_to_server(Greeter(), server)
            app = server.asgi_app  # uvicorn module:app

        The host's lifespan starts and stops the server, with the ports that it was given, unless it was started
        before: where the host runs no lifespan (a mounted application), use ``async with server``. How many
        connections there may be and how large headers may grow while they come in is then the host's matter; the other
        limits hold. Hosts that send HTTP trailers serve gRPC as well.
        """
        self._is_hosted = True
        return AsgiApp(self._application, self.start, self.stop, lambda: self._started)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Register handlers, as grpc.aio; before the start."""
        self._check_not_started("register handlers")
        self._registry.add_generic(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """Register the handlers of a service's methods, as grpc.aio; before the start."""
        self._check_not_started("register handlers")
        self._registry.add_methods(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        """Open a further gRPC port, in clear text; before the start and in the loop that will serve.

        Returns:
            The number of the port.

        Raises:
            InvalidUsage: The address cannot be listened on.
        """
        return self._add_port(address, None)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Open a further gRPC port, with TLS; before the start and in the loop that will serve.

        Returns:
            The number of the port.

        Raises:
            InvalidUsage: The address cannot be listened on.
        """
        return self._add_port(address, server_credentials)

    async def start(self) -> None:
        """Open the ports and serve.

        Raises:
            InvalidUsage: An address cannot be listened on, no port is wanted, or the server was started before.
        """
        self._check_not_started("start again")
        if health.SERVICE not in self._registry.services:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self)
        if self._reflection:
            self._add_reflection()
        self._started = True
        try:
            await self._open_ports()
        except BaseException:
            if self._grpc_server is not None:
                await self._grpc_server.start()  # one that never ran would keep its ports
            await self.stop(None)
            raise
        self._health.serve(self._registry.services)

    def set_serving(self, serving: bool) -> None:
        """Say whether what is behind the servicers can answer now: health and /readyz tell it. Calls run in any case.

        A started server is SERVING at first. It has no effect before the start and after `drain`.
        """
        self._health.set_serving(serving)

    def drain(self) -> None:
        """Tell load balancers to send no more: health and /readyz say NOT_SERVING. Calls are answered until `stop`."""
        self._health.drain()

    async def stop(self, grace: float | None) -> None:
        """Stop: accept no more, let calls end within the grace, then end those that still run with UNAVAILABLE.

        Returns when the ``finally`` blocks of all handlers have run; a handler that holds on to its task after it was
        cancelled is left behind after a second, and the log says so. May be called again, with a shorter grace.

        Args:
            grace: Seconds, for both ports together; None ends calls at once.
        """
        if not self._started:
            return
        if grace is None:
            self._grace_over.set()
        else:
            self._grace_timers.append(asyncio.get_running_loop().call_later(grace, self._grace_over.set))
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        # A caller that gives up waiting does not stop the stopping.
        await asyncio.shield(self._stopping)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until the server has stopped.

        Returns:
            Whether the time, in seconds, was over first.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(None)

    def _add_reflection(self) -> None:
        """Add both versions, but for one that the user has registered."""
        from quill.server import reflection

        for service, methods in reflection.handlers(lambda: self._registry.services).items():
            if service not in self._registry.services:
                self._registry.add_methods(service, methods)

    def _check_not_started(self, what: str) -> None:
        if self._started:
            raise InvalidUsage(f"cannot {what}: the server was started")

    def _add_port(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        self._check_not_started("open a port")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise InvalidUsage("open ports in a coroutine: they belong to the loop that serves them") from None
        return self._bind(address, credentials)

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        if self._grpc_server is None:
            self._grpc_server = create_grpc_server(
                self._guard, self._limits, self._options, compression=self._compression
            )
        port = bind(self._grpc_server, address, credentials)
        self._remember_file(address)
        if self._grpc_address is None:
            self._grpc_address = with_port(address, port)
        return port

    def _remember_file(self, address: str) -> None:
        if (path := unix_socket.path_of(address)) is not None:
            self._socket_files.append(SocketFile(path))

    async def _open_ports(self) -> None:
        """Bind both ports before either is served, so that a port in use leaves nothing behind."""
        listener = None
        if self._http_wanted is not None:
            listener = await listen(self._http_wanted)
            self._remember_file(self._http_wanted)
        try:
            if self._grpc_wanted is not None:
                self._grpc_address = None
                self._bind(self._grpc_wanted, None if self._tls is None else self._tls.grpc_credentials())
        except BaseException:
            if listener is not None:
                listener.close()
            raise
        if self._grpc_server is not None:
            await self._grpc_server.start()
        if listener is not None:
            self._http_url = url_of(listener, "http" if self._tls is None else "https")
            self._http_host = self._host(listener)
            await self._http_host.start()
        if self._grpc_server is None and self._http_host is None and not self._is_hosted:
            raise InvalidUsage("a server needs a port: give grpc=, http= or both an address")

    def _host(self, listener: socket.socket) -> HttpHost:
        """What serves the HTTP port."""
        if self._http2:
            return GranianHost(self._application, listener, self._limits)
        tls = None if self._tls is None else self._tls.http_context()
        return UvicornHost(self._application, listener, self._limits, tls)

    async def _stop(self) -> None:
        try:
            self._health.drain()
            self._health.close()
            await stop_hosts(self._calls, self._grpc_server, self._http_host, self._grace_over)
        finally:
            for timer in self._grace_timers:
                timer.cancel()
            for file in self._socket_files:
                file.remove()
            self._blocking.close()
            self._application.close()
            self._stopped.set()


def _check_clear(tls: Tls | None) -> None:
    """HTTP/2 comes from granian, which loads one certificate for good and tells nobody that of the client."""
    if tls is not None:
        raise InvalidUsage(
            "http2 is served in clear text only: its host neither reloads certificates nor knows its clients'; "
            "leave out tls= or http2=, or put a proxy that ends TLS in front"
        )


def _check_interceptors(interceptors: Sequence[object]) -> None:
    for interceptor in interceptors:
        if not isinstance(interceptor, aio.ServerInterceptor):
            kind = type(interceptor).__name__
            raise InvalidType(f"interceptors must be grpc.aio.ServerInterceptor, got {kind}")
