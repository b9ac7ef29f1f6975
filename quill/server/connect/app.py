"""The ASGI application of the HTTP port: health pages, and Connect calls on every registered method."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Never, cast

from connectrpc.codec import Codec
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint

from quill.limits import Limits
from quill.server.connect.compression import ENCODINGS, BoundedCompression
from quill.server.connect.exchange import Exchange, current_exchange
from quill.server.connect.outgoing import Outgoing
from quill.server.connect.request import Request
from quill.server.guard import Guard
from quill.server.health import Health
from quill.server.http_host import Receive, Send
from quill.server.registry import Handler, Registry

_log = logging.getLogger("quill.server")

_METHOD: MethodInfo[Any, Any] = MethodInfo(
    name="",
    service_name="",
    input=bytes,
    output=bytes,
    idempotency_level=IdempotencyLevel.UNKNOWN,
    stream_type=StreamType.UNARY,
)


class HttpApplication:
    """What the HTTP port answers.

    Args:
        guard: The door for calls.
        registry: What is served.
        limits: What is accepted.
        health: What /readyz says.
        grpc_address: Where to send callers of methods that HTTP/1.1 cannot carry; None without a gRPC port.
    """

    def __init__(
        self, guard: Guard, registry: Registry, limits: Limits, health: Health, grpc_address: str | None
    ) -> None:
        self._guard = guard
        self._registry = registry
        self._limits = limits
        self._health = health
        self._grpc_address = grpc_address
        self._connect = _ConnectCalls(limits)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope)
        if request.path in ("/healthz", "/readyz"):
            await self._answer_health(request, send)
            return
        registered = self._registered(request)
        if request.content_type.startswith("application/grpc"):
            await _answer(send, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"error": "this port serves the Connect protocol"})
        elif registered is None and not request.is_call:
            await _answer(send, HTTPStatus.NOT_FOUND, {"error": "not found"})
        else:
            outgoing = Outgoing(send)
            exchange = Exchange(
                request,
                registered,
                outgoing,
                guard=self._guard,
                limits=self._limits,
                grpc_address=self._grpc_address,
            )
            token = current_exchange.set(exchange)
            try:
                await self._connect(request.scope(), receive, outgoing)
            except asyncio.CancelledError:
                # The host is closing: this was the request's whole task, and connectrpc has told the client.
                _log.debug("%s was cancelled by the end of the server", request.path)
            finally:
                current_exchange.reset(token)

    def _registered(self, request: Request) -> Handler | None:
        """The handler of a path, for its kind; no call is let through by this.

        To those who may not call it a method does not exist: its kind would tell them that it does.
        """
        try:
            allowed = self._guard.admission.allows(request.details, request.auth_context)
            return self._registry.find(request.details) if allowed else None
        except Exception:  # noqa: BLE001 - a generic handler of the user's; the guard asks it again and reports
            return None

    async def _answer_health(self, request: Request, send: Send) -> None:
        """Liveness and readiness, open to everybody: /healthz as long as the loop runs, /readyz while SERVING."""
        if request.method not in ("GET", "HEAD"):
            await _answer(send, HTTPStatus.METHOD_NOT_ALLOWED, {"error": "use GET"}, [(b"allow", b"GET, HEAD")])
        elif request.path == "/healthz" or self._health.is_serving:
            await _answer(send, HTTPStatus.OK, {"status": "SERVING"})
        else:
            await _answer(send, HTTPStatus.SERVICE_UNAVAILABLE, {"status": "NOT_SERVING"})


class _ConnectCalls(ConnectASGIApplication[None]):
    """connectrpc, given raw messages, one endpoint for each kind of call, and Quill's own decoders."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(
            service=None,
            endpoints=lambda _service: cast("Any", _Endpoints()),  # its type of an endpoint has no public name
            interceptors=[_Admission()],
            read_max_bytes=limits.max_message_bytes,
            compressions=[BoundedCompression(encoding, limits) for encoding in ENCODINGS],
            codecs=[_RawCodec("proto"), _RawCodec("json")],
        )

    @property
    def path(self) -> str:
        """Every path."""
        return ""


class _Endpoints(Mapping[str, Endpoint[Any, Any]]):
    """An endpoint for every path: unary or streaming, as the exchange is. connectrpc only calls ``get``."""

    _unary: Endpoint[Any, Any] = Endpoint.unary(_METHOD, lambda data, _: current_exchange.get().respond(data))
    _stream: Endpoint[Any, Any] = Endpoint.server_stream(_METHOD, lambda data, _: _Sent(data))

    def __getitem__(self, path: str) -> Endpoint[Any, Any]:
        return self._stream if current_exchange.get().is_stream else self._unary

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Sent:
    """The replies of a stream, for connectrpc: none, because the exchange sends them itself."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __aiter__(self) -> _Sent:
        return self

    async def __anext__(self) -> Never:
        await current_exchange.get().respond(self._data)
        raise StopAsyncIteration


class _Admission:
    """Runs the guard where connectrpc has read the headers, set the deadline and not begun with the body."""

    async def on_start(self, ctx: RequestContext[Any, Any]) -> None:
        """Raise ConnectError where the call may not run."""
        await current_exchange.get().admit(ctx)

    async def on_end(self, _token: None, _ctx: RequestContext[Any, Any], _error: Exception | None) -> None:
        """Nothing to undo."""


class _RawCodec(Codec[bytes, bytes]):
    """Hands messages through; the exchange knows what they are."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        """The name in content types."""
        return self._name

    def encode(self, message: bytes) -> bytes:
        """The message."""
        return message

    def decode(self, data: bytes | bytearray, message_class: type[bytes]) -> bytes:
        """The message."""
        return bytes(data)


async def _answer(
    send: Send, status: HTTPStatus, document: Mapping[str, str], headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Answer with a small JSON document."""
    body = json.dumps(document).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *(headers or ())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
